"""The journal: one line of JSON for each photo that is done or has failed."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from carvana_batch.files import atomic_writer, open_plain, read_error
from carvana_batch.inputs.keys import mask_name_problem
from carvana_batch.notes import Note
from carvana_batch.options import EXTRA_FILES


class ExtraFile(NamedTuple):
    """An extra file of a photo: its kind, one of ``EXTRA_FILES``, its size, and the CRC-32 of its bytes."""

    kind: str
    size: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal.

    Attributes:
        key: of the photo.
        source: path of the photo.
        source_bytes: size of its file, which tells whether the photo has changed.
        source_time: time of its last change in ns, for the same purpose.
        width: of the mask, in pixels.
        height: of the mask, in pixels.
        car_share: part of the photo that the mask covers, in [0, 1].
        expected_dice: see :class:`Prediction`.
        dice: against the true mask, None if there is none.
        mask_bytes: size of the mask's file, which tells whether it is complete.
        mask_checksum: CRC-32 of its bytes; None in journals of earlier versions.
        extras: the extra files of the photo; none in journals of earlier versions.
        kept: whether the mask is not of a run but of the user, and stays as it is.
        pending: whether the line was written before the files that it lists, so that it is known after a kill
            that they are of a run. Such a line says nothing about the photo.
        stage: what failed, "" if nothing did.
        reason: of the failure, or why there is no Dice.
        notes: on the photo, if it was masked.
        damage: how the photo is damaged, if it was masked nevertheless.
        doubt: see :class:`Prediction`.
        true_share: part of the photo that the true mask covers; None if there is none, and in journals of
            earlier versions.
        generation: one more than that of any line that the run found when it began, which gives the order of
            lines in several journals; 0 in those of earlier versions.
        committed: when the line was written in ns, which gives the order if that does not.
    """

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
    mask_checksum: int | None = None
    extras: tuple[ExtraFile, ...] = ()
    kept: bool = False
    pending: bool = False
    stage: str = ""
    reason: str = ""
    notes: tuple[Note, ...] = ()
    damage: str = ""
    doubt: float | None = None
    true_share: float | None = None
    generation: int = field(default=0, compare=False)
    committed: int = field(default=0, compare=False)

    @property
    def failed(self) -> bool:
        return self.stage != ""

    @property
    def masked(self) -> bool:
        """Whether a run has written the mask."""
        return not (self.failed or self.kept)

    def keep(self, mask_bytes: int, mask_checksum: int) -> Entry:
        """The entry of the same photo, if a mask of the user is in the place of its mask."""
        return Entry(
            self.key,
            self.source,
            self.source_bytes,
            self.source_time,
            mask_bytes=mask_bytes,
            mask_checksum=mask_checksum,
            reason=self.reason,
            kept=True,
        )


DEFAULTS = {each.name: each.default for each in fields(Entry)}


class Journals(NamedTuple):
    """What the journals of all shards say.

    Attributes:
        latest: the latest entry of each key.
        pending: the entries that were not followed by an entry that is not pending, by key.
    """

    latest: dict[str, Entry]
    pending: dict[str, list[Entry]]

    @property
    def generation(self) -> int:
        """The latest generation of any entry; 0 if there are none."""
        unfinished = (entry for entries in self.pending.values() for entry in entries)
        return max((entry.generation for entry in chain(self.latest.values(), unfinished)), default=0)


def read_entries(state: Path) -> dict[str, Entry]:
    """The latest entry of each key; see :func:`read_journals`."""
    return read_journals(state).latest


def read_journals(state: Path) -> Journals:
    """Read the journals of all shards.

    Lines that are incomplete, or anything other than an entry, are passed over.

    Raises:
        CarvanaBatchError: a journal cannot be read.
    """
    latest: dict[str, Entry] = {}
    pending: dict[str, list[Entry]] = {}
    for path in sorted(state.glob("journal-*.jsonl")):
        # Within one journal the last line counts, regardless of the clock.
        own = _read_one(path)
        for key, unfinished in own.pending.items():
            pending.setdefault(key, []).extend(unfinished)
        for entry in own.latest.values():
            if entry.key not in latest or _order(latest[entry.key]) <= _order(entry):
                latest[entry.key] = entry
    return Journals(latest, pending)


