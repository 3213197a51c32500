"""An out folder in a bucket: its lock, its journal, and which files it has."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from carvana_batch.cloud.lock import BEAT, LEASE, BucketLock
from carvana_batch.cloud.mirror import list_objects
from carvana_batch.cloud.segments import Segments
from carvana_batch.cloud.uploading import is_of_a_run
from carvana_batch.cloud.urls import BucketUrl, open_store, raise_store_error
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.output.journal import Entry, entry_line
from carvana_batch.output.paths import MASK, STATE_FOLDER, OutPaths
from carvana_batch.text import list_names
from carvana_batch.values import ImageRef

LOCK_NAME = f"{STATE_FOLDER}/lock.json"

JOURNAL_NAME = f"{STATE_FOLDER}/journal"

ROWS = 200
"""Lines of the journal after which they are written into a segment."""

SECONDS = 5.0
"""Time after which they are, even if they are fewer."""

MOST_ROWS = 2000
"""Lines that may be waiting while a segment is written; with more of them, the run waits."""

THREADS = 16


class BucketOut:
    """An out folder in a bucket that a run holds; use it as a context manager.

    Args:
        url: the out folder.
        folder: an empty local folder, which gets the settings and the journal that are in the bucket.
        hold: whether to take the lock, and to add to the journal; without, nothing is written.
        lease: see :class:`BucketLock`.
        beat: seconds between two signs of life.
        say: called with a line for the user, if there is something to wait for.

    Attributes:
        sizes: of the files, in bytes, by their name below the folder.
        run: identifies the run.

    Raises:
        CarvanaBatchError: on entry, see :meth:`BucketLock.acquire`; the store failed.
    """

    def __init__(
        self,
        url: BucketUrl,
        folder: Path,
        hold: bool = True,
        lease: float = LEASE,
        beat: float = BEAT,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.url, self.folder, self.hold, self._beat_seconds = url, folder, hold, beat
        self.run = uuid.uuid4().hex
        self.sizes: dict[str, int] = {}
        self._store = open_store(url)
        self._lock = BucketLock(url, LOCK_NAME, self.run, lease, say)
        self._segments = Segments(url / JOURNAL_NAME, url, self.run)
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._due = threading.Event()  # a segment, or the end
        self._ended = False
        self._error: CarvanaBatchError | None = None
        self._waiting_since: float | None = None  # the oldest line that no segment has

    def __enter__(self) -> Self:
        if self.hold:
            self._lock.acquire()
        try:
            state = self.folder / STATE_FOLDER
            state.mkdir(parents=True, exist_ok=True)
            self._list()
            if f"{STATE_FOLDER}/settings.json" in self.sizes:
                (state / "settings.json").write_bytes(self._get(f"{STATE_FOLDER}/settings.json"))
            lines = self._segments.begin() if self.hold else self._segments.read()
            OutPaths(self.folder).journal.write_bytes(lines + b"\n")
        except BaseException:
            with contextlib.suppress(CarvanaBatchError):  # the first error matters more
                self._lock.release()
            raise
        if self.hold:
            self._keeper.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the rest of the journal, and give the folder up."""
        if not self.hold:
            return
        self._ended = True
        self._due.set()
        self._keeper.join()
        try:
            self.check()
            self._segments.flush()
            self._lock.release()
        except CarvanaBatchError:
            if kind is None:
                raise

    def check(self) -> None:
        """Raise what has kept this run from holding the folder.

        Raises:
            CarvanaBatchError: another run holds it, or it cannot be reached.
        """
        if self._error is not None:
            raise self._error

    def add(self, entry: Entry) -> None:
        """Add a line to the journal, after the files of its photo have been put.

        Raises:
            CarvanaBatchError: see :meth:`check`.
        """
        self.check()
        paths = OutPaths(self.folder)
        if entry.failed or entry.kept:
            self._remove([self._name(path) for path in paths.of_photo(entry.key).values()])
        else:
            self.sizes[self._name(paths.mask(entry.key))] = entry.mask_bytes
            for extra in entry.extras:
                self.sizes[self._name(paths.extra(extra.kind, entry.key))] = extra.size
        waiting = self._segments.add(entry_line(entry))
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        if waiting >= MOST_ROWS:
            self._flush()
        elif waiting >= ROWS:
            self._due.set()

    def put(self, path: Path) -> None:
        """Put a file of the local folder, whatever the bucket has in its place.

        Raises:
            CarvanaBatchError: the store failed, or see :meth:`check`.
        """
        import obstore

        self.check()
        try:
            obstore.put(self._store, self._name(path), path.read_bytes(), use_multipart=False)
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise_store_error(self.url, error)

    def settle(self) -> None:
        """Write all lines of the journal into segments, and list the folder again.

        Raises:
            CarvanaBatchError: the store failed, or see :meth:`check`.
        """
        self.check()
        self._flush()
        self._list()

    def refuse_foreign(self, photos: Sequence[ImageRef], paths: OutPaths, extras: Sequence[str]) -> None:
        """Check that no object which no run has made is in the place of one that is to be made.

        Raises:
            UsageError: one is.
            StoreError: the store failed.
        """
        names = [
            name
            for ref in photos
            for kind, path in paths.of_photo(ref.key).items()
            if (kind == MASK or kind in extras) and (name := self._name(path)) in self.sizes
        ]
        with ThreadPoolExecutor(THREADS) as threads:
            of_a_run = list(threads.map(lambda name: is_of_a_run(self._store, self.url / name, name), names))
        foreign = [str(self.url / name) for name, own in zip(names, of_a_run, strict=True) if not own]
        if foreign:
            raise UsageError(
                "In the place of masks there are objects that predict has not made, and which stay. Choose"
                f" another OUT, or move them away.{list_names('Objects', foreign)}"
            )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _list(self) -> None:
        found = {each.name: each.size for each in list_objects(self.url)}
        self.sizes.clear()
        self.sizes.update(found)

    def _get(self, name: str) -> bytes:
        import obstore

        try:
            return bytes(obstore.get(self._store, name).bytes())
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise_store_error(self.url / name, error)

    def _remove(self, names: Sequence[str]) -> None:
        """Remove outdated files of a photo that has failed, as far as runs have made them."""
        import obstore

        there = [name for name in names if self.sizes.pop(name, None) is not None]
        for name in there:
            if not is_of_a_run(self._store, self.url / name, name):
                continue
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                continue
            except (obstore.exceptions.BaseError, OSError, ValueError) as error:
                raise_store_error(self.url / name, error)

    def _flush(self) -> None:
        self._waiting_since = None
        self._segments.flush()

    def _keep(self) -> None:
        """Give signs of life, and write lines of the journal that have waited for long."""
        beaten = time.monotonic()
        while not self._ended:
            due = self._due.wait(min(1.0, self._beat_seconds)) and not self._ended
            if due:
                self._due.clear()
            try:
                if time.monotonic() - beaten >= self._beat_seconds:
                    self._lock.beat()
                    beaten = time.monotonic()
                since = self._waiting_since
                if due or (since is not None and time.monotonic() - since >= SECONDS):
                    self._flush()
            except CarvanaBatchError as error:
                self._error = error
                return
