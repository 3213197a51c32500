"""Decode photos in worker processes, in a given order."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from carvana_batch.decode.photo import DecodedImage, decode_image
from carvana_batch.decode.shared_memory import PREFETCHED_PHOTOS, InSlot, OpenedSlots, SharedMemory
from carvana_batch.decode.workers import (
    WORKER_POLL_SECONDS,
    WorkerWatch,
    begin_worker,
    is_lost_worker,
    workers_starting,
)
from carvana_batch.errors import DamageError, ImageError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.notes import Note
from carvana_batch.options import DEFAULT_DECODE_TIMEOUT
from carvana_batch.orientation import UPRIGHT
from carvana_batch.text import shown
from carvana_batch.values import Failure, ImageRef, Photo

FULL_SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: going on with fewer photos in flight, and those that do not fit go"
    " through a pipe, which is slower; give a container more of it (--shm-size), or use fewer --workers"
)

ACCEPT_DAMAGE = "; --damaged accept masks what can be decoded"

MAX_READS = 3
"""How often a photo is read if it changes meanwhile, as when it is still being copied into the folder."""

CHANGED = "changed while it was read; run the same command again once it is complete"

NO_MEMORY = "does not fit into the memory that is free"


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


class _Decoded(NamedTuple):
    """What a worker sends for a photo.

    Attributes:
        photo_index: of the photo.
        result: its pixels (H, W, 3) uint8, in shared memory or not, or why there are none.
        file_bytes: size of the file before it was read.
        file_time: time of its last change before it was read, in ns.
        seconds: time that decoding took.
        orientation: the EXIF orientation of the pixels, 1 to 8.
        notes: what the user should know about the photo.
        damage: why the photo is damaged; "" if it is not, or is refused.
    """

    photo_index: int
    result: InSlot | NDArray[np.uint8] | Failure
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
        result: InSlot | NDArray[np.uint8] | Failure = Failure.of(ref, "decode", CHANGED)
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
            if isinstance(read, Failure):
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

    def _read(self, ref: ImageRef) -> DecodedImage | Failure:
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


def _unchanged(decoded: Any) -> Any:
    """Replaces torch's own collate function, which would convert the array to a tensor."""
    return decoded


class PhotoLoader:
    """Iterates over ``Photo | Failure`` in the order of ``refs``, with any number of workers.

    A worker that hangs or dies, because a file crashes the decoder or memory runs out, costs at most one
    photo. With 0 workers, photos are decoded in this process, and a crash ends it.

    Args:
        refs: the photos.
        options: how they are decoded.
        workers: number of processes that decode.
        memory: where each worker puts its photos; it gets a copy.
        poll_seconds: how often to check whether all workers are alive.

    Attributes:
        seconds: time that decoding took, summed over the workers.
        warnings: one line for each restriction that was necessary.
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        options: DecodeOptions,
        workers: int,
        *,
        memory: SharedMemory | None = None,
        poll_seconds: float = WORKER_POLL_SECONDS,
    ) -> None:
        self.photos = PhotoList.of(refs)
        self.workers = workers
        self.seconds = 0.0
        self.warnings: list[str] = []
        self._timeout, self._hung = options.timeout, False
        self._prefetched = PREFETCHED_PHOTOS
        self._poll_seconds = poll_seconds
        self._dataset = _Decoding(self.photos, options, memory or SharedMemory())

    def __iter__(self) -> Generator[Photo | Failure]:
        position = 0
        while position < len(self.photos):
            indexes = range(position, len(self.photos))
            with contextlib.closing(self._decode(indexes, self.workers)) as photos:
                for photo in photos:
                    position += 1
                    yield photo
                    if self.warnings and self._prefetched > 1:  # shared memory is full: fewer in flight
                        self._prefetched = 1
                        break
                else:
                    if position < len(self.photos):  # a worker died or hung, perhaps because of this photo
                        yield self._decode_alone(position)
                        position += 1

    def _decode_alone(self, position: int) -> Photo | Failure:
        """Decode one photo in a separate worker, so that only this photo can be lost."""
        for photo in self._decode(range(position, position + 1), 1):
            return photo
        reason = "the process that decoded it died: the file crashes the decoder, or memory is short"
        if self._hung:
            reason = f"was not decoded within {self._timeout:g} seconds (--decode-timeout)"
        return Failure.of(self.photos[position], "decode", reason)

    def _decode(self, indexes: range, workers: int) -> Generator[Photo | Failure]:
        """Decode in the order of the indexes; end early if a worker dies or hangs."""
        with warnings.catch_warnings():
            # Users may choose more workers than there are cores.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                self._dataset,
                batch_size=None,
                sampler=indexes,
                num_workers=workers,
                prefetch_factor=self._prefetched if workers else None,
                collate_fn=_unchanged,
                worker_init_fn=begin_worker,
            )
            with workers_starting():
                photos = iter(loader)
        slots = OpenedSlots()
        try:
            for decoded in self._wait_for_each(photos) if workers else photos:
                yield self._result(decoded, slots)
        except (RuntimeError, OSError, EOFError) as error:
            if not is_lost_worker(error):
                raise
        finally:
            if workers:  # garbage collection would do it later, perhaps after the queues are gone
                photos._shutdown_workers()  # type: ignore[attr-defined]

    def _wait_for_each(self, photos: Any) -> Iterator[_Decoded]:
        """Yield the results of the workers; a photo that takes too long ends them all."""
        # Close our end of the pipe that only workers write to: reading then ends when all of them are dead.
        photos._worker_result_queue._writer.close()
        watch = WorkerWatch(photos._workers, self._poll_seconds)
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

    def _result(self, decoded: _Decoded, slots: OpenedSlots) -> Photo | Failure:
        """Return the photo or the failure that a worker has sent."""
        self.seconds += decoded.seconds
        ref = self.photos[decoded.photo_index]
        pixels = decoded.result
        if isinstance(pixels, Failure):
            return pixels
        if isinstance(pixels, InSlot):
            try:
                pixels = slots.view(pixels).copy()  # the worker will reuse the slot
            except MemoryError:
                return Failure.of(ref, "decode", NO_MEMORY)
        elif self.workers and not self.warnings:
            self.warnings.append(FULL_SHARED_MEMORY)
        return Photo(
            ref,
            pixels,
            decoded.orientation,
            decoded.file_bytes,
            decoded.file_time,
            decoded.notes,
            decoded.damage,
        )
