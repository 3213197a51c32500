"""Write the masks of a folder as the competition's CSV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.keys import match_ids, pairing_name, row_id
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.folder import Reading, decide_values
from carvana_batch.masks.read import read_mask
from carvana_batch.masks.values import MaskValues, describe_corners
from carvana_batch.parallel import map_in_order
from carvana_batch.submission.limits import KeptText
from carvana_batch.submission.table import (
    COMPETITION_SIZE,
    HEADER,
    SubmissionSummary,
    check_row,
    check_submission_name,
    read_lines,
    refuse_other_file,
    write_table,
)
from carvana_batch.text import NAMED, list_names, shown
from carvana_batch.values import Failure

BATCH = 8
"""Masks per task of a thread; one mask per task would cost noticeably more."""

SIZE_ADVICE = (
    "The competition wants masks of the photos' size; for other photos use --size WIDTHxHEIGHT or --size any."
)


VALUE_ADVICE = "Say with --car-value N which of them is car."


@dataclass(frozen=True, slots=True)
class Sample:
    """The header of a sample submission, and its photos in their order: id -> name as written there."""

    path: Path
    header: Sequence[str]
    names: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _MaskFile:
    """A mask to encode, by its id, and the name of its photo in the CSV."""

    id: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class _Row:
    """The run-length row of a mask, and whether the mask covers its corners, as if it were inverted."""

    runs: str
    covers_corners: bool


def write_submission(
    masks: Path,
    target: Path,
    size: tuple[int, int] | None = COMPETITION_SIZE,
    *,
    sample: Path | None = None,
    car_values: Collection[int] = (),
    workers: int | None = None,
    advice: str = "",
    on_progress: Callable[[int, int], object] = lambda *_: None,
    reading: Reading = contextlib.nullcontext,
) -> SubmissionSummary:
    """Write the masks of a folder as ``<id>.jpg,<run-length row>``, in the order of their ids.

    The file is written atomically, and the same masks always give the same bytes.

    Args:
        masks: the folder.
        target: the file to write; its name ends in .csv, .csv.gz or .zip.
        size: (width, height) that every mask must have; None allows any size.
        sample: a submission (see ``read_sample``) that gives the header, the names of the photos and their
            order; the masks must be exactly those of its ids.
        car_values: grey levels or palette indexes that are car, if the masks do not simply have two values of
            which the higher is car.
        workers: threads that read masks; by default one per core.
        advice: last sentence of the message if masks cannot be read.
        on_progress: called as ``on_progress(done, total)`` after each mask.
        reading: see ``Reading``.

    Raises:
        UsageError: the target, the sample or the folder cannot be used.
        ImageError: masks cannot be read or have another size. Reading stops after ``NAMED`` of them, and the
            message names these.
        CarvanaBatchError: see :func:`atomic_writer`.
    """
    check_submission_name(target)
    header: Sequence[str] = HEADER
    if sample is None:
        files = [_MaskFile(mask_id, f"{mask_id}.jpg", path) for mask_id, path in find_masks(masks).items()]
    else:
        if target.exists() and sample.exists() and target.samefile(sample):
            raise UsageError(f"{shown(target)} is the sample itself. Give -o another name.")
        wanted = read_sample(sample)
        header = wanted.header
        files = _match(masks, find_masks(masks), wanted)

    refuse_other_file(target, "-o", header)

    def encode() -> Iterator[tuple[str, str]]:  # starts when the target has been checked
        paths = [file.path for file in files]
        values = decide_values(masks, paths, car_values, advice=VALUE_ADVICE, reading=reading)
        for name, row in _encode_files(files, values, size, workers, advice, on_progress, reading):
            covers_corners.append(row.covers_corners)
            yield name, row.runs

    covers_corners: list[bool] = []
    summary = write_table(target, header, encode())
    return replace(summary, doubt=describe_corners(covers_corners, f"the masks in {shown(masks)}"))


def write_rows(target: Path, rows: Iterable[tuple[str, str]]) -> SubmissionSummary:
    """Write (id, run-length row) pairs in the given order, in the format of ``write_submission``.

    Raises:
        UsageError: a submission cannot be written at ``target``.
        CarvanaBatchError: see :func:`atomic_writer`.
    """
    return write_table(target, HEADER, ((f"{mask_id}.jpg", runs) for mask_id, runs in rows))


def read_sample(path: Path) -> Sample:
    """Read the header and the photos of a sample submission; its run-length rows are not kept.

    Raises:
        UsageError: the file cannot be read, has no header or no rows, a row does not have two fields, or an
            id occurs more than once.
    """
    names: dict[str, str] = {}
    seen: set[str] = set()
    repeated: list[str] = []
    with contextlib.closing(read_lines(path)) as lines:
        _, header = next(lines)
        text = KeptText(path)
        for line, fields in lines:
            if problem := check_row(fields):
                raise UsageError(f"{shown(path)}, line {line}: {problem}")
            photo_id = row_id(fields[0])
            if pairing_name(photo_id) in seen:
                repeated.append(text.keep(photo_id))
            seen.add(pairing_name(photo_id))
            names.setdefault(photo_id, text.keep(fields[0]))
    if repeated:
        raise UsageError(
            f"The sample {shown(path)} has ids more than once, so it is not clear where their rows belong."
            f"{list_names('Rows whose id came before', repeated)}"
        )
    if not names:
        raise UsageError(f"The sample {shown(path)} has a header and no rows.")
    return Sample(path, header, names)


def _match(folder: Path, found: Mapping[str, Path], sample: Sample) -> list[_MaskFile]:
    """Return the masks of the sample's ids, in its order."""
    masks = match_ids(sample.names, found)
    missing = [name for photo_id, name in sample.names.items() if photo_id not in masks]
    matched = set(masks.values())
    extra = [mask_id for mask_id in found if mask_id not in matched]
    if missing or extra:
        subfolders = {
            mask_id.rpartition("/")[0] for mask_id in extra if mask_id.rpartition("/")[2] in sample.names
        }
        hint = ""
        if len(subfolders) == 1:
            hint = f" Did you mean the folder {shown(folder / subfolders.pop())}?"
        raise UsageError(
            f"The masks of {shown(folder)} are not those of {shown(sample.path)}, which has"
            f" {len(sample.names):,} ids: a submission has a row for each of them and no other.{hint}"
            f"{list_names('Ids without a mask', missing)}"
            f"{list_names('Masks whose id is not in the sample', extra)}"
        )
    return [_MaskFile(photo_id, name, found[masks[photo_id]]) for photo_id, name in sample.names.items()]


