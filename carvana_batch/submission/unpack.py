"""Turn a submission back into masks: a PNG for each row of the CSV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.files import WriteError, check_out_folder, concerns_one_file, write_file
from carvana_batch.inputs.keys import (
    fold_key,
    mask_id,
    mask_name_problem,
    pairing_name,
    row_id,
)
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.layout import SAMPLE, find_clear_line, find_misfit
from carvana_batch.masks.png import encode_mask
from carvana_batch.masks.read import MASK_PIXEL_LIMIT
from carvana_batch.parallel import map_in_order
from carvana_batch.submission.limits import MAX_FAILED_ROWS, KeptText
from carvana_batch.submission.table import COMPETITION_SIZE, check_row, read_lines
from carvana_batch.text import cut_short, list_names, shown
from carvana_batch.values import Failure, PackedMask

CHUNK_ROWS = 256
"""Rows that are in memory at a time, at most."""

CHUNK_CHARACTERS = 2**22
"""Once so many are in memory, no more rows are read before these are written. 256 usual rows have half."""

LONGEST_SAMPLE = 200_000
"""Longer rows, in characters, are not kept in the sample of rows."""

MAX_NAME_CHARACTERS = 80
"""Longer names are cut short in the ids of failures."""


@dataclass(frozen=True, slots=True)
class DecodeSummary:
    """What was written.

    Attributes:
        masks: number of masks that were written.
        empty: number of them without foreground.
        doubt: a line for the user if the file may not be complete; "" if not.
        failures: the rows without a mask, in the order of the file. ``id`` is the name of the photo as
            written there, cut to ``MAX_NAME_CHARACTERS``; ``source`` is the file and the line number, from 1.
    """

    masks: int
    empty: int
    failures: tuple[Failure, ...]
    doubt: str = ""


@dataclass(slots=True)
class _Survey:
    """What the first reading of the rows has found.

    Attributes:
        total: number of rows.
        failures: those that fail for other reasons than their runs, by line number.
        sample: the runs of the first rows that have some, at most ``SAMPLE``.
        doubts: a line for the user if the file may not be complete.
        last_pixel: the last pixel of all masks, counted from 1, and the line of its row.
    """

    total: int = 0
    failures: dict[int, Failure] = field(default_factory=dict)
    sample: list[str] = field(default_factory=list)
    last_pixel: tuple[int, int] = (0, 0)
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    name: str
    runs: str


def decode_submission(
    source: Path,
    folder: Path,
    size: tuple[int, int] | None = None,
    *,
    order: rle.Order | None = None,
    mask_bits: int = 1,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> DecodeSummary:
    """Write the mask of each row as ``<id>.png`` into a folder.

    An id may contain folders: ``a/b`` for ``a/b.jpg``. A row that cannot be used does not stop the others.
    It fails if it does not describe a mask of this size, if its runs clearly are of another size, if its id
    occurred before, or if ``submit`` and ``score`` would not find its mask in the folder. The file is read
    twice and is never completely in memory.

    Args:
        source: a .csv, .csv.gz or .zip of run-length rows.
        folder: the folder to write into; created if its parent exists.
        size: (width, height) of the photos; None for the competition's, if no row has pixels beyond it.
        order: how the rows count pixels; None for along the rows, if their runs do not speak against it.
        mask_bits: bits per pixel of the PNGs: 1, or 8 for the values 0 and 255.
        overwrite: replace existing masks of the same names.
        workers: threads that write masks; by default one per core.
        on_progress: called as ``on_progress(done, total)`` after each row.

    Raises:
        UsageError: the file or the folder cannot be used, the rows seem to be of another size or order, or
            masks exist already and ``overwrite`` is not set; nothing has been written. Or more than
            ``MAX_FAILED_ROWS`` rows cannot be used; the masks of rows before these may have been written.
        CarvanaBatchError: the disk fails or is full; see :func:`write_file`.
    """
    if size is not None and size[0] * size[1] > MASK_PIXEL_LIMIT:
        raise UsageError(f"--size {size[0]}x{size[1]} has more than {MASK_PIXEL_LIMIT:,} pixels.")
    check_out_folder(folder)
    survey = _survey(source, folder, overwrite)
    if size is None:
        size = COMPETITION_SIZE
        _refuse_pixels_beyond(size, source, survey)
    if order is None:
        _refuse_misfit(size, source, survey)
    total, failures = survey.total, survey.failures
    write = partial(_write_mask, source=source, folder=folder, size=size, order=order, mask_bits=mask_bits)
    masks = empty = 0
    done = len(failures)
    for chunk in _read_chunks(source, failures):
        with contextlib.closing(map_in_order(write, chunk, workers)) as results:
            for row, result in zip(chunk, results, strict=True):
                if isinstance(result, Failure):
                    failures[row.line] = result
                    _refuse_many(source, failures)
                else:
                    masks += 1
                    empty += not result
                done += 1
                on_progress(done, total)
    failed = tuple(failures[line] for line in sorted(failures))
    return DecodeSummary(masks, empty, failed, "".join(survey.doubts))


def _survey(source: Path, folder: Path, overwrite: bool) -> _Survey:
    """Read all rows, without decoding their runs.

    Raises:
        UsageError: there are no rows, or masks would replace, or clash with, those in the folder.
    """
    survey = _Survey()
    first_lines: dict[str, int] = {}
    existing: list[Path] = []
    clashing: list[Path] = []
    present_masks = _find_present_masks(folder)
    with contextlib.closing(read_lines(source, survey.doubts.append)) as rows:
        next(rows)
        ids = KeptText(source)
        for line, fields in rows:
            survey.total += 1
            photo_id = row_id(fields[0])
            problem = check_row(fields) or mask_name_problem(photo_id)
            if not problem:
                first = first_lines.setdefault(ids.keep(fold_key(mask_id(photo_id))), line)
                if first != line:
                    problem = f"line {first} has the same id, or one that many disks take for the same."
            if problem:
                survey.failures[line] = _make_failure(source, line, fields[0], "read", problem)
                _refuse_many(source, survey.failures)
                continue
            runs = fields[1]
            if runs and len(runs) <= LONGEST_SAMPLE and len(survey.sample) < SAMPLE:
                survey.sample.append(runs)
            survey.last_pixel = max(survey.last_pixel, (rle.find_last_pixel(runs), line))
            path = _mask_path(folder, photo_id)
            present = present_masks.get(pairing_name(mask_id(photo_id)), path)
            if present != path:
                clashing.append(present)
            elif not overwrite and os.path.lexists(path):
                existing.append(path)
    if not survey.total:
        raise UsageError(f"{shown(source)} has a header and no rows.")
    if clashing:
        raise UsageError(
            f"{shown(folder)} holds masks of the same ids under other names; submit and score would not know"
            f" which to take. Choose another OUT.{list_names('There already', list(map(str, clashing)))}"
        )
    if existing:
        raise UsageError(
            f"{shown(folder)} holds masks of the same names. Choose another OUT, or replace them with"
            " --overwrite."
            f"{list_names(f'There already, of {survey.total:,} masks', list(map(str, existing)))}"
        )
    return survey


def _refuse_pixels_beyond(size: tuple[int, int], source: Path, survey: _Survey) -> None:
    """Raise UsageError if a row has pixels beyond the size that was assumed."""
    width, height = size
    pixel, line = survey.last_pixel
    if pixel > width * height:
        raise UsageError(
            f"{shown(source)}, line {line}: the runs reach pixel {pixel:,}, but {width}x{height}, which is"
            f" assumed without --size, has {width * height:,}. Give the photos' size by --size WIDTHxHEIGHT."
        )


def _refuse_misfit(size: tuple[int, int], source: Path, survey: _Survey) -> None:
    """Raise UsageError if the rows seem to have another width, or to count pixels down the columns."""
    misfit = find_misfit((runs, size) for runs in survey.sample)
    if misfit is None:
        return
    width, height = size
    line = misfit.line
    advice = (
        f"give the size of the photos: --size {line}xHEIGHT if they are {line} pixels wide; or, if they are"
        f" {line} pixels high and the rows column-major, as in many other competitions, --size WIDTHx{line}"
        " --rle-order columns"
    )
    if misfit.columns:
        advice = (
            "they look column-major, as in many other competitions. Give --rle-order columns; or, if the"
            f" photos are {height} pixels wide, --size {height}xHEIGHT"
        )
    raise UsageError(
        f"The rows of {shown(source)} do not look like masks of {width}x{height} with pixels counted along"
        f" the rows: in {misfit.rows} of {misfit.judged} of them, the lines of the mask are {misfit.line}"
        f" pixels apart, so {advice}. To read them as they are, give --rle-order rows."
    )


def _find_present_masks(folder: Path) -> dict[str, Path]:
    """Return the masks that already exist in the folder, by the ``pairing_name`` of their id."""
    try:
        return {pairing_name(mask): path for mask, path in find_masks(folder).items()}
    except UsageError:  # missing or empty, or submit and score would refuse it anyway
        return {}


def _read_chunks(source: Path, skipped_lines: Collection[int]) -> Iterator[list[_Row]]:
    """Yield lists of rows of the file, without those of some lines."""
    with contextlib.closing(read_lines(source)) as lines:
        next(lines)
        chunk: list[_Row] = []
        characters = 0
        for line, fields in lines:
            if line in skipped_lines:
                continue
            chunk.append(_Row(line, *fields))
            characters += len(fields[1])
            if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
                yield chunk
                chunk, characters = [], 0
        if chunk:
            yield chunk


def _write_mask(
    row: _Row, source: Path, folder: Path, size: tuple[int, int], order: rle.Order | None, mask_bits: int
) -> bool | Failure:
    """Write the mask of a row.

    Returns:
        Whether the mask has foreground, or why it was not written.

    Raises:
        CarvanaBatchError: the disk fails, so that other masks could not be written either.
    """
    fail = partial(_make_failure, source, row.line, row.name)
    path = _mask_path(folder, row_id(row.name))
    try:
        width, height = size
        runs = rle.parse(row.runs, height, width)
        line = find_clear_line(runs, width, height) if order is None else width
        if line != width:
            return fail(
                "decode",
                f"it does not look like a mask of {width}x{height}: the lines of the mask are {line} pixels"
                " apart. Give rows of each size in a file of their own, with --size; or --rle-order rows, to"
                " read it as it is.",
            )
        mask = PackedMask.from_bool(rle.draw(runs, height, width, order or "rows"))
        if not _is_below(folder, path):
            return fail("write", f"its mask would lie outside of {shown(folder)}, where a link leads.")
        write_file(path, encode_mask(mask, mask_bits))
    except rle.RunLengthError as error:
        return fail("decode", str(error))
    except UsageError as error:
        return fail("write", str(error))
    except WriteError as error:
        if concerns_one_file(error):
            return fail("write", str(error))
        raise
    return bool(row.runs.strip())


def _refuse_many(source: Path, failures: dict[int, Failure]) -> None:
    """Raise UsageError once there are more failures than are kept in memory."""
    if len(failures) > MAX_FAILED_ROWS:
        first = failures[min(failures)]
        raise UsageError(
            f"More than {MAX_FAILED_ROWS:,} rows of {shown(source)} cannot be used, so the others are not"
            f" read. The first is {shown(first.source)}: {shown(first.reason)}"
        )


def _mask_path(folder: Path, photo_id: str) -> Path:
    return folder / f"{photo_id}.png"


def _is_below(folder: Path, path: Path) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder).rstrip(os.sep) + os.sep)


def _make_failure(source: Path, line: int, name: str, stage: str, reason: str) -> Failure:
    return Failure(cut_short(name, MAX_NAME_CHARACTERS), stage, reason, f"{source}, line {line}")
