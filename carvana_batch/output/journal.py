"""The journal: one JSON line for each photo that is done or has failed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from carvana_batch.files import read_error
from carvana_batch.inputs.keys import mask_name_problem


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. ``source_bytes`` and ``source_time`` (ns) tell whether the photo has changed
    since; ``mask_bytes`` whether the mask is still whole. A failed photo has a ``stage`` and a ``reason``.
    ``committed`` is when the line was written (ns), which tells the order of lines in several journals."""

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
    committed: int = field(default=0, compare=False)

    @property
    def failed(self) -> bool:
        return self.stage != ""


def read_entries(state: Path) -> dict[str, Entry]:
    """The entries of all shards' journals by key; of one key the latest counts. Lines that are torn, or
    anything but an entry, are passed over.

    Raises CarvanaBatchError if a journal cannot be read.
    """
    latest: dict[str, Entry] = {}
    for path in sorted(state.glob("journal-*.jsonl")):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                # In one journal the last line, whatever the clock said.
                own = {entry.key: entry for entry in _parse(file)}
        except OSError as error:
            raise read_error(path, error) from error
        for entry in own.values():
            if entry.key not in latest or latest[entry.key].committed <= entry.committed:
                latest[entry.key] = entry
    return latest


def _parse(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if _is_sound(entry):
            yield entry


def _is_sound(entry: Entry) -> bool:
    """Whether all values are of their kinds; a journal that someone else wrote may say anything."""
    texts = (entry.key, entry.source, entry.stage, entry.reason)
    sizes = (entry.source_bytes, entry.width, entry.height, entry.mask_bytes)
    times = (entry.source_time, entry.committed)
    shares = (entry.car_share, entry.expected_dice, entry.dice)
    return (
        all(isinstance(text, str) and _can_be_written(text) for text in texts)
        and all(type(number) is int for number in (*sizes, *times))
        and min(sizes) >= 0
        and all(share is None or (type(share) is float and math.isfinite(share)) for share in shares)
        and not mask_name_problem(entry.key)
    )


def _can_be_written(text: str) -> bool:
    """Whether it is text, or bytes of a file's name that are none."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def append(file: IO[bytes], line: bytes) -> None:
    """Write all of ``line`` to a file that is not buffered, so that nothing is left to ``close``."""
    while line:
        line = line[file.write(line) :]
