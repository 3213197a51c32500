"""The out folder: who holds it, the settings of its job, and its journal."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import filelock

from carvana_batch.errors import FolderInUseError, ImageError, UsageError
from carvana_batch.files import (
    OUT_OF_SPACE,
    atomic_writer,
    find_leftovers,
    missing_rights,
    not_writable,
    open_plain,
    read_error,
    remove_file,
    write_error,
)
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.options import EXTRA_FILES, EXTRA_SETTINGS, PROBABILITY_EXTRAS, Choice
from carvana_batch.output.announced import worker_journals
from carvana_batch.output.held import HeldFolders
from carvana_batch.output.journal import Entry, append_entry, read_journals, read_pending
from carvana_batch.output.lock import FolderLock, describe_holder, is_locked, read_holder
from carvana_batch.output.overwriting import Overwriting
from carvana_batch.output.ownership import Ownership
from carvana_batch.output.paths import MASK, OutPaths, holder_of
from carvana_batch.output.remote import LOCAL, Remote
from carvana_batch.output.resume import find_missing, find_undrawn
from carvana_batch.output.syncing import Syncing
from carvana_batch.text import counted, shown
from carvana_batch.values import Failure, ImageRef


class OutFolder:
    """An out folder, or a shard's part of it, that a run holds; use it as a context manager.

    Nothing that an earlier run made is changed before :meth:`start`, except that the temporary files of a
    killed run are removed. If an error comes before :meth:`start`, nothing is left of a new out folder. What
    is done is only recorded in the journal on disk, so that memory does not grow with it.

    Args:
        root: the out folder, which is created on entry if it does not exist.
        settings: see :meth:`Options.settings`.
        shard: (number, count) of the shard, counted from 1.
        overwrite: whether to discard what earlier runs have made; see :class:`Overwriting`.
        rle_file: where this shard writes its run-length rows, None if it does not.
        remote: what to do about photos, or an out folder, that are elsewhere; ``root`` is then the local
            folder in which the files of this run appear first.

    Attributes:
        paths: where each file belongs.
        choice: what the first run of the job chose, None if there was none.
        overwriting: with ``overwrite``, what goes and what stays; known once the missing photos are.
        ownership: which files of the missing photos are of a run; known once these photos are.
        undrawn: the missing photos that only lack extra files which can be made from photo and mask, with
            the kinds of these; known once these photos are.
        added_extras: whether this run is asked for other extra files than earlier ones, and makes all of
            them.
        run: identifies this run; workers on other machines find it in the file that says who holds the lock.

    Raises:
        UsageError: on entry, if the folder cannot be created or written to, or has other settings.
        FolderInUseError: on entry, if another run holds the same shard, or uses another number of shards.
        FolderChangedError: from every method that writes, the folder is no longer the one that was entered.
    """

    def __init__(
        self,
        root: Path,
        settings: dict[str, Any],
        shard: tuple[int, int],
        overwrite: bool,
        rle_file: Path | None = None,
        remote: Remote = LOCAL,
    ) -> None:
        self.root, self.shard, self.overwrite, self.remote = root, shard, overwrite, remote
        self.paths = OutPaths(root, shard, remote.sizes)
        self.settings = json.loads(json.dumps(settings))  # in the form in which it is read back
        self._rle_file = "" if rle_file is None else os.path.realpath(rle_file)
        self.choice: Choice | None = None
        self.overwriting: Overwriting | None = None
        self.ownership = Ownership(self.paths, replace_all=overwrite)
        self.undrawn: dict[str, tuple[str, ...]] = {}
        self.added_extras = False
        self._added_settings: set[str] = set()
        self.run = uuid.uuid4().hex
        self._lock = FolderLock(self.paths.lock, holder_of(self.paths.lock))
        self._generation: int | None = None
        self._journal: IO[bytes] | None = None
        self._journal_lock = threading.Lock()  # writer threads and the main one add lines
        self._held: HeldFolders | None = None
        self._syncing: Syncing | None = None
        self._started = False

    def __enter__(self) -> OutFolder:
        try:
            self._take_lock()
            self._refuse_what_others_made()
            with self.shared_files_lock():
                self._refuse_rows_of_another_shard()
                if not self.overwrite:
                    self.read_settings()
                self._lock.write_holder(rle_file=self._rle_file, run=self.run)
                self._remove_leftovers()
        except BaseException:
            self._let_go()
            self._undo()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()
        self._let_go()
        if kind is not None and not self._started:
            self._undo()
        else:
            self._lock.release()

    @property
    def syncing(self) -> Syncing:
        """Lets what was done reach the disk."""
        if self._syncing is None:
            raise RuntimeError("the out folder is not open")
        return self._syncing

    @property
    def generation(self) -> int:
        """That of the lines that this run adds to the journal; see :class:`Entry`."""
        if self._generation is None:
            self._generation = read_journals(self.paths.state).generation + 1
        return self._generation

    def check(self) -> None:
        """Check that the folder is still the one that was entered; it is never made again.

        Raises:
            FolderChangedError: it was renamed, removed or replaced.
        """
        if self._held is not None:
            self._held.check()
        self.remote.check()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()

    def _undo(self) -> None:
        """Give the folder up after a start that failed."""
        alone = not self.begun and not self.paths.other_locks()
        self._lock.undo([self.paths.shared_lock] if alone else [])

    @property
    def begun(self) -> bool:
        """Whether this run, or an earlier one, has been started in the folder."""
        return self.paths.settings.exists()

    def find_missing(
        self, refs: Sequence[ImageRef], skipped: Collection[str] = (), verify: bool = False
    ) -> PhotoList:
        """The photos that still have to be masked; can be called without entering the folder.

        Args:
            refs: the photos of this run.
            skipped: with ``overwrite``, see :meth:`read_settings`.
            verify: whether files that are not as they were written count as missing, whatever their size.

        Raises:
            UsageError: the mask of another photo would be replaced; or with ``overwrite``, masks would stay
                that were made with other settings.
        """
        photos = PhotoList.of(refs)
        if self.overwrite:
            self.overwriting = Overwriting((ref.key for ref in photos), self.paths)
            self._generation = self.overwriting.generation + 1
            if self.overwriting.kept:
                self.read_settings(skipped)
            return photos
        journals = read_journals(self.paths.state)
        self._generation = journals.generation + 1
        extras = self.settings.get("save", ())
        missing = find_missing(photos, journals.latest, self.paths, extras, verify)
        if not verify and self.remote.job is None:
            self.undrawn = find_undrawn(missing, journals.latest, self.paths, extras)
        self.remote.refuse_foreign(missing, journals.latest, self.paths, extras)
        known = [ref.key for ref in missing if ref.key in journals.latest or ref.key in journals.pending]
        self.ownership = Ownership(self.paths, journals, known)
        return missing

    def start(self, choice: Choice) -> Choice:
        """Write down the settings and what this run chose; call it once, before the first commit.

        With ``overwrite``, what earlier runs have made is removed now; call :meth:`find_missing` first.

        Returns:
            What the first run of the job chose. It differs from ``choice`` if another shard has started in
            the meantime, and all shards have to work alike.
        """
        with self.shared_files_lock():
            if self.overwriting is not None:
                self.overwriting.remove()
            self.read_settings()
            chosen = self.choice or choice
            self.record_choice(chosen)
            if self.added_extras:
                self._write_settings()
        self._started = True
        return chosen

    def record_choice(self, choice: Choice) -> None:
        """Write down what was chosen, for later runs and other shards to use as well."""
        if choice == self.choice:
            return
        self.check()
        self.choice = choice
        self._write_settings()

    def start_drawing(self) -> None:
        """Write down which extra files are added, before they are; call it if no photo is to be masked."""
        with self.shared_files_lock():
            self.read_settings()
            if self.added_extras:
                self._write_settings()
        self._started = True

    def _write_settings(self) -> None:
        chosen = {} if self.choice is None else asdict(self.choice)
        with atomic_writer(self.paths.settings, "w") as file:
            json.dump({"settings": self.settings, "chosen": chosen}, file, indent=2)
        self.remote.put(self.paths.settings)

    @contextlib.contextmanager
    def shared_files_lock(self) -> Iterator[None]:
        """A with block during which no other shard writes files that all shards write."""
        self.check()
        lock = filelock.FileLock(self.paths.shared_lock)
        try:
            lock.acquire()
        except OSError as error:
            raise write_error(self.paths.shared_lock, error) from error
        try:
            yield
        finally:
            lock.release()

    def learn_announced(self, keys: Collection[str]) -> None:
        """Find out which files the workers of this run have announced of some photos; see :class:`WorkerOut`.

        Raises:
            CarvanaBatchError: a journal cannot be read.
        """
        for path in worker_journals(self.paths.state):
            announced = read_pending(path)
            self.ownership.learn({key: announced[key] for key in keys if key in announced})

    def commit(self, entry: Entry) -> None:
        """Append an entry to the journal.

        Call it after the mask has its final name; and with a pending entry, before any file of the photo has.
        Several threads may call it at once.
        """
        if not self._lock.is_held:
            raise RuntimeError("the out folder is not open")
        self.check()
        try:
            with self._journal_lock:
                entry = replace(
                    entry,
                    source=self.remote.in_words(entry.source),
                    reason=self.remote.in_words(entry.reason),
                    generation=self.generation,
                    committed=time.time_ns(),
                )
                if self._journal is None:
                    self.syncing.expect_changes()
                    self._journal = open(  # noqa: SIM115
                        self.paths.journal, "ab", buffering=0, opener=open_plain
                    )
                append_entry(self._journal, entry)
        except OSError as error:
            raise write_error(self.paths.journal, error) from error
        if not entry.pending:
            self.remote.commit(entry)

    def sync(self, entries: Sequence[Entry], new: Collection[str]) -> None:
        """Let what was done survive a power cut; see :meth:`Syncing.sync`. A store sees to that itself."""
        if self.remote.sizes is None:
            self.syncing.sync(entries, new)

    def commit_failure(self, failure: Failure) -> Entry:
        """Record a photo that could not be masked, and remove the outdated files that runs made of it.

        Returns:
            The entry. With a mask of the user in the place of its mask, the photo has not failed.
        """
        self.check()
        self.ownership.remove_files(failure.id)
        try:
            source = Path(failure.source).stat()
            size, changed = source.st_size, source.st_mtime_ns
        except OSError:  # a missing file is a reason to fail, and has no size
            size = changed = 0
        entry = Entry(failure.id, failure.source, size, changed, stage=failure.stage, reason=failure.reason)
        if self.ownership.is_foreign(failure.id, MASK):
            with contextlib.suppress(ImageError):  # what is there is not a mask, so the photo has none
                entry = entry.keep(*self.ownership.read_kept_mask(failure.id))
        self.commit(entry)
        return entry

    def _take_lock(self) -> None:
        try:
            if not self._lock.acquire():
                raise self._in_use(self._lock.path)
            for other in self.paths.other_locks():
                if not other.name.endswith(f"-of-{self.shard[1]}") and is_locked(other):
                    raise self._in_use(other)
            self._held = HeldFolders([self.root, self.paths.state])
            self._syncing = Syncing(self.paths)
        except OSError as error:
            if error.errno in OUT_OF_SPACE:
                raise write_error(self.root, error) from error
            if isinstance(error, PermissionError) and error.filename is not None:
                raise not_writable(self.root, missing_rights(Path(error.filename))) from error
            self._refuse_what_others_made()  # such as a link in the place of the lock
            raise not_writable(self.root, error.strerror or str(error)) from error

    def _refuse_what_others_made(self) -> None:
        """Raise UsageError if a file that this run writes is a link, or of a user who does not share it."""
        paths = self.paths
        replaced = (paths.settings, paths.report, paths.run, paths.synced, self._lock.holder)
        appended = (paths.journal, paths.spool, paths.lock, paths.shared_lock)
        for path in (paths.state, *replaced, *appended):
            if path.is_symlink():
                raise UsageError(
                    f"{shown(path)} is a link, so no run has made it, and writing there could do harm. Look"
                    " into it, and remove it."
                )
        for path in (self.root, paths.state, *appended):
            if path.exists() and not os.access(path, os.W_OK):
                raise not_writable(self.root, missing_rights(path))

    def _in_use(self, lock: Path) -> FolderInUseError:
        return FolderInUseError(
            f"{shown(self.root)} is in use by {describe_holder(holder_of(lock))}. Wait for it to end, choose"
            " another OUT, or share the work by giving every run its own part with --shard i/n (the same n"
            " for all)."
        )

    def _refuse_rows_of_another_shard(self) -> None:
        """Raise UsageError if another of these shards writes, or has written, its rows to the same file."""
        for lock in self.paths.other_locks():
            try:
                other = read_holder(holder_of(lock)).get("rle_file")
            except (OSError, ValueError, TypeError):  # it only says what the file is for
                continue
            if self._rle_file and other == self._rle_file and lock.name.endswith(f"-of-{self.shard[1]}"):
                raise UsageError(
                    f"--rle {shown(self._rle_file)} is already the file of shard"
                    f" {lock.name.removeprefix('lock-').replace('-of-', '/')}, whose rows would be lost. Give"
                    " each shard a file of its own, or use `carvana-batch submit` once all are done."
                )

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of killed runs.

        Not while another shard is running: it may run in a container with the same host name, whose processes
        are invisible here.
        """
        # Look for them before checking the locks: what is there before a lock is free is of a killed run.
        leftovers = find_leftovers(self.root)
        if leftovers and not any(is_locked(lock) for lock in self.paths.other_locks()):
            for path in leftovers:
                remove_file(path)

    def read_settings(self, skipped: Collection[str] = ()) -> None:
        """Read what the first run of the job was asked for and what it chose.

        Args:
            skipped: names of settings that are not compared.

        Raises:
            UsageError: the settings differ from those of this run, or are damaged.
        """
        path = self.paths.settings
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            earlier, choice = dict(content["settings"]), dict(content["chosen"])
        except FileNotFoundError:
            self.choice = None
            return
        except OSError as error:
            raise read_error(path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            advice = self._how_to_keep_none() if self.overwrite else "Use --overwrite to start afresh."
            if self.remote.sizes is not None:  # where that is refused
                advice = "Choose another OUT."
            raise UsageError(f"{shown(path)} is damaged ({error}). {advice}") from error
        self._add_extras(earlier)
        differences = [
            f"{name}: {earlier.get(name)!r} before, {self.settings.get(name)!r} now"
            for name in sorted(earlier.keys() | self.settings.keys())
            if name not in skipped
            and name not in self._added_settings
            and earlier.get(name) != self.settings.get(name)
        ]
        if differences:
            advice = "Use the same settings to go on, --overwrite to start afresh, or another OUT."
            if self.remote.sizes is not None:  # where that is refused
                advice = "Use the same settings to go on, or another OUT."
            needed = sorted(PROBABILITY_EXTRAS & set(self.settings.get("save", ())))
            if needed and not PROBABILITY_EXTRAS & set(earlier.get("save") or ()):
                advice += (
                    f" --save {needed[0]} needs the network; what is made from photo and mask alone can be"
                    " added later."
                )
            if self.overwrite:
                advice = self._how_to_keep_none()
            raise UsageError(
                f"{shown(self.root)} holds masks made with other settings ({'; '.join(differences)})."
                f" {advice}"
            )
        self.choice = Choice.from_json(choice)

    def _add_extras(self, earlier: Mapping[str, Any]) -> None:
        """Keep on making the extra files of earlier runs, if others are added that need no network."""
        if self.overwrite or not isinstance(earlier.get("save"), list):
            return
        asked = set(self.settings.get("save", ()))
        before = set(map(str, earlier["save"])) & EXTRA_FILES.keys()
        added = asked - before
        if not asked or asked == before or not PROBABILITY_EXTRAS.isdisjoint(added):
            return
        if "background" in before - asked:  # its file is not known here
            return
        self.settings["save"] = sorted(asked | before)
        self.added_extras = True
        self._added_settings = {"save", *(EXTRA_SETTINGS[kind] for kind in added & EXTRA_SETTINGS.keys())}
        for kind in (before - asked) & EXTRA_SETTINGS.keys():
            if EXTRA_SETTINGS[kind] in earlier:
                self.settings[EXTRA_SETTINGS[kind]] = earlier[EXTRA_SETTINGS[kind]]

    def _how_to_keep_none(self) -> str:
        kept = self.overwriting.kept if self.overwriting is not None else 0
        return (
            f"--overwrite would keep {counted(kept, 'mask')} of other photos, which have to be made alike."
            " Use the same settings, overwrite all masks by giving all of their photos, or choose another"
            " OUT."
        )
