"""How decoded photos travel from a worker to the main process."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

PREFETCHED_PHOTOS = 2
"""Decoded photos that each worker keeps ready."""

SLOTS = PREFETCHED_PHOTOS + 1
"""Places in shared memory of each worker: the main process copies one photo while the others wait."""


class _InSlot(NamedTuple):
    """Pixels of this shape lie at the start of a slot in shared memory. ``memory`` is sent once, with the
    first ones in there, because the main process needs as long to open it as to copy a photo."""

    worker: int
    slot: int
    shape: tuple[int, ...]
    memory: Tensor | None


class _SharedMemory:
    """Where photos lie on their way from a worker to the main process, in turns: its memory is used again and
    again, because to get new one from the system takes longer than to decode a photo into it.

    A slot is free again when its turn comes: the main process asks for another photo only after it has copied
    the one before.
    """

    def __init__(self) -> None:
        self._slots = [torch.empty(0, dtype=torch.uint8)] * SLOTS
        self._sent = [False] * SLOTS
        self._turn = 0

    def find_room(self, size: int) -> NDArray[np.uint8] | None:
        """(size,) uint8 in the slot whose turn it is, if photos before were as large.

        A slot never grows for a photo that is not decoded yet: its header may lie.
        """
        slot = self._slots[self._turn]
        return slot.numpy()[:size] if 0 < size <= slot.numel() else None

    def put(self, pixels: NDArray[np.uint8]) -> _InSlot | NDArray[np.uint8]:
        """Where in shared memory they lie now; they themselves outside of workers and where /dev/shm has no
        room, to go through a pipe, which is slower.

        A tensor without room would be lost on its way, and the main process would wait for it for ever.
        """
        worker = get_worker_info()
        if worker is None:
            return pixels
        room = self.find_room(pixels.size)
        if room is None:
            try:
                self._slots[self._turn] = torch.empty(pixels.size, dtype=torch.uint8).share_memory_()
            except RuntimeError:
                return pixels
            self._sent[self._turn] = False
            room = self._slots[self._turn].numpy()
        if not np.may_share_memory(room, pixels):
            room[: pixels.size] = pixels.ravel()
        slot, self._turn = self._turn, (self._turn + 1) % SLOTS
        memory = None if self._sent[slot] else self._slots[slot]
        self._sent[slot] = True
        return _InSlot(worker.id, slot, pixels.shape, memory)


def _open(place: _InSlot, slots: dict[tuple[int, int], Tensor]) -> Tensor:
    """The pixels there; ``slots`` are those that the main process has seen before, by worker and number."""
    key = place.worker, place.slot
    if place.memory is not None:
        slots[key] = place.memory
    return slots[key][: math.prod(place.shape)].view(place.shape)
