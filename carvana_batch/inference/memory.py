"""The memory of a device: how much there is, and how to notice that it ran out."""

from __future__ import annotations

from types import TracebackType

import torch

from carvana_batch.main_memory import free_main_memory, keep_freed_memory, trim_main_memory

GPU_BUDGET = 6_000_000_000
"""Bytes that a run takes of a GPU at most unless told otherwise: a laptop's card."""

CPU_SHARE = 0.5
"""Share of the free main memory that a run takes at most unless told otherwise."""

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


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now; on a CPU within the limit of the control group, if any."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_main_memory()


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


def release_unused_memory(device: torch.device) -> None:
    """Give back what is kept for later tensors: it lies in pieces of the wrong sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # page-locked memory; torch 2.6 has no such call
            torch.accelerator.empty_host_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        trim_main_memory()