def _order(entry: Entry) -> tuple[int, int]:
    return entry.generation, entry.committed


def read_pending(journal: Path) -> dict[str, list[Entry]]:
    """The entries of one journal that were not followed by an entry that is not pending, by key.

    Raises:
        CarvanaBatchError: the journal cannot be read.
    """
    return _read_one(journal).pending


def _read_one(journal: Path) -> Journals:
    latest: dict[str, Entry] = {}
    pending: dict[str, list[Entry]] = {}
    try:
        with open(journal, encoding="utf-8", errors="replace", opener=open_plain) as file:
            for entry in _parse(file):
                if entry.pending:
                    pending.setdefault(entry.key, []).append(entry)
                else:
                    latest[entry.key] = entry
                    pending.pop(entry.key, None)
    except OSError as error:
        raise read_error(journal, error) from error
    return Journals(latest, pending)


def drop_entries(journal: Path, keys: Collection[str]) -> None:
    """Remove the lines of some keys from a journal, and lines that are no entries.

    Raises:
        CarvanaBatchError: the journal cannot be read or written.
    """
    try:
        with (
            open(journal, encoding="utf-8", errors="replace", opener=open_plain) as file,
            atomic_writer(journal, "w") as kept,
        ):
            for entry in _parse(file):
                if entry.key not in keys:
                    kept.write(f"\n{entry_line(entry)}")
    except OSError as error:
        raise read_error(journal, error) from error


def _parse(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        try:
            values = json.loads(line)
            notes = tuple(Note(note) for note in values.pop("notes", ()))
            extras = tuple(ExtraFile(*extra) for extra in values.pop("extras", ()))
            entry = Entry(**values, notes=notes, extras=extras)
        except (AttributeError, ValueError, TypeError, RecursionError):
            continue
        if _is_sound(entry):
            yield entry


def _is_sound(entry: Entry) -> bool:
    """Whether all values have the right types and ranges; another program may have written anything."""
    texts = (entry.key, entry.source, entry.stage, entry.reason, entry.damage)
    checksum = 0 if entry.mask_checksum is None else entry.mask_checksum
    sizes = [entry.source_bytes, entry.width, entry.height, entry.mask_bytes, checksum, entry.generation]
    for extra in entry.extras:
        sizes += extra[1:]
    times = (entry.source_time, entry.committed)
    shares = (entry.car_share, entry.expected_dice, entry.doubt, entry.dice, entry.true_share)
    return (
        all(isinstance(text, str) and _can_be_written(text) for text in texts)
        and all(type(number) is int for number in (*sizes, *times))
        and min(sizes) >= 0
        and all(isinstance(extra.kind, str) and extra.kind in EXTRA_FILES for extra in entry.extras)
        and type(entry.kept) is type(entry.pending) is bool
        and all(share is None or (type(share) is float and math.isfinite(share)) for share in shares)
        and not mask_name_problem(entry.key)
    )


def _can_be_written(text: str) -> bool:
    """Whether it is valid text, or a file name that is not, as surrogate escapes."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def entry_line(entry: Entry) -> str:
    """The line of an entry, in JSON, without a line break."""
    values = {name: value for name in DEFAULTS if (value := getattr(entry, name)) != DEFAULTS[name]}
    return json.dumps(values)


def append_entry(file: IO[bytes], entry: Entry) -> None:
    """Add the line of an entry to an unbuffered journal."""
    # A line break first: it separates the line from one that a killed run left incomplete.
    append(file, f"\n{entry_line(entry)}".encode("ascii"))


def append(file: IO[bytes], line: bytes) -> None:
    """Write the whole line to an unbuffered file, so that closing it has nothing left to write."""
    while line:
        line = line[file.write(line) :]
