"""The out folder: its lock, its settings, its journal, and where each file belongs.

out/a/b.png                       the mask of in/a/b.jpg; its rename is its commit
out/_overlay/a/b.jpg              extras, each kind in a folder of its own
out/report.csv, out/run.json      the report
out/.carvana-batch/settings.json  what the first run was asked for and what it chose
out/.carvana-batch/journal-1-of-1.jsonl   one line for each photo that is done or has failed
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import filelock

from carvana_batch.errors import FolderInUseError, UsageError
from carvana_batch.files import (
    OUT_OF_SPACE,
    _remove,
    atomic_writer,
    find_leftovers,
    not_writable,
    read_error,
    write_error,
)
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.options import EXTRA_FILES
from carvana_batch.output.journal import Entry, append, read_entries
from carvana_batch.output.lock import LOCK_PATIENCE, describe_holder, is_locked, write_holder
from carvana_batch.text import shown
from carvana_batch.values import Failure, ImageRef

STATE_FOLDER = ".carvana-batch"


class OutFolder:
    """One run's hold on an out folder, or on its shard of it; use as a context manager.

    Nothing of an earlier run is touched before :meth:`start`, except for the temporary files of one that was
    killed.

    What is done is only in the journal, so that memory does not grow with it while photos are masked.

    Raises on entry:
        UsageError: the folder cannot be made or written, or ``settings`` differ from an earlier run's.
        FolderInUseError: another run holds the same shard, or the folder is shared in another way.
    """

    def __init__(self, root: Path, settings: dict[str, Any], shard: tuple[int, int], overwrite: bool) -> None:
        self.root, self.shard, self.overwrite = root, shard, overwrite
        self.settings = json.loads(json.dumps(settings))  # as it will be read back
        self.state = root / STATE_FOLDER
        self.chosen: dict[str, Any] = {}
        self._again: set[str] = set()  # keys of photos that an earlier run came to and this one will, too
        name = f"{shard[0]}-of-{shard[1]}"
        self._lock = filelock.FileLock(self.state / f"lock-{name}", timeout=LOCK_PATIENCE)
        self._holder = self.state / f"holder-{name}.json"
        self._settings_path = self.state / "settings.json"
        self._journal_path = self.state / f"journal-{name}.jsonl"
        self._journal: IO[bytes] | None = None

    def __enter__(self) -> OutFolder:
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            self._lock.release()
            if error.errno in OUT_OF_SPACE:
                raise write_error(self.root, error) from error
            raise not_writable(self.root, error.strerror or str(error)) from error
        try:
            write_holder(self._holder)
            if not self.overwrite:
                self.read_settings()
            with self.alone():
                self._remove_leftovers()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()
        self._lock.release()

    @property
    def begun(self) -> bool:
        """Whether this run, or an earlier one, has been started in the folder."""
        return self._settings_path.exists()

    def mask_path(self, key: str) -> Path:
        return self.root / f"{key}.png"

    def extra_path(self, kind: str, key: str) -> Path:
        folder, suffix = EXTRA_FILES[kind]
        return self.root / folder / f"{key}{suffix}"

    def find_missing(self, refs: Sequence[ImageRef]) -> PhotoList:
        """The photos that still have to be masked; may be asked without entering the folder.

        Raises UsageError where the folder has the mask of another photo at the place of one of them.
        """
        photos = PhotoList.of(refs)
        if self.overwrite:
            return photos
        entries = read_entries(self.state)
        self._again = set()
        missing = photos.select(
            place for place, ref in enumerate(photos) if not self._is_done(ref, entries.get(ref.key))
        )
        for ref in missing:
            if (entry := entries.get(ref.key)) is not None:
                self._refuse_another_photo(ref, entry)
                self._again.add(ref.key)
        return missing

    def _refuse_another_photo(self, ref: ImageRef, entry: Entry) -> None:
        """Raise UsageError if the mask there is that of another photo, which is still where it was."""
        if entry.failed or entry.source == ref.path_text:
            return
        try:
            source, other = ref.path.stat(), Path(entry.source).stat()
        except OSError:  # it has been moved, then, or is seen from another folder
            return
        unchanged = (other.st_size, other.st_mtime_ns) == (entry.source_bytes, entry.source_time)
        if unchanged and (source.st_dev, source.st_ino) != (other.st_dev, other.st_ino):
            raise UsageError(
                f"{shown(self.mask_path(ref.key))} is the mask of {shown(entry.source)}, and would be"
                f" replaced by that of {shown(ref.path)}. Choose another OUT, or use --overwrite to start"
                " afresh."
            )

    def _is_done(self, ref: ImageRef, entry: Entry | None) -> bool:
        """Whether the photo, unchanged since, has its whole mask already."""
        if entry is None or entry.failed:
            return False
        try:
            source, mask = ref.path.stat(), self.mask_path(ref.key).stat()
        except OSError:
            return False
        unchanged = (source.st_size, source.st_mtime_ns) == (entry.source_bytes, entry.source_time)
        return unchanged and mask.st_size == entry.mask_bytes

    def start(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Call once before the first commit: write the settings, and what ``auto`` came to.

        With ``overwrite``, all that earlier runs left goes now. Returns what the job's first run chose:
        another shard may have begun in the meantime, and all have to work alike.
        """
        with self.alone():
            if self.overwrite:
                self._forget()
            self.read_settings()
            self.choose(self.chosen or chosen)
        return self.chosen

    def choose(self, chosen: dict[str, Any]) -> None:
        """Record what ``auto`` came to, for later runs and other shards to reuse."""
        if chosen == self.chosen:
            return
        self.chosen = chosen
        with atomic_writer(self._settings_path, "w") as file:
            json.dump({"settings": self.settings, "chosen": self.chosen}, file, indent=2)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """To hold while writing a file that all shards write; the others wait."""
        lock = filelock.FileLock(self.state / "shared.lock")
        try:
            lock.acquire()
        except OSError as error:
            raise write_error(self.state / "shared.lock", error) from error
        try:
            yield
        finally:
            lock.release()

    def commit(self, entry: Entry) -> None:
        """Append to the journal, after the mask has its final name."""
        if not self._lock.is_locked:
            raise RuntimeError("the out folder is not open")
        entry = replace(entry, committed=time.time_ns())
        # A line break first: it parts a new line from one that a killed run left torn.
        line = b"\n" + json.dumps(asdict(entry)).encode("ascii")
        try:
            if self._journal is None:
                self._journal = self._journal_path.open("ab", buffering=0)
            append(self._journal, line)
        except OSError as error:
            raise write_error(self._journal_path, error) from error

    def commit_failure(self, failure: Failure) -> None:
        """Journal a photo that has no mask; what an earlier run made of it is out of date and goes."""
        if failure.id in self._again:
            self._remove_files(failure.id)
        try:
            source = Path(failure.source).stat()
            size, changed = source.st_size, source.st_mtime_ns
        except OSError:  # a file that is gone is a reason to fail, and has no size
            size = changed = 0
        self.commit(
            Entry(failure.id, failure.source, size, changed, stage=failure.stage, reason=failure.reason)
        )

    @property
    def spool_path(self) -> Path:
        """Where this shard's run-length rows are put aside."""
        return self.state / f"rle-{self.shard[0]}-of-{self.shard[1]}.jsonl"

    def _take_lock(self) -> None:
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise self._in_use(self._holder) from error
        for other in sorted(self.state.glob("lock-*-of-*")):
            if not other.name.endswith(f"-of-{self.shard[1]}") and is_locked(other):
                self._lock.release()
                raise self._in_use(self.state / f"holder-{other.name.removeprefix('lock-')}.json")

    def _in_use(self, holder: Path) -> FolderInUseError:
        return FolderInUseError(
            f"{shown(self.root)} is in use by {describe_holder(holder)}. Wait for it to end, choose another"
            " OUT, or share the work by giving every run its own part with --shard i/n (the same n for all)."
        )

    def _forget(self) -> None:
        """Start afresh: remove the masks and extras that the journals list, the journals and the settings."""
        for key in read_entries(self.state):
            self._remove_files(key)
        for path in (
            *self.state.glob("journal-*.jsonl"),
            *self.state.glob("rle-*.jsonl"),
            self._settings_path,
        ):
            _remove(path)

    def _remove_leftovers(self) -> None:
        """Remove what killed runs did not get to rename.

        Not while another shard is at work: it may be in a container of the same name, whose processes do not
        show here.
        """
        leftovers = find_leftovers(self.root)  # first: what is there before a lock is free is of a killed run
        own = Path(self._lock.lock_file)
        if leftovers and not any(is_locked(lock) for lock in self.state.glob("lock-*-of-*") if lock != own):
            for path in leftovers:
                _remove(path)

    def _remove_files(self, key: str) -> None:
        for path in (self.mask_path(key), *(self.extra_path(kind, key) for kind in EXTRA_FILES)):
            _remove(path)

    def read_settings(self, skipped: Collection[str] = ()) -> None:
        """Read what an earlier run chose; raise UsageError if it was asked for something else.

        Settings whose names are ``skipped`` are not compared.
        """
        try:
            content = json.loads(self._settings_path.read_text(encoding="utf-8"))
            earlier, self.chosen = dict(content["settings"]), dict(content["chosen"])
        except FileNotFoundError:
            self.chosen = {}
            return
        except OSError as error:
            raise read_error(self._settings_path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{shown(self._settings_path)} is damaged ({error}). Use --overwrite to start afresh."
            ) from error
        differences = [
            f"{name}: {earlier.get(name)!r} before, {self.settings.get(name)!r} now"
            for name in sorted(earlier.keys() | self.settings.keys())
            if name not in skipped and earlier.get(name) != self.settings.get(name)
        ]
        if differences:
            raise UsageError(
                f"{shown(self.root)} holds masks made with other settings ({'; '.join(differences)}). Use the"
                " same settings to go on, --overwrite to start afresh, or another OUT."
            )
