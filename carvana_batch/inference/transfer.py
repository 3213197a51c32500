"""The way to the device and back, without waiting where the device works ahead."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carvana_batch.inference.memory import OutOfMemoryGuard


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
