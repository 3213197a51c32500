"""Photos in the order of their paths, decoded by worker processes."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from carvana_batch.devices import keep_freed_memory
from carvana_batch.images import read_image
from carvana_batch.inputs import shown
from carvana_batch.options import DEFAULT_DECODE_TIMEOUT
from carvana_batch.photo_list import PhotoList
from carvana_batch.records import Failure, ImageError, ImageRef, Photo

PREFETCHED_PHOTOS = 2
"""Decoded photos that each worker keeps ready."""

SLOTS = PREFETCHED_PHOTOS + 1
"""Places in shared memory of each worker: the main process copies one photo while the others wait."""

GLANCE = 0.5
"""Seconds between two looks at the workers."""

FULL_SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: going on with fewer photos in flight, and those that do not fit go"
    " through a pipe, which is slower; give a container more of it (--shm-size), or use fewer --workers"
)

NO_MEMORY = "does not fit into the memory that is free"

FOR_MAIN_PROCESS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else {signal.SIGINT}
"""Signals that a terminal or a batch system may send to all processes, but that are for the main one."""


@dataclass(frozen=True)
class DecodeOptions:
    """``pixel_limit``: most pixels of a photo; ``apply_exif``: turn photos as their EXIF orientation says;
    ``timeout``: seconds after which a worker is given up that does not get done with a photo."""

    pixel_limit: int
    apply_exif: bool
    timeout: float = DEFAULT_DECODE_TIMEOUT


class _InSlot(NamedTuple):
    """Pixels of this shape lie at the start of a slot in shared memory. ``memory`` is sent once, with the
    first ones in there, because the main process needs as long to open it as to copy a photo."""

    worker: int
    slot: int
    shape: tuple[int, ...]
    memory: Tensor | None


class _Decoded(NamedTuple):
    """What a worker sends: the pixels (H, W, 3) uint8 or the reason why there are none, the size and the time
    of the file, and the seconds that it took."""

    place: int
    pixels: _InSlot | NDArray[np.uint8] | str
    file_bytes: int
    file_time: int
    seconds: float


class _Decoding(Dataset[_Decoded]):
    def __init__(self, photos: PhotoList, options: DecodeOptions) -> None:
        self.photos, self.options = photos, options
        self._memory = _SharedMemory()

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> _Decoded:
        start = time.perf_counter()
        path = self.photos[index].path
        size = changed = 0
        try:
            # Before it is read: a photo that changes meanwhile is then masked again by the next run.
            status = path.stat()
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:  # what is wrong with the file, read_image says better
            pass
        limit, apply_exif = self.options.pixel_limit, self.options.apply_exif
        pixels: _InSlot | NDArray[np.uint8] | str
        try:
            pixels = self._memory.put(
                read_image(path, pixel_limit=limit, apply_exif=apply_exif, find_room=self._memory.find_room)
            )
        except ImageError as error:
            pixels = str(error).removeprefix(f"{shown(path)} ")  # the report names the photo itself
        except MemoryError:
            pixels = NO_MEMORY
        return _Decoded(index, pixels, size, changed, time.perf_counter() - start)


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


def _keep(decoded: Any) -> Any:
    """Instead of torch's own function, which would make a tensor of the array again."""
    return decoded


def begin_worker(_worker: int) -> None:
    """In a worker: freed memory is given back, as photos may differ in size; and SIGTERM, although it is
    blocked, means to end if it comes from the main process."""
    keep_freed_memory(False)

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    if signal.SIGTERM in FOR_MAIN_PROCESS:
        threading.Thread(target=wait, daemon=True).start()


class _Watch(threading.Thread):
    """Kills all workers as soon as one has died, or does not get done with a photo in time.

    The main process would wait for ever otherwise: torch also asks a worker for the memory of photos that it
    has decoded before, and reads from a pipe what a dead one has not written to its end.

    Attributes:
        deadline: when the photo that the main process waits for has to be there; None while it does not wait.
        hung: whether the workers were killed because that had passed.
    """

    def __init__(self, workers: Sequence[multiprocessing.Process]) -> None:
        super().__init__(daemon=True)
        self.workers = workers
        self.deadline: float | None = None
        self.hung = False
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(GLANCE):
            self.hung = self.deadline is not None and time.monotonic() > self.deadline
            if self.hung or any(worker.exitcode for worker in self.workers):
                for worker in self.workers:
                    worker.kill()
                return


