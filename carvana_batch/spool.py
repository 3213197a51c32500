"""Run-length rows put aside during a run, so that its CSV needs no second pass over the masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from carvana_batch import rle
from carvana_batch.images import read_mask


class RunLengthSpool:
    """A file with a JSON line [key, row] for each mask, in the order in which they were made.

    It outlives the run, so that a resumed one can give the rows of all photos. A row that is not there,
    because the run was killed or had no spool, is made again from the mask.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("a+b")
        self._places: dict[str, int] = {}
        self._file.seek(0)
        place = 0
        for line in self._file:
            self._note(line, place)
            place += len(line)

    def append(self, key: str, runs: str) -> None:
        """Add the row of a mask; call it before the mask is journaled as done."""
        # A line break first: it parts a new line from one that a killed run left torn.
        line = json.dumps([key, runs]).encode("ascii")
        place = self._file.seek(0, 2) + 1
        self._file.write(b"\n" + line)
        self._file.flush()
        self._note(line, place)

    def rows(self, masks: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
        """(key, run-length row) of each (key, path) of a mask, in their order."""
        for key, path in masks:
            if key in self._places:
                self._file.seek(self._places[key])
                yield key, json.loads(self._file.readline())[1]
            else:
                yield key, rle.encode_packed(read_mask(path))

    def close(self) -> None:
        self._file.close()

    def _note(self, line: bytes, place: int) -> None:
        try:
            key, _ = json.loads(line)
        except (ValueError, TypeError):
            return
        self._places[key] = place
