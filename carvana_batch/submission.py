"""The competition's CSV, a run-length row for each mask: written from a folder of masks, and read.

Its first line is a header of two names, the others are ``<photo>,<run-length row>``.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

from carvana_batch import rle
from carvana_batch.atomic import atomic_writer, read_error
from carvana_batch.images import read_mask
from carvana_batch.inputs import IMAGE_SUFFIXES, shown
from carvana_batch.masks import find_masks, map_in_order, mask_id
from carvana_batch.records import ImageError, UsageError
from carvana_batch.tables import write_row

COMPETITION_SIZE = (1918, 1280)
"""Width and height of the competition's photos."""

COMPETITION_ROWS = 100_064
"""Photos in the competition's test set; a submission has a row for each."""

HEADER = ("img", "rle_mask")
SUFFIXES = (".csv", ".csv.gz", ".zip")

FIELD_LIMIT = 2**26
"""Characters in a field that is read. More cannot be a row, but the rest of a file after a lost quote."""

NAMED = 5
"""Ids, masks or reasons that an error or a summary names at most."""

BATCH = 8
"""Masks that a thread takes at once: handing over each by itself costs noticeably more."""

GZIP_LEVEL = 4
"""Of the rows of the val masks, in a quarter of the time that 6 takes, 3 % more bytes."""

SIZE_ADVICE = (
    "The competition wants masks of the photos' size; for other photos use --size WIDTHxHEIGHT or --size any."
)

DAMAGE = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged, locked or unusually packed file raises."""


@dataclass(frozen=True, slots=True)
class SubmissionSummary:
    """What was written: rows without the header, how many of them are empty, size and hash of the file.

    ``first_empty`` are the photos of the first empty rows, ``NAMED`` at most.
    """

    rows: int
    empty: int
    bytes: int
    sha256: str
    first_empty: tuple[str, ...] = ()


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


def read_rows(path: Path) -> dict[str, str]:
    """The run-length texts of a file such as ``write_rows`` writes, or as the competition publishes, by id.

    The id is that of a mask of the photo's name (see ``masks.mask_id``), ``00087a6bd4dc_01`` for
    ``00087a6bd4dc_01.jpg``. The texts are not looked at; ``rle.decode`` does that. Blank lines are passed
    over.

    Raises UsageError for a file that cannot be read or has no header, a row that has not two fields, and an
    id that comes twice.
    """
    found: dict[str, str] = {}
    with contextlib.closing(read_lines(path)) as lines:
        next(lines)
        for line, fields in lines:
            problem = check_row(fields)
            photo_id = mask_id(without_suffix(fields[0]))
            if not problem and photo_id in found:
                problem = f"{shown(photo_id)} already has a row; remove one."
            if problem:
                raise UsageError(f"{shown(path)}, line {line}: {problem}")
            found[photo_id] = fields[1]
    return found


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


def read_lines(path: Path) -> Generator[tuple[int, list[str]]]:
    """The (number, fields) of the lines of a .csv, .csv.gz or .zip, the header first, while it is read.

    Lines count from 1; blank ones are passed over. Except for the header, the fields are as they come:
    ``check_row`` says whether they are a row. Close it to close the file.

    Raises UsageError for a file that cannot be read or has no header.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"Cannot read {shown(path)}: run-length rows are in *{', *'.join(SUFFIXES)}.")
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))  # the usual one is 128 KiB
    try:
        with _open_rows(path) as text:
            rows = csv.reader(_split_lines(text), strict=True)
            try:
                header = next(rows, [])
                _check_header(header, path)
                yield rows.line_num, header
                yield from ((rows.line_num, row) for row in rows if row)
            except csv.Error as error:
                raise UsageError(f"{shown(path)}, line {rows.line_num}: {error}.") from error
    except DAMAGE as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else f"it is damaged: {error}"
        )
        raise UsageError(f"Cannot read {shown(path)}: {shown(reason.removesuffix('.'))}.") from error


def _split_lines(text: IO[str]) -> Iterator[str]:
    """The lines of ``text``, with their ends; a few packed bytes may hold one that fills the memory."""
    while line := text.readline(FIELD_LIMIT):
        if len(line) == FIELD_LIMIT:
            raise csv.Error(f"line longer than {FIELD_LIMIT:,} characters")
        yield line


