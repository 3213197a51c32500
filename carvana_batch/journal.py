"""The journal: one JSON line for each photo that is done or has failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO


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


def read_entries(state: Path) -> Iterator[Entry]:
    """The entries of all shards' journals; of one key the latest counts. Torn lines are passed over."""
    latest: dict[str, Entry] = {}
    for path in sorted(state.glob("journal-*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for entry in _parse(file):
                if entry.key not in latest or latest[entry.key].committed <= entry.committed:
                    latest[entry.key] = entry
    yield from latest.values()


def _parse(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if (
            isinstance(entry.key, str)
            and isinstance(entry.mask_bytes, int)
            and isinstance(entry.committed, int)
            and _is_below(entry.key)
        ):
            yield entry


def _is_below(key: str) -> bool:
    """Whether a key stays in the out folder; a journal that someone else wrote may say anything."""
    return key != "" and not key.startswith("/") and ".." not in key.split("/")


def append(file: IO[bytes], line: bytes) -> None:
    """Write all of ``line`` to a file that is not buffered, so that nothing is left to ``close``."""
    while line:
        line = line[file.write(line) :]
