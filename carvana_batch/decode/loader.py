"""Photos in the order of their paths, decoded by worker processes."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from carvana_batch.decode.photo import read_image
from carvana_batch.decode.shared_memory import PREFETCHED_PHOTOS, _InSlot, _open, _SharedMemory
from carvana_batch.decode.workers import _Watch, begin_worker, workers_starting
from carvana_batch.errors import ImageError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.options import DEFAULT_DECODE_TIMEOUT
from carvana_batch.text import shown
from carvana_batch.values import Failure, ImageRef, Photo

FULL_SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: going on with fewer photos in flight, and those that do not fit go"
    " through a pipe, which is slower; give a container more of it (--shm-size), or use fewer --workers"
)

NO_MEMORY = "does not fit into the memory that is free"


@dataclass(frozen=True)
class DecodeOptions:
    """``pixel_limit``: most pixels of a photo; ``apply_exif``: turn photos as their EXIF orientation says;
    ``timeout``: seconds after which a worker is given up that does not get done with a photo."""

    pixel_limit: int
    apply_exif: bool
    timeout: float = DEFAULT_DECODE_TIMEOUT


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


def _keep(decoded: Any) -> Any:
    """Instead of torch's own function, which would make a tensor of the array again."""
    return decoded


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
        return Failure.of(self.photos[position], "decode", reason)

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
            return Failure.of(ref, "decode", pixels)
        if isinstance(pixels, _InSlot):
            try:
                pixels = _open(pixels, slots).numpy().copy()  # the worker will write another photo there
            except MemoryError:
                return Failure.of(ref, "decode", NO_MEMORY)
        elif self.workers and not self.warnings:
            self.warnings.append(FULL_SHARED_MEMORY)
        return Photo(ref, pixels, decoded.file_bytes, decoded.file_time)
