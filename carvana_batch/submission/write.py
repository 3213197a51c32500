"""A folder of masks becomes the competition's CSV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.keys import without_suffix
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.read import read_mask
from carvana_batch.parallel import map_in_order
from carvana_batch.submission.table import (
    COMPETITION_SIZE,
    HEADER,
    SubmissionSummary,
    _write_table,
    check_row,
    check_submission_name,
    read_lines,
)
from carvana_batch.text import NAMED, list_names, shown

BATCH = 8
"""Masks that a thread takes at once: handing over each by itself costs noticeably more."""

SIZE_ADVICE = (
    "The competition wants masks of the photos' size; for other photos use --size WIDTHxHEIGHT or --size any."
)


@dataclass(frozen=True, slots=True)
class Sample:
    """The header of a sample submission, and its photos in their order: id -> name as it stands there."""

    path: Path
    header: Sequence[str]
    names: Mapping[str, str] = field(repr=False)


class _SizeError(ImageError):
    """A mask whose size is not the one that was asked for."""


def write_submission(
    masks: Path,
    target: Path,
    size: tuple[int, int] | None = COMPETITION_SIZE,
    *,
    sample: Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> SubmissionSummary:
    """Write the masks of a folder as ``<id>.jpg,<run-length row>``, in the order of their ids.

    ``target`` ends in .csv, .csv.gz or .zip and appears whole or not at all; the same masks give the same
    bytes. ``size`` is the width and height that every mask must have, None allows any. ``sample`` is a
    submission (see ``read_sample``) that gives the header, the names of the photos and their order; the
    masks must be those of its ids, no less and no more. ``workers`` threads read the masks (default: one a
    core), and ``on_progress(done, total)`` is called after each mask.

    Raises UsageError for a target, a sample or a masks folder that cannot be used, ImageError where masks
    cannot be read or have another size, and what ``atomic_writer`` raises. The error names ``NAMED`` masks
    at most; after so many it is not looked for more.
    """
    check_submission_name(target)
    header: Sequence[str] = HEADER
    if sample is None:
        found = find_masks(masks)
        names = [f"{mask_id}.jpg" for mask_id in found]
        paths = list(found.values())
    else:
        if target.exists() and sample.exists() and target.samefile(sample):
            raise UsageError(f"{shown(target)} is the sample itself. Give -o another name.")
        wanted = read_sample(sample)
        header, names = wanted.header, list(wanted.names.values())
        paths = _match(masks, find_masks(masks), wanted)
    return _write_table(target, header, _encode_files(names, paths, size, workers, on_progress))


def write_rows(target: Path, rows: Iterable[tuple[str, str]]) -> SubmissionSummary:
    """Write (id, run-length row) pairs as ``write_submission`` does, in the order in which they come.

    Raises UsageError for a target that cannot be written, and what ``atomic_writer`` raises.
    """
    return _write_table(target, HEADER, ((f"{mask_id}.jpg", runs) for mask_id, runs in rows))


def read_sample(path: Path) -> Sample:
    """The header and the photos of a sample submission; the run-length texts are not kept.

    Raises what ``read_rows`` raises; ids that come twice are counted and the first ``NAMED`` named.
    """
    names: dict[str, str] = {}
    repeated: list[str] = []
    with contextlib.closing(read_lines(path)) as lines:
        _, header = next(lines)
        for line, fields in lines:
            if problem := check_row(fields):
                raise UsageError(f"{shown(path)}, line {line}: {problem}")
            photo_id = without_suffix(fields[0])
            if photo_id in names:
                repeated.append(photo_id)
            names.setdefault(photo_id, fields[0])
    if repeated:
        raise UsageError(
            f"The sample {shown(path)} has ids more than once, so it is not clear where their rows belong."
            f"{list_names('Rows whose id came before', repeated)}"
        )
    if not names:
        raise UsageError(f"The sample {shown(path)} has a header and no rows.")
    return Sample(path, header, names)


def _match(folder: Path, found: Mapping[str, Path], sample: Sample) -> list[Path]:
    """The masks of the sample's ids, in its order."""
    missing = [name for photo_id, name in sample.names.items() if photo_id not in found]
    extra = [mask_id for mask_id in found if mask_id not in sample.names]
    if missing or extra:
        below = {
            mask_id.rpartition("/")[0] for mask_id in extra if mask_id.rpartition("/")[2] in sample.names
        }
        hint = f" Did you mean the folder {shown(folder / below.pop())}?" if len(below) == 1 else ""
        raise UsageError(
            f"The masks of {shown(folder)} are not those of {shown(sample.path)}, which has"
            f" {len(sample.names):,} ids: a submission has a row for each of them and no other.{hint}"
            f"{list_names('Ids without a mask', missing)}"
            f"{list_names('Masks whose id is not in the sample', extra)}"
        )
    return [found[photo_id] for photo_id in sample.names]


def _encode_files(
    names: Sequence[str],
    paths: Sequence[Path],
    size: tuple[int, int] | None,
    workers: int | None,
    on_progress: Callable[[int, int], object],
) -> Iterator[tuple[str, str]]:
    """Each name with the run-length row of its mask; the masks after a bad one are only looked at."""
    faults: list[ImageError] = []
    step = min(max(len(paths) // 100, 1), BATCH)  # of a few masks, no thread takes more than its share
    batches = [paths[first : first + step] for first in range(0, len(paths), step)]
    with contextlib.closing(map_in_order(partial(_encode_batch, size=size), batches, workers)) as encoded:
        rows = chain.from_iterable(encoded)
        for done, (name, row) in enumerate(zip(names, rows, strict=True), start=1):
            if isinstance(row, ImageError):
                faults.append(row)
                if len(faults) == NAMED:
                    break
            elif not faults:
                yield name, row
            on_progress(done, len(paths))
    if faults:
        raise _as_one(faults)


def _encode_batch(paths: Sequence[Path], size: tuple[int, int] | None) -> list[str | ImageError]:
    return [_encode_file(path, size) for path in paths]


def _encode_file(path: Path, size: tuple[int, int] | None) -> str | ImageError:
    try:
        mask = read_mask(path)
    except ImageError as error:
        return error
    if size is not None and (mask.width, mask.height) != size:
        return _SizeError(f"{shown(path)} is {mask.width}x{mask.height} pixels, not {size[0]}x{size[1]}.")
    return rle.encode_packed(mask)


def _as_one(faults: Sequence[ImageError]) -> ImageError:
    parts = [str(fault) for fault in faults]
    if len(faults) > 1:
        count = f"{len(faults)} masks" if len(faults) < NAMED else f"At least {NAMED} masks"
        parts = [f"{count} cannot be used:", *(f"  {part}" for part in parts)]
    if any(isinstance(fault, _SizeError) for fault in faults):
        parts.append(SIZE_ADVICE)
    return ImageError((" " if len(faults) == 1 else "\n").join(parts))
