"""The out folder: its lock, its settings, its journal, and where each file belongs.

out/a/b.png                       the mask of in/a/b.jpg; its rename is its commit
out/_overlay/a/b.jpg              extras, each kind in a folder of its own
out/report.csv, out/run.json      the report
out/.carvana-batch/settings.json  what the first run was asked for and what it chose
out/.carvana-batch/journal-1-of-1.jsonl   one line for each photo that is done or has failed
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import filelock

from carvana_batch.atomic import OUT_OF_SPACE, WriteError, atomic_writer
from carvana_batch.options import EXTRA_FILES
from carvana_batch.records import Failure, FolderInUseError, ImageRef, OutOfSpaceError, UsageError

STATE_FOLDER = ".carvana-batch"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. ``source_bytes`` and ``source_time`` (ns) tell whether the photo has changed
    since; ``mask_bytes`` whether the mask is still whole. A failed photo has a ``stage`` and a ``reason``."""

    key: str
    source: str
    source_bytes: int
    source_time: int
    width: int = 0
    height: int = 0
    car_share: float | None = None
    expected_dice: float | None = None
    dice: float | None = None
    mask_bytes: int = 0
    stage: str = ""
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.stage != ""


class OutFolder:
    """One run's hold on an out folder, or on its shard of it; use as a context manager.

    Raises on entry:
        UsageError: the folder cannot be made or written, or ``settings`` differ from an earlier run's.
        FolderInUseError: another run holds the same shard, or the folder is shared in another way.
    """

    def __init__(self, root: Path, settings: dict[str, Any], shard: tuple[int, int], overwrite: bool) -> None:
        self.root, self.settings, self.shard, self.overwrite = root, settings, shard, overwrite
        self.state = root / STATE_FOLDER
        self.chosen: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        name = f"{shard[0]}-of-{shard[1]}"
        self._lock = filelock.FileLock(self.state / f"lock-{name}", timeout=0)
        self._holder = self.state / f"holder-{name}.json"
        self._journal_path = self.state / f"journal-{name}.jsonl"
        self._journal: IO[str] | None = None

    def __enter__(self) -> OutFolder:
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"Cannot write into {self.root}: {error.strerror}. Choose another OUT."
            ) from error
        self._take_lock()
        try:
            self._holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            if self.overwrite:
                self._forget()
            self._compare_settings()
            self._read_journals()
            self._journal = self._journal_path.open("a", encoding="utf-8", errors="surrogateescape")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()
        self._lock.release()

    def mask_path(self, key: str) -> Path:
        return self.root / f"{key}.png"

    def extra_path(self, kind: str, key: str) -> Path:
        folder, suffix = EXTRA_FILES[kind]
        return self.root / folder / f"{key}{suffix}"

    def choose(self, chosen: dict[str, Any]) -> None:
        """Record what ``auto`` came to, for later runs and other shards to reuse."""
        if chosen != self.chosen:
            self.chosen = chosen
            self._write_settings()

    def find_missing(self, refs: Iterable[ImageRef]) -> list[ImageRef]:
        """The photos that still have to be masked; may be asked without entering the folder."""
        if not self.entries:
            self._read_journals()
        return [ref for ref in refs if not self._is_done(ref)]

    def _is_done(self, ref: ImageRef) -> bool:
        """Whether the photo, unchanged since, has its whole mask already."""
        entry = self.entries.get(ref.key)
        if entry is None or entry.failed:
            return False
        try:
            source, mask = ref.path.stat(), self.mask_path(ref.key).stat()
        except OSError:
            return False
        unchanged = (source.st_size, source.st_mtime_ns) == (entry.source_bytes, entry.source_time)
        return unchanged and mask.st_size == entry.mask_bytes

    def commit(self, entry: Entry) -> None:
        """Append to the journal, after the mask has its final name."""
        if self._journal is None:
            raise RuntimeError("the out folder is not open")
        # A line break first: it parts a new line from one that a killed run left torn.
        line = "\n" + json.dumps(asdict(entry), ensure_ascii=True)
        try:
            self._journal.write(line)
            self._journal.flush()
        except OSError as error:
            if error.errno in OUT_OF_SPACE:
                message = f"No space left for {self._journal_path}. Free some and run the same command again."
                raise OutOfSpaceError(message) from error
            raise WriteError(f"Cannot write {self._journal_path}: {error}") from error
        self.entries[entry.key] = entry

    def commit_failure(self, failure: Failure) -> None:
        """Journal a photo that has no mask; one that an earlier run made of it is out of date and goes."""
        ref = failure.ref
        if ref.key in self.entries:
            self.mask_path(ref.key).unlink(missing_ok=True)
        try:
            source = ref.path.stat()
            size, changed = source.st_size, source.st_mtime_ns
        except OSError:  # a file that is gone is a reason to fail, and has no size
            size = changed = 0
        self.commit(Entry(ref.key, str(ref.path), size, changed, stage=failure.stage, reason=failure.reason))

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
            if other.name.endswith(f"-of-{self.shard[1]}"):
                continue
            try:
                with filelock.FileLock(other, timeout=0):
                    pass
            except filelock.Timeout as error:
                self._lock.release()
                raise self._in_use(self.state / f"holder-{other.name.removeprefix('lock-')}.json") from error

    def _in_use(self, holder: Path) -> FolderInUseError:
        try:
            content = json.loads(holder.read_text())
            who = f"process {content['pid']} on {content['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return FolderInUseError(
            f"{self.root} is in use by {who}. Wait for it to end, choose another OUT, or share the work by"
            " giving every run its own part with --shard i/n (the same n for all)."
        )

    def _forget(self) -> None:
        """Start afresh: remove the masks and extras that the journals list, the journals and the settings."""
        for entry in read_entries(self.state):
            for path in (
                self.mask_path(entry.key),
                *(self.extra_path(kind, entry.key) for kind in EXTRA_FILES),
            ):
                path.unlink(missing_ok=True)
        for path in (
            *self.state.glob("journal-*.jsonl"),
            *self.state.glob("rle-*.jsonl"),
            self._settings_path,
        ):
            path.unlink(missing_ok=True)

    @property
    def _settings_path(self) -> Path:
        return self.state / "settings.json"

    def _compare_settings(self) -> None:
        try:
            content = json.loads(self._settings_path.read_text(encoding="utf-8"))
            earlier, self.chosen = content["settings"], content["chosen"]
        except FileNotFoundError:
            self._write_settings()
            return
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._settings_path} cannot be read ({error}). Use --overwrite to start afresh."
            ) from error
        now = json.loads(json.dumps(self.settings))
        differences = [
            f"{name}: {earlier.get(name)!r} before, {now.get(name)!r} now"
            for name in sorted(earlier.keys() | now.keys())
            if earlier.get(name) != now.get(name)
        ]
        if differences:
            raise UsageError(
                f"{self.root} holds masks made with other settings ({'; '.join(differences)}). Use the same"
                " settings to go on, --overwrite to start afresh, or another OUT."
            )

    def _write_settings(self) -> None:
        with atomic_writer(self._settings_path, "w") as file:
            json.dump({"settings": self.settings, "chosen": self.chosen}, file, indent=2)

    def _read_journals(self) -> None:
        self.entries = {entry.key: entry for entry in read_entries(self.state)}


def read_entries(state: Path) -> Iterator[Entry]:
    """The entries of all shards' journals; of one key the last line counts. Torn lines are passed over."""
    latest: dict[str, Entry] = {}
    for path in sorted(state.glob("journal-*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        with path.open(encoding="utf-8", errors="replace") as file:
            latest.update((entry.key, entry) for entry in _parse(file))
    yield from latest.values()


def _parse(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if isinstance(entry.key, str) and isinstance(entry.mask_bytes, int):
            yield entry
