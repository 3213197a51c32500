"""Shared memory, in which decoded photos travel from a worker to the main process."""

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
"""Slots of each worker: the main process copies one photo while the others wait."""


class InSlot(NamedTuple):
    """Pixels that lie at the start of a slot.

    Attributes:
        worker: number of the worker.
        slot: number of its slot.
        shape: of the pixels.
        memory: of the slot. It is only sent with the first pixels in it, because opening it takes the main
            process as long as copying a photo.
    """

    worker: int
    slot: int
    shape: tuple[int, ...]
    memory: Tensor | None


class SharedMemory:
    """The slots of a worker, which are used in turn.

    Slots are reused because getting new memory from the system takes longer than decoding a photo into it. A
    slot is free again when its turn comes: the main process only asks for another photo after it has copied
    the previous one.
    """

    def __init__(self) -> None:
        self._slots = [torch.empty(0, dtype=torch.uint8)] * SLOTS
        self._sent = [False] * SLOTS
        self._turn = 0

    def find_room(self, size: int) -> NDArray[np.uint8] | None:
        """(size,) uint8 in the next slot, if earlier photos were as large.

        A slot does not grow for a photo that is not decoded yet, because its header may be wrong.
        """
        slot = self._slots[self._turn]
        return slot.numpy()[:size] if 0 < size <= slot.numel() else None

    def put(self, pixels: NDArray[np.uint8]) -> InSlot | NDArray[np.uint8]:
        """Put pixels into the next slot.

        Returns:
            The pixels themselves outside of workers, and if /dev/shm has no room: they then go through a
            pipe, which is slower. (A tensor without room would be lost on its way, and the main process would
            wait for it forever.)
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
        return InSlot(worker.id, slot, pixels.shape, memory)


class OpenedSlots:
    """The slots of all workers that the main process has opened."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], Tensor] = {}

    def view(self, pixels: InSlot) -> NDArray[np.uint8]:
        """The pixels in a slot, until the worker reuses it."""
        key = pixels.worker, pixels.slot
        if pixels.memory is not None:
            self._memory[key] = pixels.memory
        view: NDArray[np.uint8] = self._memory[key][: math.prod(pixels.shape)].view(pixels.shape).numpy()
        return view