def check_row(fields: Sequence[str]) -> str:
    """What is wrong with a line that should be ``<photo>,<run-length row>``; "" if nothing is."""
    if len(fields) != len(HEADER):
        return f"a row is <photo>,<runs>, and this one has {len(fields)} field(s)."
    return "" if fields[0] else "a row is <photo>,<runs>, and this one has no name."


def without_suffix(name: str) -> str:
    """A photo's id: its name without the suffix of an image."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in IMAGE_SUFFIXES else name


def list_names(what: str, names: Sequence[str]) -> str:
    """How many names there are and the first of them, a line each; nothing if there are none."""
    if not names:
        return ""
    lines = [f"{what}: {len(names):,}", *(f"  {shown(name)}" for name in names[:NAMED])]
    if len(names) > NAMED:
        lines.append(f"  ... and {len(names) - NAMED:,} more")
    return "".join(f"\n{line}" for line in lines)


def check_submission_name(target: Path) -> None:
    """Raise UsageError, before any work, where a submission cannot be written at ``target``."""
    if not target.name.lower().endswith(SUFFIXES):
        raise UsageError(f"Cannot write {shown(target)}: a submission is named *{', *'.join(SUFFIXES)}.")


def _write_table(target: Path, header: Sequence[str], rows: Iterable[tuple[str, str]]) -> SubmissionSummary:
    check_submission_name(target)
    count = empty = 0
    first_empty: list[str] = []
    with atomic_writer(target) as file, _open_text(file, target) as text:
        write_row(text, header)
        for name, runs in rows:
            write_row(text, (name, runs))
            count += 1
            empty += not runs
            if not runs and len(first_empty) < NAMED:
                first_empty.append(name)
    try:
        with target.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = target.stat().st_size
    except OSError as error:
        raise read_error(target, error) from error
    return SubmissionSummary(count, empty, size, digest, tuple(first_empty))


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


@contextlib.contextmanager
def _open_text(file: IO[bytes], target: Path) -> Iterator[IO[str]]:
    """Text into ``file``, compressed as the target's suffix says; nothing in it depends on the clock."""
    name = target.name.lower()
    with contextlib.ExitStack() as stack:
        binary: IO[bytes] | gzip.GzipFile = file
        if name.endswith(".gz"):
            binary = stack.enter_context(
                gzip.GzipFile("", "wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0)
            )
        elif name.endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(file, "w"))
            member = zipfile.ZipInfo(target.stem.removesuffix(".csv") + ".csv")
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            member.create_system = 3  # Unix, whatever this is written on
            binary = stack.enter_context(archive.open(member, "w", force_zip64=True))
        text = io.TextIOWrapper(binary, "utf-8", errors="surrogateescape", newline="")
        try:
            yield text
        finally:
            text.detach()  # flushes, and leaves closing to those who opened


def _check_header(fields: Sequence[str], path: Path) -> None:
    """Two names, neither of them a photo or a run-length row."""
    if (
        len(fields) != len(HEADER)
        or not all(fields)
        or without_suffix(fields[0]) != fields[0]
        or rle.NUMBER.match(fields[1])
    ):
        raise UsageError(
            f"{shown(path)} begins with {shown(','.join(fields)[:40])!r}, not with {','.join(HEADER)} or a"
            " header like it: these are no run-length rows."
        )


@contextlib.contextmanager
def _open_rows(path: Path) -> Iterator[IO[str]]:
    """Text from ``path``, which is unpacked as its suffix says."""
    name = path.name.lower()
    with contextlib.ExitStack() as stack:
        binary: IO[bytes] | gzip.GzipFile = stack.enter_context(path.open("rb"))
        if name.endswith(".gz"):
            binary = stack.enter_context(gzip.GzipFile(fileobj=binary))
        elif name.endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(binary))
            binary = stack.enter_context(archive.open(_only_table(archive, path)))
        text = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="")
        yield stack.enter_context(text)


def _only_table(archive: zipfile.ZipFile, path: Path) -> str:
    """The one CSV in the archive; archives made on a Mac hold hidden twins of their files."""
    tables = [
        name
        for name in archive.namelist()
        if name.lower().endswith(".csv") and not name.rpartition("/")[2].startswith("._")
    ]
    if len(tables) != 1:
        raise UsageError(
            f"{shown(path)} holds {len(tables)} CSV files; it must hold one, of run-length rows."
        )
    return tables[0]
