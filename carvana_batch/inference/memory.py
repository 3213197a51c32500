"""The memory of a device: how much of it may be used, and how to notice that it ran out."""

from __future__ import annotations

from types import TracebackType

import torch

from carvana_batch.main_memory import free_main_memory, keep_freed_memory, trim_main_memory

GPU_BUDGET = 6_000_000_000
"""Most bytes of a GPU that a run uses by default: the memory of a laptop's card."""

CPU_SHARE = 0.5
"""Largest share of the free main memory that a run uses by default."""

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
"""Parts of the messages of plain RuntimeErrors that torch raises when memory runs out.

Some of them can have other causes, so an error that ends a run is quoted.
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
        release_unused_memory(device)  # it would not count as free
    if device.type == "cuda":
        return min(GPU_BUDGET, free_memory(device))
    return int(free_memory(device) * CPU_SHARE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out.

    torch has a class for this, OutOfMemoryError, but its CPU allocator, oneDNN, cuDNN and Metal raise a plain
    RuntimeError; those are told apart by their messages, as seen in torch 2.6 to 2.13.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


class OutOfMemoryGuard:
    """A with block that swallows errors of running out of memory; all other errors pass.

    The tensors of the failed attempt are freed only after the block: while an error is being handled, its
    traceback refers to them.

    Attributes:
        error: the first line of the error's message, None if there was no error.
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
    """Lets the process keep freed main memory as long as consecutive inputs have the same shape.

    With changing shapes, kept memory becomes fragmented, and the process would grow without limit.

    Args:
        device: where the inputs are.
        is_in_charge: False if this is up to another network, between whose inputs are those of this one.
    """

    def __init__(self, device: torch.device, is_in_charge: bool = True) -> None:
        self.device, self.is_in_charge = device, is_in_charge
        self._shape: tuple[int, ...] = ()
        self._is_kept = is_in_charge and device.type == "cpu"

    def prepare_for(self, shape: tuple[int, ...]) -> None:
        """Keep freed memory from now on if the previous input had this ``shape`` as well."""
        if self._is_kept:
            if shape != self._shape:
                self.give_back()
            else:
                keep_freed_memory(True)
            self._shape = shape

    def give_back(self) -> None:
        """Return freed memory to the system."""
        if self.is_in_charge and self.device.type == "cpu":
            keep_freed_memory(False)
            release_unused_memory(self.device)

    def stop(self) -> None:
        """Keep no memory from now on, because it is short."""
        self._is_kept = False
        self.give_back()

    def start_again(self) -> FreedMemory:
        """What decides from now on, as if nothing had happened."""
        return FreedMemory(self.device, self.is_in_charge)


def release_unused_memory(device: torch.device) -> None:
    """Return the memory that torch or the C library keeps for later tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # page-locked memory; missing in torch 2.6 to 2.11
            torch.accelerator.empty_host_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        trim_main_memory()