@contextlib.contextmanager
def workers_starting() -> Iterator[None]:
    """Keep signals for the main process from the workers that start meanwhile, which inherit that they are
    blocked; and torch from raising errors at any line.

    torch's handler of SIGCHLD would raise in the midst of whatever the main thread does when a worker dies.
    Without it the death shows when the next photo does not come.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_MAIN_PROCESS)
    try:
        yield
    finally:
        if in_main_thread:  # Python sets handlers nowhere else, and so does torch
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def memory_shared_with_workers() -> Iterator[None]:
    """A with block, around the life of workers, in which the garbage collector leaves alone what was there
    before it, in all of this process.

    The collector writes to each object that it looks at, and a forked worker would get a copy of its own of
    nearly all that it shares with the main process, some 40 MB. Does nothing where the program, or a block
    around this one, has seen to that.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class PhotoLoader:
    """Iterates over ``Photo | Failure`` in the order of ``refs``, whatever the number of workers.

    A worker that dies, of a file that crashes the decoder or of a lack of memory, or that hangs, costs at
    most one photo. Without workers, photos are decoded in this process, and take it along.

    Attributes:
        seconds: time that decoding took, added up over the workers.
        warnings: one line for each thing that had to give way.
    """

    def __init__(self, refs: Sequence[ImageRef], options: DecodeOptions, workers: int) -> None:
        self.photos = PhotoList.of(refs)
        self.workers = workers
        self.seconds = 0.0
        self.warnings: list[str] = []
        self._timeout, self._hung = options.timeout, False
        self._prefetched = PREFETCHED_PHOTOS
        self._dataset = _Decoding(self.photos, options)

    def __iter__(self) -> Generator[Photo | Failure]:
        position = 0
        while position < len(self.photos):
            indexes = range(position, len(self.photos))
            with contextlib.closing(self._decode(indexes, self.workers)) as photos:
                for photo in photos:
                    position += 1
                    yield photo
                    if self.warnings and self._prefetched > 1:  # shared memory is full: with fewer in flight
                        self._prefetched = 1
                        break
                else:
                    if position < len(self.photos):  # a worker died or hangs, perhaps of this photo
                        yield self._decode_alone(position)
                        position += 1

    def _decode_alone(self, position: int) -> Photo | Failure:
        """Decode one photo in a worker of its own."""
        for photo in self._decode(range(position, position + 1), 1):
            return photo
        reason = "the process that decoded it died: the file crashes the decoder, or memory is short"
        if self._hung:
            reason = f"was not decoded within {self._timeout:g} seconds (--decode-timeout)"
        return Failure(self.photos[position], "decode", reason)

    def _decode(self, indexes: range, workers: int) -> Generator[Photo | Failure]:
        """Decode in the order of the indexes; ends early if a worker dies or hangs."""
        with warnings.catch_warnings():
            # That there are more workers than cores is for the user to decide.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                self._dataset,
                batch_size=None,
                sampler=indexes,
                num_workers=workers,
                prefetch_factor=self._prefetched if workers else None,
                collate_fn=_keep,
                worker_init_fn=begin_worker,
            )
            with workers_starting():
                photos = iter(loader)
        slots: dict[tuple[int, int], Tensor] = {}
        try:
            for decoded in self._wait_for_each(photos) if workers else photos:
                yield self._result(decoded, slots)
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
        except (OSError, EOFError):  # it died while it sent a photo
            pass
        finally:
            if workers:  # not left to the garbage collector: it comes late, and may break the queues first
                photos._shutdown_workers()  # type: ignore[attr-defined]

    def _wait_for_each(self, photos: Any) -> Iterator[_Decoded]:
        """As they come from the workers."""
        # Only workers write to this pipe: when all are dead, reading from it ends.
        photos._worker_result_queue._writer.close()
        watch = _Watch(photos._workers)
        watch.start()
        try:
            while True:
                watch.deadline = time.monotonic() + self._timeout
                try:
                    decoded = next(photos)
                except StopIteration:
                    return
                watch.deadline = None
                yield decoded
        finally:
            watch.ended.set()
            watch.join()
            self._hung = watch.hung

    def _result(self, decoded: _Decoded, slots: dict[tuple[int, int], Tensor]) -> Photo | Failure:
        """What a worker made of a photo; ``slots`` are those that it and the others sent before."""
        self.seconds += decoded.seconds
        ref = self.photos[decoded.place]
        pixels = decoded.pixels
        if isinstance(pixels, str):
            return Failure(ref, "decode", pixels)
        if isinstance(pixels, _InSlot):
            try:
                pixels = _open(pixels, slots).numpy().copy()  # the worker will write another photo there
            except MemoryError:
                return Failure(ref, "decode", NO_MEMORY)
        elif self.workers and not self.warnings:
            self.warnings.append(FULL_SHARED_MEMORY)
        return Photo(ref, pixels, decoded.file_bytes, decoded.file_time)
