"""Copies to the device and back, which do not wait where the device works asynchronously."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carvana_batch.inference.memory import OutOfMemoryGuard


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array to the device.

    CUDA copies page-locked memory asynchronously. Where no page-locked memory is left, the copy waits until
    all earlier work on the device is done.
    """
    tensor = torch.from_numpy(array)
    if works_ahead(device):
        with OutOfMemoryGuard():
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Download:
    """An asynchronous copy of tensors of one device to main memory; only :meth:`read` waits for it."""

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        ahead = works_ahead(device)
        self._copies = [tensor.to("cpu", non_blocking=ahead) for tensor in tensors]
        self._copied = torch.cuda.current_stream(device).record_event() if ahead else None

    def read(self) -> list[Tensor]:
        """Wait for the copies and return them."""
        if self._copied is None:
            return self._copies
        self._copied.synchronize()
        return [copy.clone() for copy in self._copies]  # do not hold on to page-locked memory


def works_ahead(device: torch.device) -> bool:
    """Whether the device works asynchronously, while the caller goes on.

    MPS can as well, but there torch does not guard memory against being read before the copy is complete.
    """
    return device.type == "cuda"
