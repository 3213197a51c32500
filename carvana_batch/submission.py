"""The competition's CSV, a run-length row for each mask: written from a folder of masks, and read."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from carvana_batch import rle
from carvana_batch.atomic import atomic_writer
from carvana_batch.images import read_mask
from carvana_batch.inputs import IMAGE_SUFFIXES, shown
from carvana_batch.masks import find_masks, map_in_order
from carvana_batch.records import ImageError, UsageError

COMPETITION_SIZE = (1918, 1280)
"""Width and height of the competition's photos."""

COMPETITION_ROWS = 100_064
"""Photos in the competition's test set; a submission has a row for each."""

HEADER = ("img", "rle_mask")
SUFFIXES = (".csv", ".csv.gz", ".zip")

FIELD_LIMIT = 2**26
"""Characters in a field that is read. More cannot be a row, but the rest of a file after a lost quote."""

DAMAGE = (EOFError, OSError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)
"""What reading a damaged, locked or unusually packed file raises."""


@dataclass(frozen=True, slots=True)
class SubmissionSummary:
    """What was written: rows without the header, how many of them are empty, size and hash of the file."""

    rows: int
    empty: int
    bytes: int
    sha256: str


def write_submission(
    masks: Path,
    target: Path,
    size: tuple[int, int] | None = COMPETITION_SIZE,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> SubmissionSummary:
    """Write the masks of a folder as ``<id>.jpg,<run-length row>``, in the order of their ids.

    ``target`` ends in .csv, .csv.gz or .zip and appears whole or not at all; the same masks give the same
    bytes. ``size`` is the width and height that every mask must have, None allows any. ``workers`` threads
    read the masks (default: one a core), and ``on_progress(done, total)`` is called after each row.

    Raises UsageError for a target or a masks folder that cannot be used, ImageError for the first mask
    that cannot be read or has another size, and what ``atomic_writer`` raises.
    """
    check_submission_name(target)
    found = find_masks(masks)
    encoded = map_in_order(partial(_encode_file, size=size), list(found.values()), workers)

    def rows() -> Iterator[tuple[str, str]]:
        for done, row in enumerate(zip(found, encoded, strict=True), start=1):
            yield row
            on_progress(done, len(found))

    return write_rows(target, rows())


def write_rows(target: Path, rows: Iterable[tuple[str, str]]) -> SubmissionSummary:
    """Write (id, run-length row) pairs as ``write_submission`` does, in the order in which they come.

    Raises UsageError for a target that cannot be written, and what ``atomic_writer`` raises.
    """
    check_submission_name(target)
    count = empty = 0
    with atomic_writer(target) as file, _open_text(file, target) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for mask_id, runs in rows:
            writer.writerow((f"{mask_id}.jpg", runs))
            count += 1
            empty += not runs
    with target.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return SubmissionSummary(rows=count, empty=empty, bytes=target.stat().st_size, sha256=digest)


def read_rows(path: Path) -> dict[str, str]:
    """The run-length texts of a file such as ``write_rows`` writes, or as the competition publishes, by id.

    The id is the photo's name without the suffix of an image, ``00087a6bd4dc_01`` for
    ``00087a6bd4dc_01.jpg``. The texts are not looked at; ``rle.decode`` does that. Blank lines are passed
    over.

    Raises UsageError for a file that cannot be read, another header than ``img,rle_mask``, a row that has
    not two fields, and an id that comes twice.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"Cannot read {shown(path)}: run-length rows are in *{', *'.join(SUFFIXES)}.")
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))  # the usual one is 128 KiB
    try:
        with _open_rows(path) as text:
            return _parse_rows(text, path)
    except DAMAGE as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else f"it is damaged: {error}"
        )
        raise UsageError(f"Cannot read {shown(path)}: {shown(reason.removesuffix('.'))}.") from error


def check_submission_name(target: Path) -> None:
    """Raise UsageError, before any work, where a submission cannot be written at ``target``."""
    if not target.name.lower().endswith(SUFFIXES):
        raise UsageError(f"Cannot write {shown(target)}: a submission is named *{', *'.join(SUFFIXES)}.")


def _encode_file(path: Path, size: tuple[int, int] | None) -> str:
    mask = read_mask(path)
    if size is not None and (mask.width, mask.height) != size:
        raise ImageError(
            f"{shown(path)} is {mask.width}x{mask.height} pixels, not {size[0]}x{size[1]}. The competition "
            "wants masks of the photos' size; for other photos use --size WIDTHxHEIGHT or --size any."
        )
    return rle.encode_packed(mask)


@contextlib.contextmanager
def _open_text(file: IO[bytes], target: Path) -> Iterator[IO[str]]:
    """Text into ``file``, compressed as the target's suffix says; nothing in it depends on the clock."""
    name = target.name.lower()
    with contextlib.ExitStack() as stack:
        binary: IO[bytes] | gzip.GzipFile = file
        if name.endswith(".gz"):
            binary = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
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


def _parse_rows(text: IO[str], path: Path) -> dict[str, str]:
    rows = csv.reader(text, strict=True)
    try:
        header = next(rows, [])
        if header != list(HEADER):
            raise UsageError(
                f"{shown(path)} begins with {shown(','.join(header)[:40])!r}, not with {','.join(HEADER)}: "
                "these are no run-length rows."
            )
        found: dict[str, str] = {}
        for row in rows:
            if not row:
                continue
            if len(row) != len(HEADER) or not row[0]:
                raise UsageError(
                    f"{shown(path)}, line {rows.line_num}: a row is <photo>,<runs>, and this one has "
                    f"{'no name' if len(row) == len(HEADER) else f'{len(row)} field(s)'}."
                )
            photo_id = _without_suffix(row[0])
            if photo_id in found:
                raise UsageError(
                    f"{shown(path)}, line {rows.line_num}: {shown(photo_id)} already has a row; remove one."
                )
            found[photo_id] = row[1]
    except csv.Error as error:
        raise UsageError(f"{shown(path)}, line {rows.line_num}: {error}.") from error
    return found


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in IMAGE_SUFFIXES else name


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