def _encode_files(
    files: Sequence[_MaskFile],
    values: MaskValues,
    size: tuple[int, int] | None,
    workers: int | None,
    advice: str,
    on_progress: Callable[[int, int], object],
    reading: Reading,
) -> Iterator[tuple[str, _Row]]:
    """Yield the photo and the row of each mask.

    After the first mask that cannot be used, no more rows are yielded, and further masks are read only to
    name all unusable ones together.
    """
    failures: list[Failure] = []
    step = min(max(len(files) // 100, 1), BATCH)  # small batches, so that few masks are shared out evenly
    batches = [files[first : first + step] for first in range(0, len(files), step)]
    with contextlib.closing(
        map_in_order(partial(_encode_batch, values=values, size=size, reading=reading), batches, workers)
    ) as encoded:
        rows = chain.from_iterable(encoded)
        for done, (file, row) in enumerate(zip(files, rows, strict=True), start=1):
            if isinstance(row, Failure):
                failures.append(row)
                if len(failures) == NAMED:
                    break
            elif not failures:
                yield file.name, row
            on_progress(done, len(files))
    if failures:
        raise _summarise(failures, advice)


def _encode_batch(
    files: Sequence[_MaskFile], values: MaskValues, size: tuple[int, int] | None, reading: Reading
) -> list[_Row | Failure]:
    return [_encode_file(file, values, size, reading) for file in files]


def _encode_file(
    file: _MaskFile, values: MaskValues, size: tuple[int, int] | None, reading: Reading
) -> _Row | Failure:
    path = file.path
    try:
        with reading(path):
            mask = read_mask(path, values)
    except ImageError as error:
        return Failure(file.id, "read", str(error), str(path))
    if size is not None and (mask.width, mask.height) != size:
        reason = f"{shown(path)} is {mask.width}x{mask.height} pixels, not {size[0]}x{size[1]}."
        return Failure(file.id, "size", reason, str(path))
    return _Row(rle.encode_packed(mask), mask.covers_corners)


def _summarise(failures: Sequence[Failure], advice: str) -> ImageError:
    """Make one error of all failures, with advice if any mask has the wrong size, or cannot be read."""
    parts = [failure.reason for failure in failures]
    if len(failures) > 1:
        count = f"{len(failures)} masks" if len(failures) < NAMED else f"At least {NAMED} masks"
        parts = [f"{count} cannot be used:", *(f"  {part}" for part in parts)]
    if any(failure.stage == "size" for failure in failures):
        parts.append(SIZE_ADVICE)
    if advice and any(failure.stage == "read" for failure in failures):
        parts.append(advice)
    return ImageError((" " if len(failures) == 1 else "\n").join(parts))
