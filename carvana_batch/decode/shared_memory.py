"""Shared memory through which workers pass decoded photos to the main process."""

from __future__ import annotations

import math
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from carvana_batch.decode.workers_error import SharingError, describe_sharing
from carvana_batch.errors import OUT_OF_FILES, is_out_of_threads

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
        memory: what :func:`_share` returns for the whole slot, uint8. It is only sent with the first photo in
            it, because opening it takes the main process as long as copying a photo.
    """

    worker: int
    slot: int
    shape: tuple[int, ...]
    memory: bytes | None


class InPipe(NamedTuple):
    """The pixels of a photo that could not be put into shared memory.

    Attributes:
        pixels: (H, W, 3) uint8.
        problem: why not, for the user.
    """

    pixels: NDArray[np.uint8]
    problem: str


class Greeting(NamedTuple):
    """What a worker sends before its first photo, as a trial.

    Attributes:
        memory: what :func:`_share` returns for one byte, None if nothing can be shared; photos then go
            through the pipe.
    """

    memory: bytes | None

    def open(self) -> None:
        """Open the memory.

        Raises:
            SharingError: it cannot be opened.
            EOFError: the worker has died.
        """
        if self.memory is not None:
            try:
                pickle.loads(self.memory)  # noqa: S301 (a worker is trusted)
            except (OSError, RuntimeError) as error:
                raise SharingError(describe_sharing(error)) from error


class SharedMemory:
    """The slots of a worker, used round-robin.

    Slots are reused because allocating new shared memory takes longer than decoding a photo into it. A slot
    is always free when it comes up again: the main process only requests another photo after it has copied
    the previous one.

    Attributes:
        problem: why nothing can be shared, and photos go through the pipe; empty if this is not known.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._slots = [torch.empty(0, dtype=torch.uint8)] * SLOTS
        self._next = 0

    def greet(self) -> Greeting:
        """Find out whether memory can be shared, which takes a socket and a thread besides memory.

        Raises:
            RuntimeError: no thread can be started; see :func:`is_out_of_threads`.
        """
        if not self.problem:
            try:
                return Greeting(_share(torch.zeros(1, dtype=torch.uint8)))
            except (OSError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and is_out_of_threads(error):
                    raise
                self.problem = describe_sharing(error)
        return Greeting(None)

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

    def put(self, pixels: NDArray[np.uint8]) -> InSlot | InPipe | NDArray[np.uint8]:
        """Copy pixels to the next slot, unless they were decoded into it; enlarge it if necessary.

        Args:
            pixels: uint8 of any shape.

        Returns:
            Where the pixels are; or the pixels themselves outside of workers, or if they cannot be shared,
            for example because /dev/shm is full. They then go through a pipe, which is slower. (torch would
            lose a tensor for which there is no room, and the main process would wait for it forever.)
        """
        worker = get_worker_info()
        if worker is None:
            return pixels
        if self.problem:
            return InPipe(pixels, self.problem)
        room = self.find_room(pixels.size)
        memory = None
        if room is None:
            slot = torch.empty(pixels.size, dtype=torch.uint8)
            try:
                memory = _share(slot)
            except (OSError, RuntimeError) as error:
                return InPipe(pixels, describe_sharing(error))
            self._slots[self._next] = slot
            room = slot.numpy()
        if not np.may_share_memory(room, pixels):
            room[: pixels.size] = pixels.ravel()
        number, self._next = self._next, (self._next + 1) % SLOTS
        return InSlot(worker.id, number, pixels.shape, memory)


def _share(memory: Tensor) -> bytes:
    """Move a tensor to shared memory, and return a pickle that opens it once, in the main process.

    multiprocessing would pickle it in a thread, which prints errors, sends nothing, and goes on.

    Raises:
        OSError: no socket can be made to send it through.
        RuntimeError: there is no room, or no thread that can send it.
    """
    return bytes(ForkingPickler.dumps(memory.share_memory_()))


class OpenedSlots:
    """The slots of all workers that the main process has opened so far."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], Tensor] = {}

    def view(self, pixels: InSlot) -> NDArray[np.uint8]:
        """Return the pixels in a slot; they are valid until the worker reuses it.

        Raises:
            SharingError: this process may not open another file.
            OSError: the worker has died. EOFError: the same.
        """
        key = pixels.worker, pixels.slot
        if pixels.memory is not None:
            try:
                self._memory[key] = pickle.loads(pixels.memory)  # noqa: S301 (a worker is trusted)
            except OSError as error:
                if error.errno in OUT_OF_FILES:
                    raise SharingError(describe_sharing(error)) from error
                raise
        view: NDArray[np.uint8] = self._memory[key][: math.prod(pixels.shape)].view(pixels.shape).numpy()
        return view
