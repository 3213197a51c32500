"""A submission back into masks: a PNG for each row of the CSV."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.files import WriteError, check_out_folder, write_file
from carvana_batch.inputs.keys import LONGEST_NAME, fold_key, mask_id, without_suffix
from carvana_batch.inputs.masks import EXTRA_FOLDERS, find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.png import encode_mask
from carvana_batch.masks.read import MASK_PIXEL_LIMIT
from carvana_batch.parallel import map_in_order
from carvana_batch.submission.table import COMPETITION_SIZE, check_row, read_lines
from carvana_batch.text import list_names, shown

PORTION = 256
"""Rows that are in memory together."""

SHOWN_CHARACTERS = 80

LONGEST_PATH = 4000
"""Bytes of a path below the folder: no common disk takes more."""

NOT_THE_DISK = {errno.EEXIST, errno.EILSEQ, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR}
"""Errors that come from the name of one file and what lies at its place; the next one may do."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row without a mask: its line in the file, counted from 1, the photo as it stands there, and why.

    A long name is cut short.
    """

    line: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class DecodeSummary:
    """Masks that were written, how many of them are empty, and the rows that could not be used."""

    masks: int
    empty: int
    failures: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    name: str
    runs: str


def decode_submission(
    source: Path,
    folder: Path,
    size: tuple[int, int] = COMPETITION_SIZE,
    *,
    mask_bits: int = 1,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> DecodeSummary:
    """Write the mask of each row of a .csv, .csv.gz or .zip as ``<id>.png`` into a folder.

    ``size`` is the width and height of the photos, ``mask_bits`` 1 or 8 (0 and 255) bits a pixel. An id may
    lie in folders, ``a/b`` for ``a/b.jpg``. A row that cannot be used does not stop the others: it is bad if
    it describes no mask of this size, if its id came before, or if there is no place for its mask in the
    folder where ``submit`` and ``score`` would find it. The file is read twice, and is never in memory
    whole. ``workers`` threads write the masks (default: one a core), and ``on_progress(done, total)`` is
    called after each row.

    Raises UsageError, with nothing written, for a file or a folder that cannot be used and for masks that
    are there already, unless ``overwrite`` is set; and what ``sinks.write_file`` raises for the disk.
    """
    if size[0] * size[1] > MASK_PIXEL_LIMIT:
        raise UsageError(f"--size {size[0]}x{size[1]} has more than {MASK_PIXEL_LIMIT:,} pixels.")
    check_out_folder(folder)
    total, failures = _survey(source, folder, overwrite)
    write = partial(_write_mask, folder=folder, size=size, mask_bits=mask_bits)
    masks = empty = 0
    done = len(failures)
    for portion in _read_portions(source, failures):
        with contextlib.closing(map_in_order(write, portion, workers)) as results:
            for row, result in zip(portion, results, strict=True):
                if isinstance(result, str):
                    failures[row.line] = _bad_row(row.line, row.name, result)
                else:
                    masks += 1
                    empty += not result
                done += 1
                on_progress(done, total)
    return DecodeSummary(masks, empty, tuple(failures[line] for line in sorted(failures)))


def find_fault(photo_id: str) -> str:
    """Why an id cannot be the name of a mask below an out folder; "" if it can.

    Whether the disk takes the name is not looked at.
    """
    parts = photo_id.split("/")
    if "\0" in photo_id:
        return "the name holds a NUL byte, which no file can have."
    if ".." in parts:
        return 'the name contains "..", so its mask would lie outside of OUT.'
    if photo_id.startswith("/"):
        return "the name is an absolute path, so its mask would lie outside of OUT."
    if "" in parts:
        return "the name has a part without characters."
    if any(part.startswith(".") for part in parts):
        return "its mask would be hidden, and submit and score pass over hidden files."
    longest = max(len(os.fsencode(part)) for part in (*parts[:-1], parts[-1] + ".png"))
    if longest > LONGEST_NAME or len(os.fsencode(photo_id)) > LONGEST_PATH:
        return "the name is too long for a file."
    if len(parts) > 1 and parts[0] in EXTRA_FOLDERS:
        return f"its mask would lie in {parts[0]}, where submit and score do not look for masks."
    return ""


def _survey(source: Path, folder: Path, overwrite: bool) -> tuple[int, dict[int, BadRow]]:
    """How many rows there are, and those, by line, that are bad without a look at their runs."""
    failures: dict[int, BadRow] = {}
    lines: dict[str, int] = {}
    existing: list[Path] = []
    clashing: list[Path] = []
    masks_there = _find_masks_there(folder)
    total = 0
    with contextlib.closing(read_lines(source)) as rows:
        next(rows)
        for line, fields in rows:
            total += 1
            photo_id = without_suffix(fields[0])
            problem = check_row(fields) or find_fault(photo_id)
            if not problem:
                first = lines.setdefault(fold_key(mask_id(photo_id)), line)
                if first != line:
                    problem = f"line {first} has the same id, or one that many disks take for the same."
            if problem:
                failures[line] = _bad_row(line, fields[0], problem)
                continue
            path = _mask_path(folder, photo_id)
            there = masks_there.get(mask_id(photo_id), path)
            if there != path:
                clashing.append(there)
            elif not overwrite and os.path.lexists(path):
                existing.append(path)
    if not total:
        raise UsageError(f"{shown(source)} has a header and no rows.")
    if clashing:
        raise UsageError(
            f"{shown(folder)} holds masks of the same ids under other names; submit and score would not know"
            f" which to take. Choose another OUT.{list_names('There already', list(map(str, clashing)))}"
        )
    if existing:
        raise UsageError(
            f"{shown(folder)} holds masks of the same names. Choose another OUT, or replace them with"
            f" --overwrite.{list_names(f'There already, of {total:,} masks', list(map(str, existing)))}"
        )
    return total, failures


def _find_masks_there(folder: Path) -> dict[str, Path]:
    """The masks that are in the folder before, by id; none where it is missing or holds nothing usable."""
    try:
        return find_masks(folder)
    except UsageError:  # missing, empty, or of no use to submit and score already
        return {}


def _read_portions(source: Path, without: Collection[int]) -> Iterator[list[_Row]]:
    """The rows of the file in lists, except those of some lines."""
    with contextlib.closing(read_lines(source)) as lines:
        next(lines)
        rows = (_Row(line, *fields) for line, fields in lines if line not in without)
        while portion := list(islice(rows, PORTION)):
            yield portion


def _write_mask(row: _Row, folder: Path, size: tuple[int, int], mask_bits: int) -> bool | str:
    """Whether the mask that was written has foreground; or why none could be written."""
    path = _mask_path(folder, without_suffix(row.name))
    try:
        mask = rle.decode_packed(row.runs, size[1], size[0])
        if not _is_below(folder, path):
            return f"its mask would lie outside of {shown(folder)}, where a link leads."
        write_file(path, encode_mask(mask, mask_bits))
    except (rle.RunLengthError, UsageError) as error:
        return str(error)
    except WriteError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in NOT_THE_DISK:
            return str(error)
        raise
    return bool(row.runs.strip())


def _mask_path(folder: Path, photo_id: str) -> Path:
    return folder / f"{photo_id}.png"


def _is_below(folder: Path, path: Path) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder).rstrip(os.sep) + os.sep)


def _bad_row(line: int, name: str, reason: str) -> BadRow:
    return BadRow(line, name if len(name) <= SHOWN_CHARACTERS else name[:SHOWN_CHARACTERS] + "...", reason)
