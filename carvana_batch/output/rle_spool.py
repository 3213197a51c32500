"""Run-length rows stored during a run, so that its CSV does not need a second pass over the masks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from carvana_batch.files import atomic_writer, open_plain, read_error, write_error
from carvana_batch.masks import rle
from carvana_batch.masks.folder import decide_values
from carvana_batch.masks.read import read_mask
from carvana_batch.output.journal import Entry, append

RUNS = re.compile("[0-9 ]*")


class RunLengthSpool:
    """A file with a JSON line [key, [size and time of the photo], row] for each mask; a context manager.

    The file outlives the run, so that a resumed run can write the rows of all photos. A row that is missing,
    or is of an earlier state of the photo, because a run was killed or had no spool, is made from the mask.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[str, int] = {}
        try:
            self._end = open(path, "ab", buffering=0, opener=open_plain)  # noqa: SIM115
        except OSError as error:
            raise write_error(path, error) from error
        try:
            self._file = path.open("rb")
            offset = 0
            for line in self._file:
                if (row := _parse(line)) is not None:
                    self._offsets[row[0]] = offset
                offset += len(line)
        except OSError as error:
            raise read_error(path, error) from error

    def __enter__(self) -> RunLengthSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._file.close()

    def append(self, entry: Entry, runs: str) -> None:
        """Add the row of a mask; call it before the mask is committed to the journal.

        Raises:
            OutOfSpaceError: the disk is full.
            WriteError: the file cannot be written for another reason.
        """
        line = json.dumps([entry.key, [entry.source_bytes, entry.source_time], runs])
        # A line break first: it separates the line from one that a killed run left incomplete.
        offset = self._end.seek(0, 2) + 1
        try:
            append(self._end, b"\n" + line.encode("ascii"))
        except OSError as error:
            raise write_error(self.path, error) from error
        self._offsets[entry.key] = offset

    def rows(self, entries: Iterable[Entry], mask_path: Callable[[str], Path]) -> Iterator[tuple[Entry, str]]:
        """The given entries of masks, each with its run-length row.

        Raises:
            ImageError: a mask cannot be read.
            UsageError: it is not clear which values of a mask of the user are car.
        """
        for entry in entries:
            if entry.kept:
                path = mask_path(entry.key)
                values = decide_values(path, [path])
                yield entry, rle.encode_packed(read_mask(path, values))
                continue
            row = self._read(entry.key)
            if row is not None and row[1] == [entry.source_bytes, entry.source_time]:
                yield entry, row[2]
            else:
                yield entry, rle.encode_packed(read_mask(mask_path(entry.key)))

    def _read(self, key: str) -> tuple[str, list[int], str] | None:
        if key not in self._offsets:
            return None
        self._file.seek(self._offsets[key])
        return _parse(self._file.readline())


def drop_rows(path: Path, keys: Collection[str]) -> None:
    """Remove the rows of some keys from the file of a spool, and lines that are no rows.

    Raises:
        CarvanaBatchError: the file cannot be read or written.
    """
    try:
        with path.open("rb") as file, atomic_writer(path) as kept:
            for line in file:
                if (row := _parse(line)) is not None and row[0] not in keys:
                    kept.write(b"\n" + line.rstrip(b"\n"))
    except OSError as error:
        raise read_error(path, error) from error


def _parse(line: bytes) -> tuple[str, list[int], str] | None:
    """Key, size and time of the photo, and row; None for an incomplete line."""
    try:
        key, source, runs = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    sound = isinstance(key, str) and isinstance(source, list) and isinstance(runs, str)
    return (key, source, runs) if sound and RUNS.fullmatch(runs) else None
