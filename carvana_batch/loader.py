"""Photos in the order of their paths, decoded by worker processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from carvana_batch.images import read_image
from carvana_batch.records import Failure, ImageError, ImageRef, Photo

PREFETCHED_PHOTOS = 2
"""Decoded photos that each worker keeps ready."""


@dataclass(frozen=True)
class DecodeOptions:
    """``pixel_limit``: most pixels of a photo; ``apply_exif``: turn photos as their EXIF orientation says."""

    pixel_limit: int
    apply_exif: bool


class PathTable:
    """Keys and paths as two blobs of bytes, so that 100,000 of them cost a worker next to nothing.

    A list of Python objects would be copied page by page into each forked worker as reference counts
    change, and pickled whole for each spawned one.
    """

    def __init__(self, refs: Sequence[ImageRef]) -> None:
        encoded = [os.fsencode(text) for ref in refs for text in (ref.key, str(ref.path))]
        self._ends = np.cumsum([0] + [len(part) for part in encoded], dtype=np.int64)
        self._blob = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return (len(self._ends) - 1) // 2

    def __getitem__(self, index: int) -> ImageRef:
        return ImageRef(self._text(2 * index), Path(self._text(2 * index + 1)))

    def _text(self, part: int) -> str:
        return os.fsdecode(self._blob[self._ends[part] : self._ends[part + 1]].tobytes())


class _Decoding(Dataset[tuple[int, Tensor | str, float]]):
    """Index to (index, pixels or the reason why there are none, seconds that it took)."""

    def __init__(self, table: PathTable, options: DecodeOptions) -> None:
        self.table, self.options = table, options

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str, float]:
        start = time.perf_counter()
        path = self.table[index].path
        try:
            pixels: Tensor | str = torch.from_numpy(
                read_image(path, pixel_limit=self.options.pixel_limit, apply_exif=self.options.apply_exif)
            )
        except ImageError as error:
            pixels = str(error)
        return index, pixels, time.perf_counter() - start


def _calm_worker(_worker: int) -> None:
    """Ctrl-C is for the main process, which then ends its workers in order."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


class PhotoLoader:
    """Iterates over ``Photo | Failure`` in the order of ``refs``, whatever the number of workers.

    Attributes:
        seconds: time that decoding took, added up over the workers.
    """

    def __init__(self, refs: Sequence[ImageRef], options: DecodeOptions, workers: int) -> None:
        self.table = PathTable(refs)
        self.seconds = 0.0
        self._loader = DataLoader(
            _Decoding(self.table, options),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED_PHOTOS if workers else None,
            worker_init_fn=_calm_worker,
        )

    def __iter__(self) -> Iterator[Photo | Failure]:
        for index, pixels, seconds in self._loader:
            self.seconds += seconds
            ref = self.table[index]
            if isinstance(pixels, str):
                yield Failure(ref, "decode", pixels)
            else:
                yield Photo(ref, pixels.numpy())
