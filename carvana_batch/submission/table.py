"""The competition's CSV, a run-length row for each mask: the file format.

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
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from carvana_batch.errors import UsageError
from carvana_batch.files import atomic_writer, read_error, write_row
from carvana_batch.inputs.keys import mask_id, without_suffix
from carvana_batch.masks import rle
from carvana_batch.text import NAMED, shown

COMPETITION_SIZE = (1918, 1280)
"""Width and height of the competition's photos."""

COMPETITION_ROWS = 100_064
"""Photos in the competition's test set; a submission has a row for each."""

HEADER = ("img", "rle_mask")

SUFFIXES = (".csv", ".csv.gz", ".zip")

FIELD_LIMIT = 2**26
"""Characters in a field that is read. More cannot be a row, but the rest of a file after a lost quote."""

GZIP_LEVEL = 4
"""Of the rows of the val masks, in a quarter of the time that 6 takes, 3 % more bytes."""

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
