"""Main memory of this process: how much is free, its peak, and what happens to freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux shows the memory limits of containers and of services, such as those of systemd-run."""

OWN_GROUPS = Path("/proc/self/cgroup")
"""Where it names the groups of this process."""


class _GroupFiles(NamedTuple):
    """Names of files in the folder of a control group, and of an entry of its ``memory.stat``.

    The limit of a group holds for the groups in it, too.
    """

    limit: str
    used: str
    file_cache: str


VERSION_1 = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")

VERSION_2 = _GroupFiles("memory.max", "memory.current", "inactive_file")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt, from malloc.h of the GNU C library."""

DEFAULT_MMAP_MAX = 65536

MAX_MMAP_THRESHOLD = 32 * 2**20
"""Maximum to which the GNU C library itself raises the threshold as large blocks are freed, in bytes."""


def free_main_memory() -> int:
    """Return the bytes of main memory that are free now, within the limits of control groups, if any."""
    free = int(psutil.virtual_memory().available)
    for folder, files in _control_groups():
        limit = _read_number(folder / files.limit)
        used = _read_number(folder / files.used)
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used + _file_cache(folder, files.file_cache)))
    return free


def _control_groups() -> Iterator[tuple[Path, _GroupFiles]]:
    """Yield the folders of the control groups of this process from its own up, as each may have a limit.

    A container without a namespace of control groups is told its path on the host, but sees its own group as
    the root; folders that do not exist have no limits that could be read.

    Source: https://man7.org/linux/man-pages/man7/cgroups.7.html
    """
    own = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else []
    for line in own or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = CONTROL_GROUP, VERSION_2
        elif "memory" in controllers.split(","):
            root, files = CONTROL_GROUP / "memory", VERSION_1
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents) if inner.parts else (inner,):
            if ".." not in group.parts:  # of a group outside of the namespace
                yield root / group, files


def _read_number(path: Path) -> int | None:
    """The number in a file; None if there is no file, or "max" in it, which means no limit."""
    try:
        text = path.read_text().strip()
    except OSError:  # also where a group is removed meanwhile
        return None
    return int(text) if text.isdecimal() else None


def _file_cache(folder: Path, entry: str) -> int:
    """Return the bytes of inactive file cache, which a control group counts as used but can reclaim."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{entry} "))


_is_kept = False


def keep_freed_memory(keep: bool) -> None:
    """Set whether this process keeps freed main memory for reuse, or returns it to the system.

    By default, the GNU C library returns the memory of each large tensor, and the system has to clear new
    pages for the next one, which takes a fifth of the time of a photo. Does nothing with other C libraries.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html

    Args:
        keep: whether to keep it.
    """
    global _is_kept
    library = ctypes.CDLL(None)
    if keep == _is_kept or not hasattr(library, "mallopt"):
        return
    _is_kept = keep
    library.mallopt(M_MMAP_MAX, 0 if keep else DEFAULT_MMAP_MAX)
    library.mallopt(M_TRIM_THRESHOLD, -1 if keep else 2 * MAX_MMAP_THRESHOLD)
    library.mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)


def trim_main_memory() -> None:
    """Return memory that the GNU C library keeps free to the system. Does nothing with other C libraries."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@contextlib.contextmanager
def limit_new_memory(new_bytes: int) -> Iterator[None]:
    """Let allocations of this process fail, usually with MemoryError, once they exceed ``new_bytes``.

    The limit is on address space, which the system grants to all threads. Without effect where the system
    does not say how much is in use (other than Linux).
    """
    usage = Path("/proc/self/statm")
    if not usage.is_file():
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(usage.read_text().split()[0]) * resource.getpagesize() + new_bytes
    limits = [value for value in (limit, before, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


_earlier_peak = 0


def memory_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes the main memory of this process grew while it did something.

    Linux is told to measure the peak anew. Elsewhere, only growth beyond the peak so far is seen.
    """
    global _earlier_peak
    # Memory that is kept for reuse would be used again without being seen.
    keep_freed_memory(False)
    trim_main_memory()
    _earlier_peak = peak_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _measured_peak()
    work()
    return _measured_peak() - before


def peak_memory() -> int:
    """Return the most main memory that this process has held so far, in bytes."""
    return max(_earlier_peak, _measured_peak())


def _measured_peak() -> int:
    """The peak since the system began to measure it.

    On Linux this is read from /proc, because ru_maxrss there includes memory of the parent process.
    """
    status = Path("/proc/self/status")
    peak = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    if peak is not None:
        return int(peak[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
