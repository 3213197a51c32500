"""The device that runs the network: which one, how much memory, which precision."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carvana_batch.models.inference import prepare_network
from carvana_batch.records import UsageError

GPU_BUDGET = 6_000_000_000
"""Bytes that a run takes of a GPU at most unless told otherwise: a laptop's card."""

CPU_SHARE = 0.5
"""Share of the free main memory that a run takes at most unless told otherwise."""

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Of malloc.h of the GNU C library."""

USUAL_MMAP_MAX = 65536

HIGHEST_MMAP_THRESHOLD = 32 * 2**20
"""Up to this the GNU C library itself raises the threshold where large memory comes and goes."""

FEW_THREADS = 3
"""Up to so many, one alone does the work beside the network; only two of a CPU were measured."""

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # the same on Windows
    "could not create a primitive",  # oneDNN, which has no room for its work space
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # the same since cuDNN 9, on the device and on the host
    "Unable to find a valid cuDNN algorithm to run convolution",  # none has room for its work space
    "unable to find an engine to execute this computation",
    "MPS backend out of memory",
    "Invalid buffer size",  # Metal has a limit for one tensor
)
"""What torch says where it raises a plain RuntimeError although memory ran out.

Some of it can have other causes, so whoever gives up quotes the error.
"""


def pick_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UsageError: an unknown name, or a device that this machine or this torch build lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {name}: this torch sees {count} CUDA devices; --device cpu always works")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: not available here; --device cpu always works")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps")
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now; on a CPU within the limit of the control group, if any."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
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


def memory_budget(device: torch.device, asked: int | None) -> int:
    """Bytes that tiles, weights and probability maps may take on the device."""
    if asked is not None:
        return asked
    if device.type == "cpu":
        release_unused_memory(device)  # it would count as taken
    if device.type == "cuda":
        return min(GPU_BUDGET, free_memory(device))
    return int(free_memory(device) * CPU_SHARE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, rather than anything else that torch reports alike."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


class OutOfMemoryGuard:
    """A with block that ends where memory runs out; other errors pass.

    After the block, and not before, the tensors of the failed attempt are gone: as long as an error is being
    handled its traceback keeps them.

    Attributes:
        error: what the error said, or None if there was none.
    """

    error: str | None = None

    def __enter__(self) -> OutOfMemoryGuard:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self.error = str(error).partition("\n")[0] or type(error).__name__
        return True


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


class FreedMemory:
    """Main memory that is kept as long as the same shapes come one after the other.

    Kept for other shapes it would fall into pieces that fit none, and the process would grow without end.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._shape: tuple[int, ...] = ()
        self._is_kept = device.type == "cpu"

    def prepare_for(self, shape: tuple[int, ...]) -> None:
        """Keep what is freed from now on if the work before was of this ``shape`` too."""
        if self._is_kept:
            if shape != self._shape:
                self.give_back()
            else:
                keep_freed_memory(True)
            self._shape = shape

    def give_back(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory(False)
            release_unused_memory(self.device)

    def stop(self) -> None:
        """Keep nothing any more: memory is short."""
        self._is_kept = False
        self.give_back()


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device. CUDA fetches it from page-locked memory when its turn comes; from any other it
    would wait until all work before is done, which it does where there is no such memory left."""
    tensor = torch.from_numpy(array)
    if works_ahead(device):
        with OutOfMemoryGuard():
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Download:
    """Tensors of one device on their way into main memory; nothing waits for them before :meth:`read`."""

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        ahead = works_ahead(device)
        self._copies = [tensor.to("cpu", non_blocking=ahead) for tensor in tensors]
        self._copied = torch.cuda.current_stream(device).record_event() if ahead else None

    def read(self) -> list[Tensor]:
        """They, once they have come."""
        if self._copied is None:
            return self._copies
        self._copied.synchronize()
        return [copy.clone() for copy in self._copies]  # page-locked memory is not to be held for long


def works_ahead(device: torch.device) -> bool:
    """Whether the device is given work that it does later, while the caller goes on; MPS can do so as well,
    but torch does not make sure there that memory is not used before its time."""
    return device.type == "cuda"


@contextlib.contextmanager
def one_of_few_threads(device: torch.device) -> Iterator[None]:
    """A with block in which torch takes one thread of a CPU, if it has two or three otherwise.

    It is for work beside the network, during which the next photo is decoded: a thread that has to wait for
    the core of the decoder holds up the others, which wait for it without leaving theirs. Of many threads
    those left would be too few, and torch would make some of them anew each time.
    """
    count = torch.get_num_threads()
    is_taken = device.type == "cpu" and 1 < count <= FEW_THREADS
    if is_taken:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if is_taken:
            torch.set_num_threads(count)


def release_unused_memory(device: torch.device) -> None:
    """Give back what is kept for later tensors: it lies in pieces of the wrong sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # page-locked memory; torch 2.6 has no such call
            torch.accelerator.empty_host_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def choose_precision(network: nn.Module, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for ``--precision auto`` and one line that says why.

    On a CPU bfloat16 is up to three times as fast as float32 where the hardware has it and far slower
    where it has not, so both are timed on a small input, in turns, and the better times are compared.
    """
    if device.type != "cpu":
        return torch.float16, f"fp16 on {device.type}"
    images = torch.zeros((1, 3, 384, 384)).to(memory_format=torch.channels_last)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    inputs = {dtype: images.to(dtype) for dtype in best}
    networks = {dtype: prepare_network(network, device, dtype) for dtype in best}
    with torch.inference_mode():
        for _ in range(4):
            for dtype in best:
                start = time.perf_counter()
                networks[dtype](inputs[dtype])
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    ratio = best[torch.float32] / best[torch.bfloat16]
    chosen = torch.bfloat16 if ratio > 1 else torch.float32
    name = "bf16" if chosen is torch.bfloat16 else "fp32"
    return (
        chosen,
        f"{name} (measured: {ratio:.1f}x the speed of fp32)"
        if ratio > 1
        else f"{name} (bf16 is slower here)",
    )
