"""The main memory of this process: its limits, its peak, and whether freed memory is kept."""

from __future__ import annotations

import ctypes
import platform
import re
import resource
from pathlib import Path

import psutil

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Of malloc.h of the GNU C library."""

USUAL_MMAP_MAX = 65536

HIGHEST_MMAP_THRESHOLD = 32 * 2**20
"""Up to this the GNU C library itself raises the threshold where large memory comes and goes."""


def free_main_memory() -> int:
    """Bytes of main memory that are free now, within the limit of the control group, if any."""
    free = int(psutil.virtual_memory().available)
    limit, used = CONTROL_GROUP / "memory.max", CONTROL_GROUP / "memory.current"
    if limit.is_file() and used.is_file():
        text = limit.read_text().strip()
        if text.isdecimal():
            free = min(free, max(0, int(text) - int(used.read_text()) + _file_cache()))
    return free


def _file_cache() -> int:
    """Bytes of files read long ago, which count as used in the control group but yield on demand."""
    statistics = CONTROL_GROUP / "memory.stat"
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


_is_kept = False


def keep_freed_memory(keep: bool) -> None:
    """Let this process keep main memory that it has freed, to use it again; or no longer.

    The GNU C library gives back what each large tensor took, and the system has to clear it page by page for
    the next one: a fifth of the time of a photo. Other C libraries are left as they are.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    global _is_kept
    library = ctypes.CDLL(None)
    if keep == _is_kept or not hasattr(library, "mallopt"):
        return
    _is_kept = keep
    library.mallopt(M_MMAP_MAX, 0 if keep else USUAL_MMAP_MAX)
    library.mallopt(M_TRIM_THRESHOLD, -1 if keep else 2 * HIGHEST_MMAP_THRESHOLD)
    library.mallopt(M_MMAP_THRESHOLD, HIGHEST_MMAP_THRESHOLD)


def trim_main_memory() -> None:
    """Give free memory that the C library keeps back to the system, where it is the GNU C library."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def peak_memory() -> int:
    """Most bytes of main memory that this process held so far.

    Linux tells it in /proc; its ru_maxrss also counts what the process that started this one held.
    """
    status = Path("/proc/self/status")
    peak = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    if peak is not None:
        return int(peak[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
