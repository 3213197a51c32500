"""Shared memory through which workers pass decoded photos to the main process."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

PREFETCHED_PHOTOS = 2
"""Number of decoded photos that each worker keeps ready."""

SLOTS = PREFETCHED_PHOTOS + 1
"""Number of slots of each worker: one more, for the photo that the main process is copying."""


class InSlot(NamedTuple):
    """Where the pixels of a photo are: at the start of a slot.

    Attributes:
        worker: index of the worker.
        slot: index of the slot among those of the worker.
        shape: shape of the pixels.
        memory: the whole slot, uint8. It is only sent with the first photo in it, because opening it takes
            the main process as long as copying a photo.
    """

    worker: int
    slot: int
    shape: tuple[int, ...]
    memory: Tensor | None


class SharedMemory:
    """The slots of a worker, used round-robin.

    Slots are reused because allocating new shared memory takes longer than decoding a photo into it. A slot
    is always free when it comes up again: the main process only requests another photo after it has copied
    the previous one.
    """

    def __init__(self) -> None:
        self._slots = [torch.empty(0, dtype=torch.uint8)] * SLOTS
        self._sent = [False] * SLOTS
        self._next = 0

    def find_room(self, size: int) -> NDArray[np.uint8] | None:
        """Return the first ``size`` bytes of the next slot, or None if it is smaller.

        A slot does not grow before its photo is decoded, because the header of the photo may be wrong.

        Args:
            size: number of bytes.

        Returns:
            (size,) uint8, or None.
        """
        slot = self._slots[self._next]
        return slot.numpy()[:size] if 0 < size <= slot.numel() else None

    def put(self, pixels: NDArray[np.uint8]) -> InSlot | NDArray[np.uint8]:
        """Copy pixels to the next slot, unless they were decoded into it; enlarge it if necessary.

        Args:
            pixels: uint8 of any shape.

        Returns:
            Where the pixels are; or the pixels themselves outside of workers, or if /dev/shm is full. They
            then go through a pipe, which is slower. (torch would lose a tensor for which there is no room,
            and the main process would wait for it forever.)
        """
        worker = get_worker_info()
        if worker is None:
            return pixels
        room = self.find_room(pixels.size)
        if room is None:
            try:
                self._slots[self._next] = torch.empty(pixels.size, dtype=torch.uint8).share_memory_()
            except RuntimeError:
                return pixels
            self._sent[self._next] = False
            room = self._slots[self._next].numpy()
        if not np.may_share_memory(room, pixels):
            room[: pixels.size] = pixels.ravel()
        slot, self._next = self._next, (self._next + 1) % SLOTS
        memory = None if self._sent[slot] else self._slots[slot]
        self._sent[slot] = True
        return InSlot(worker.id, slot, pixels.shape, memory)


class OpenedSlots:
    """The slots of all workers that the main process has opened so far."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], Tensor] = {}

    def view(self, pixels: InSlot) -> NDArray[np.uint8]:
        """Return the pixels in a slot; they are valid until the worker reuses it."""
        key = pixels.worker, pixels.slot
        if pixels.memory is not None:
            self._memory[key] = pixels.memory
        view: NDArray[np.uint8] = self._memory[key][: math.prod(pixels.shape)].view(pixels.shape).numpy()
        return view
