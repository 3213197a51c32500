"""Decode photos in worker processes, in a given order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from carvana_batch.decode.image_file import renew_warnings_lock
from carvana_batch.decode.photo import DecodedImage, decode_image
from carvana_batch.decode.shared_memory import (
    PREFETCHED_PHOTOS,
    InPipe,
    InSlot,
    OpenedSlots,
    SharedMemory,
)
from carvana_batch.decode.worker_pool import WorkerPool, make_do, socket_folder
from carvana_batch.decode.workers import WORKER_POLL_SECONDS, DecodingThread, WorkerWatch, is_lost_worker
from carvana_batch.decode.workers_error import WorkersError
from carvana_batch.errors import OUT_OF_FILES, TOO_MANY_FILES, CarvanaBatchError, DamageError, ImageError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.notes import Note
from carvana_batch.options import DEFAULT_DECODE_TIMEOUT
from carvana_batch.orientation import UPRIGHT
from carvana_batch.text import shown
from carvana_batch.values import Failure, ImageRef, Photo

ACCEPT_DAMAGE = "; --damaged accept masks what can be decoded"

MAX_READS = 3
"""How often a photo is read if it changes meanwhile, as when it is still being copied into the folder."""

CHANGED = "changed while it was read; run the same command again once it is complete"

NO_MEMORY = "does not fit into the memory that is free"

MOST_LOST_AT_FIRST = 5
"""Photos, from the first one on, that may be lost with their workers before the run stops."""


@dataclass(frozen=True)
class DecodeOptions:
    """How photos are decoded.

    Attributes:
        pixel_limit: most pixels of a photo.
        apply_exif: turn photos upright by their EXIF orientation, so that their masks are upright, too.
        timeout: kill a worker that spends longer than this on one photo, in seconds.
        accept_damage: decode damaged photos as far as possible, and note it, instead of refusing them.
    """

    pixel_limit: int
    apply_exif: bool
    timeout: float = DEFAULT_DECODE_TIMEOUT
    accept_damage: bool = False


class _Unable(NamedTuple):
    """Why a process cannot decode any photo."""

    reason: str


class _Decoded(NamedTuple):
    """What a worker sends for a photo.

    Attributes:
        photo_index: of the photo.
        result: its pixels (H, W, 3) uint8, in shared memory or not, or why there are none: because of the
            photo, or whatever the photo is.
        file_bytes: size of the file before it was read.
        file_time: time of its last change before it was read, in ns.
        seconds: time that decoding took.
        orientation: the EXIF orientation of the pixels, 1 to 8.
        notes: what the user should know about the photo.
        damage: why the photo is damaged; "" if it is not, or is refused.
    """

    photo_index: int
    result: InSlot | InPipe | NDArray[np.uint8] | Failure | _Unable
    file_bytes: int
    file_time: int
    seconds: float
    orientation: int
    notes: tuple[Note, ...]
    damage: str


class _Decoding(Dataset[_Decoded]):
    """Decodes photos; torch runs it in the workers, each of which has its own copy of ``memory``."""

    def __init__(self, photos: PhotoList, options: DecodeOptions, memory: SharedMemory) -> None:
        self.photos, self.options, self.memory = photos, options, memory

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> _Decoded:
        start = time.perf_counter()
        ref = self.photos[index]
        result: InSlot | InPipe | NDArray[np.uint8] | Failure | _Unable
        result = Failure.of(ref, "decode", CHANGED)
        orientation = UPRIGHT
        notes: tuple[Note, ...] = ()
        damage = ""
        for _ in range(MAX_READS):
            # Changes between two writes are not seen here; but then the file's time is another in the next
            # run, and it masks the photo again.
            state = _file_state(ref.path)
            read = self._read(ref)
            if _file_state(ref.path) != state:
                del read  # rather than two photos in memory
                continue
            if isinstance(read, (Failure, _Unable)):
                result = read
            else:
                try:
                    result = self.memory.put(read.pixels)
                    orientation, notes, damage = read.orientation, read.notes, read.damage
                except MemoryError:
                    result = Failure.of(ref, "decode", NO_MEMORY)
            break
        size, changed, _ = state
        seconds = time.perf_counter() - start
        return _Decoded(index, result, size, changed, seconds, orientation, notes, damage)

    def _read(self, ref: ImageRef) -> DecodedImage | Failure | _Unable:
        """Decode a photo, perhaps into shared memory, where it is not sent before ``memory.put``."""
        try:
            return decode_image(
                ref.path,
                pixel_limit=self.options.pixel_limit,
                apply_exif=self.options.apply_exif,
                find_room=self.memory.find_room,
                accept_damage=self.options.accept_damage,
            )
        except ImageError as error:
            reason = str(error).removeprefix(f"{shown(ref.path)} ")  # the report names the photo itself
            if isinstance(error, DamageError):
                reason += ACCEPT_DAMAGE
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in OUT_OF_FILES:
                return _Unable(TOO_MANY_FILES)
            return Failure.of(ref, "decode", reason)
        except MemoryError:
            return Failure.of(ref, "decode", NO_MEMORY)


def _file_state(path: Path) -> tuple[int, int, int]:
    """Size, time of the last change in ns, and inode of a file; zeros if there is none."""
    try:
        status = path.stat()
    except OSError:  # decode_image reports it with a better message
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ino


class PhotoLoader:
    """Iterates over ``Photo | Failure`` in the order of ``refs``, with any number of workers.

    A worker that hangs or dies, because a file crashes the decoder or memory runs out, costs at most one
    photo. With 0 workers, photos are decoded in this process: a crash ends it, but a decoder that hangs costs
    one photo as well, although it goes on in the background.

    What keeps workers from starting or sending is not blamed on the photos: pixels then go through a pipe,
    or a single worker decodes, or this process does.

    Args:
        refs: the photos.
        options: how they are decoded.
        workers: number of processes that decode.
        memory: where each worker puts its photos; it gets a copy.
        poll_seconds: how often to check whether all workers are alive.
        arrive: called in this process with the index of a photo before it is decoded; it waits until the
            photo is on this machine. None if all are.

    Attributes:
        seconds: time that decoding took, summed over the workers.
        warnings: one line for each restriction that was necessary.

    Raises:
        CarvanaBatchError: while iterating, if no photo at all can be decoded.
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        options: DecodeOptions,
        workers: int,
        *,
        memory: SharedMemory | None = None,
        poll_seconds: float = WORKER_POLL_SECONDS,
        arrive: Callable[[int], object] | None = None,
    ) -> None:
        self.photos = PhotoList.of(refs)
        self.workers = workers
        self.seconds = 0.0
        self._fewer_workers = self._through_pipe = ""
        self._timeout, self._hung = options.timeout, False
        self._answered, self._lost = False, 0
        self._prefetched = PREFETCHED_PHOTOS
        self._poll_seconds, self._arrive = poll_seconds, arrive
        self._watch: WorkerWatch | None = None
        self._dataset = _Decoding(self.photos, options, memory or SharedMemory())

    @property
    def warnings(self) -> list[str]:
        return [line for line in (self._fewer_workers, self._through_pipe) if line]

    def __iter__(self) -> Generator[Photo | Failure]:
        position = 0
        with socket_folder() if self.workers else contextlib.nullcontext() as sockets:
            while position < len(self.photos):
                try:
                    with contextlib.closing(self._decode_from(position, sockets)) as photos:
                        for photo in photos:
                            position += 1
                            yield photo
                except WorkersError as error:
                    self._make_do(error)

    def _decode_from(self, position: int, sockets: Path | None) -> Generator[Photo | Failure]:
        """Decode from ``position`` on until fewer photos have to be in flight, or a worker is lost."""
        indexes = range(position, len(self.photos))
        with contextlib.closing(self._decode(indexes, self.workers, sockets)) as photos:
            for photo in photos:
                position += 1
                yield photo
                if self._through_pipe and self._prefetched > 1:  # shared memory is full
                    self._prefetched = 1
                    return
        if position < len(self.photos):  # a worker died or hung, perhaps because of this photo
            yield self._decode_alone(position, sockets)

    def _make_do(self, error: WorkersError) -> None:
        """Go on without what is missing; raise the error if that is impossible."""
        if not self.workers:
            raise CarvanaBatchError(f"Photos cannot be decoded: {error}.") from error
        fewer = make_do(error, self._dataset.memory, self.workers)
        if fewer < self.workers:
            how = "by a single process" if fewer else "in the main process, which a bad file may crash"
            self._fewer_workers = f"{error}; photos were decoded {how}"
        self.workers = fewer

    def _decode_alone(self, position: int, sockets: Path | None) -> Photo | Failure:
        """Decode one photo in a separate worker, so that only this photo can be lost."""
        for photo in self._decode(range(position, position + 1), 1, sockets):
            return photo
        return self._lose(position)

    def _lose(self, position: int) -> Failure:
        """The failure of a photo over which a worker or thread died or hung.

        Raises:
            CarvanaBatchError: all photos so far failed in this way.
        """
        reason = "the process that decoded it died: the file crashes the decoder, or memory is short"
        if self._hung:
            reason = f"was not decoded within {self._timeout:g} seconds (--decode-timeout)"
        self._lost += 1
        if self._lost == MOST_LOST_AT_FIRST and not self._answered:
            advice = " Use --workers 0 to see what happens in the main process." if self.workers else ""
            raise CarvanaBatchError(
                f"None of the first {self._lost} photos was decoded, so this system is to blame rather than"
                f" they; of the last one: {reason}.{advice}"
            )
        return Failure.of(self.photos[position], "decode", reason)

    def _decode(self, indexes: range, workers: int, sockets: Path | None) -> Generator[Photo | Failure]:
        """Decode in the order of the indexes; end early if a worker dies or hangs.

        Raises:
            WorkersError: no photo can be decoded in this way, whatever it is.
        """
        if not workers:
            yield from self._decode_here(indexes)
            return
        arriving = indexes if self._arrive is None else self._wait_for_arrival(indexes, self._arrive)
        pool = WorkerPool(self._dataset, arriving, workers, self._prefetched, sockets)
        try:
            yield from self._wait_for_each(pool)
        except (RuntimeError, OSError, EOFError) as error:
            if not is_lost_worker(error):
                raise
        finally:
            pool.close()

    def _decode_here(self, indexes: range) -> Iterator[Photo | Failure]:
        """Decode in a thread of this process, so that a photo that takes too long has failed, too."""
        thread = None
        try:
            for index in indexes:
                if self._arrive is not None:
                    self._arrive(index)
                if thread is None:
                    thread = DecodingThread.start_if_possible(self._dataset.__getitem__)
                try:
                    decoded = self._dataset[index] if thread is None else thread.call(index, self._timeout)
                except TimeoutError:
                    thread, self._hung = None, True
                    renew_warnings_lock()
                    yield self._lose(index)
                else:
                    yield self._result(decoded, OpenedSlots())
        finally:
            if thread is not None:
                thread.end()

    def _wait_for_arrival(self, indexes: range, arrive: Callable[[int], object]) -> Iterator[int]:
        """The indexes, each once its photo is there; waiting for it does not count as decoding."""
        for index in indexes:
            watch = self._watch
            if watch is not None:
                watch.deadline = None
            arrive(index)
            if watch is not None:
                watch.deadline = time.monotonic() + self._timeout
            yield index

    def _wait_for_each(self, pool: WorkerPool) -> Iterator[Photo | Failure]:
        """Yield the results of the workers; a photo that takes too long ends them all."""
        slots = OpenedSlots()
        watch = WorkerWatch(pool.workers, self._poll_seconds)
        watch.start()
        self._watch = watch
        try:
            while True:
                watch.deadline = time.monotonic() + self._timeout
                try:
                    result = self._result(next(pool), slots)
                except StopIteration:
                    return
                watch.deadline = None
                yield result
        finally:
            self._watch = None
            watch.ended.set()
            watch.join()
            self._hung = watch.hung

    def _result(self, decoded: _Decoded, slots: OpenedSlots) -> Photo | Failure:
        """Return the photo or the failure that a worker has sent.

        Raises:
            WorkersError: it cannot decode any photo, or its memory cannot be opened.
        """
        self._answered = True
        self.seconds += decoded.seconds
        ref = self.photos[decoded.photo_index]
        pixels = decoded.result
        if isinstance(pixels, Failure):
            return pixels
        if isinstance(pixels, _Unable):
            raise WorkersError(pixels.reason)
        if isinstance(pixels, InSlot):
            try:
                pixels = slots.view(pixels).copy()  # the worker will reuse the slot
            except MemoryError:
                return Failure.of(ref, "decode", NO_MEMORY)
        elif isinstance(pixels, InPipe):
            self._through_pipe = self._through_pipe or pixels.problem
            pixels = pixels.pixels
        return Photo(
            ref,
            pixels,
            decoded.orientation,
            decoded.file_bytes,
            decoded.file_time,
            decoded.notes,
            decoded.damage,
        )
