"""A folder of masks in a bucket, for commands that read each mask about once and in order."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from carvana_batch.cloud.bucket_out import BucketOut
from carvana_batch.cloud.mirror import Mirror
from carvana_batch.cloud.places import SCRATCH_PREFIX
from carvana_batch.cloud.stand_ins import named
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.errors import UsageError
from carvana_batch.inputs.masks import list_masks
from carvana_batch.output.paths import STATE_FOLDER, OutPaths
from carvana_batch.temporary_folder import temporary_folder

THREADS = 16

AHEAD = 32
"""Masks that are fetched before anyone asks for them."""


class ReadAhead:
    """Fetches files when they are read, and those that follow them; a context manager.

    Args:
        paths: the files, in the order in which they will be read, more or less.
        fetch: fetches a file.
        empty: removes its content again.
        ahead: most files that are fetched and not read yet.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        fetch: Callable[[Path], object],
        empty: Callable[[Path], object],
        ahead: int = AHEAD,
    ) -> None:
        self._paths, self._fetch, self._empty, self._ahead = paths, fetch, empty, ahead
        self._indexes = {path: index for index, path in enumerate(paths)}
        self._lock = threading.Lock()
        self._futures: dict[int, Future[object]] = {}
        self._readers: Counter[int] = Counter()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(THREADS, "fetch")
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the threads."""
        self._threads.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """A with block in which a file is there; several threads may be in one at once.

        Raises:
            CarvanaBatchError: it cannot be fetched.
        """
        index = self._indexes.get(path)
        if index is None:  # none of a mask, such as run.json
            yield
            return
        with self._lock:
            in_order = index == 0 or index in self._futures or index - 1 in self._futures
            self._start(index)
            self._readers[index] += 1
            for following in range(index + 1, min(index + 1 + self._ahead, len(self._paths))):
                if in_order and len(self._futures) - len(self._readers) < self._ahead:
                    self._start(following)
            future = self._futures[index]
        try:
            future.result()
            yield
        finally:
            with self._lock:
                self._readers[index] -= 1
                if not self._readers[index]:
                    del self._readers[index], self._futures[index]
                    self._empty(path)

    def _start(self, index: int) -> None:
        if index not in self._futures:
            self._futures[index] = self._threads.submit(self._fetch, self._paths[index])


@dataclass(frozen=True)
class Masks:
    """A folder of masks as a command sees it.

    Attributes:
        folder: a local folder; or a file of run-length rows.
        reading: gives a with block in which one of its files is there.
        in_words: puts the URL in the place of the local folder in a text.
    """

    folder: Path
    reading: Callable[[Path], AbstractContextManager[object]] = contextlib.nullcontext
    in_words: Callable[[str], str] = str


@contextlib.contextmanager
def enter_masks(folder: Path | BucketUrl) -> Iterator[Masks]:
    """A with block with a local folder in the place of a URL, in which errors name the URL.

    Args:
        folder: a folder of masks, which may be the out folder of a run; or anything local.

    Raises:
        CarvanaBatchError: the bucket cannot be read, or there are no objects in the folder.
    """
    if not isinstance(folder, BucketUrl):
        yield Masks(folder)
        return
    names: dict[str, str] = {}
    with temporary_folder(Path(tempfile.gettempdir()), SCRATCH_PREFIX) as scratch, named(names):
        local = scratch / "masks"
        names[str(local)] = str(folder)
        mirror = Mirror(folder, local)
        if not mirror.list():
            raise UsageError(f"There are no objects in {folder}.")
        paths = OutPaths(local)
        if (local / STATE_FOLDER).is_dir():
            with BucketOut(folder, local, hold=False):  # for its journal
                paths.lock.touch()  # no shard but this
        for path in (paths.run, paths.report):
            if path.exists():
                mirror.fetch(path)
        files = [local / name for name in sorted(list_masks(local))]
        with ReadAhead(files, mirror.fetch, mirror.empty) as ahead:
            yield Masks(local, ahead.reading, lambda text: text.replace(str(local), str(folder)))
