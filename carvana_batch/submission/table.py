"""Reading and writing the competition's CSV, with a run-length row for each mask.

The first line is a header of two names; the other lines are ``<photo>,<run-length row>``.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from carvana_batch.errors import UsageError
from carvana_batch.files import atomic_writer, read_error, write_row
from carvana_batch.inputs.keys import mask_id, pairing_name, row_id
from carvana_batch.masks import rle
from carvana_batch.submission.limits import MAX_ROW_CHARACTERS, KeptText, RowLines
from carvana_batch.submission.row_file import open_row_file
from carvana_batch.text import NAMED, cut_short, escape_row_name, shown, unescape_name

COMPETITION_SIZE = (1918, 1280)
"""Width and height of the competition's photos."""

COMPETITION_ROWS = 100_064
"""Photos in the competition's test set; a submission has a row for each of them."""

COMPETITION_NAME = re.compile(r"[0-9a-f]{12}_[0-9]{2}\.jpg")
"""Names of the competition's photos: a car, and one of its views."""

HEADER = ("img", "rle_mask")

SUFFIXES = (".csv", ".csv.gz", ".zip")

READ_SUFFIXES = (*SUFFIXES, ".tsv")
"""Suffixes of tables that are read; the header says what separates fields."""

DELIMITERS = ",;\t"

SEPARATOR_LINE = re.compile(f"sep=([{DELIMITERS}])", re.IGNORECASE)
"""A line that spreadsheets put above the header."""

INDEX_NAMES = {"", "Unnamed: 0"}
"""What pandas calls the column of row numbers that it writes first, and when it writes that again."""

RUN_COLUMNS = {"rle_mask", "rle", "encodedpixels"}
"""Names, in lower case, that competitions give the column of run-length rows."""

RUNS = re.compile("[0-9]+( +[0-9]+)+")

GZIP_LEVEL = 4
"""Takes a quarter of the time of level 6 and makes files 3 % larger (rows of the val masks)."""

UNPACK_ERRORS = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions raised for files that are damaged, encrypted, or compressed with an unsupported method."""


@dataclass(frozen=True, slots=True)
class SubmissionSummary:
    """What was written.

    Attributes:
        rows: number of rows, without the header.
        empty: number of rows whose mask is empty.
        bytes: size of the file.
        sha256: hash of the file, in hexadecimal.
        first_empty: photos of the first empty rows, at most ``NAMED``.
        doubt: a warning that the masks seem to be inverted; "" if they do not.
        foreign: number of rows whose photo is not named as those of the competition are.
        first_foreign: the first of these photos; "" if there are none.
    """

    rows: int
    empty: int
    bytes: int
    sha256: str
    first_empty: tuple[str, ...] = ()
    doubt: str = ""
    foreign: int = 0
    first_foreign: str = ""


def read_rows(path: Path, on_doubt: Callable[[str], object] = lambda line: None) -> dict[str, str]:
    """Read a file such as ``write_rows`` writes, or as the competition publishes, into id -> run-length row.

    The id is that of a mask with the photo's name (see ``mask_id``): ``00087a6bd4dc_01`` for
    ``00087a6bd4dc_01.jpg``. The run-length rows are not validated; ``rle.decode`` does that. Blank lines are
    skipped.

    Args:
        path: the file.
        on_doubt: see :func:`read_lines`.

    Raises:
        UsageError: the file cannot be read or has no header, a row does not have two fields, an id occurs
            twice, or there is more than the limits of :mod:`~carvana_batch.submission.limits` allow.
    """
    runs: dict[str, str] = {}
    names: set[str] = set()
    with contextlib.closing(read_lines(path, on_doubt)) as lines:
        next(lines)
        text = KeptText(path)
        for line, fields in lines:
            problem = check_row(fields)
            photo_id = mask_id(row_id(fields[0]))
            name = pairing_name(photo_id)
            if not problem and name in names:
                problem = f"{cut_short(shown(photo_id))} already has a row; remove one."
            if problem:
                raise UsageError(f"{shown(path)}, line {line}: {problem}")
            names.add(text.keep(name))
            runs[photo_id] = text.keep(fields[1])
    return runs


def read_lines(
    path: Path, on_doubt: Callable[[str], object] = lambda line: None
) -> Generator[tuple[int, list[str]]]:
    """Yield (line number, fields) for the lines of a table while reading it, header first.

    Lines are numbered from 1; those that are empty or only have spaces are skipped. Fields are separated by
    commas, or by the semicolons or tabs of the header. A line ``sep=,`` above the header, and a first column
    of row numbers, are left out. Escapes in the first field are resolved (see
    :func:`~carvana_batch.text.unescape_name`). Only the header and the order of the columns are validated;
    use ``check_row`` for the rest. Closing the generator closes the file.

    Args:
        path: the file.
        on_doubt: called with a line for the user if the last row may be cut short.

    Raises:
        UsageError: the file cannot be read, has no header, has its columns swapped, or there is more than
            the limits of :mod:`~carvana_batch.submission.limits` allow.
    """
    if not path.name.lower().endswith(READ_SUFFIXES):
        raise UsageError(f"Cannot read {shown(path)}: run-length rows are in *{', *'.join(READ_SUFFIXES)}.")
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARACTERS))  # the default is 128 KiB
    try:
        with open_row_file(path) as text:
            lines = RowLines(text, path)
            blank, first = 0, next(lines, "")
            while first and (not first.strip() or SEPARATOR_LINE.fullmatch(first.strip())):
                lines.end_row()
                blank, first = blank + 1, next(lines, "")
            lines.delimiter = _find_delimiter(first)
            rows = csv.reader(chain([first], lines), delimiter=lines.delimiter, strict=True)
            try:
                header = next(rows, [])
                lines.end_row()
                first_column = int(len(header) == len(HEADER) + 1 and header[0] in INDEX_NAMES)
                header = header[first_column:]
                _check_header(header, path)
                yield blank + rows.line_num, header
                is_first = True
                for row in rows:
                    lines.end_row()
                    if not _is_not_blank(row):
                        continue
                    row = row[first_column:] or [""]
                    if is_first:
                        _refuse_swapped(row, path)
                        is_first = False
                    row[0] = unescape_name(row[0])
                    if lines.is_open:  # the last one
                        on_doubt(
                            f"{shown(path)} does not end with a line end: its last row, that of"
                            f" {cut_short(shown(row[0]))}, may be cut short."
                        )
                    yield blank + rows.line_num, row
            except csv.Error as error:
                raise UsageError(f"{shown(path)}, line {blank + rows.line_num}: {error}.") from error
    except UNPACK_ERRORS as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else f"it is damaged: {error}"
        )
        raise UsageError(f"Cannot read {shown(path)}: {shown(reason.removesuffix('.'))}.") from error


def _is_not_blank(row: Sequence[str]) -> bool:
    return len(row) > 1 or any(field.strip() for field in row)


def _find_delimiter(header: str) -> str:
    """Return what separates the two names of the header; spreadsheets of some languages save semicolons."""
    return next((delimiter for delimiter in DELIMITERS if delimiter in header), DELIMITERS[0])


def check_row(fields: Sequence[str]) -> str:
    """Return what is wrong with a line that should be ``<photo>,<run-length row>``; "" if nothing is."""
    if len(fields) != len(HEADER):
        return f"a row is <photo>,<runs>, and this one has {len(fields)} field(s)."
    return "" if fields[0] else "a row is <photo>,<runs>, and this one has no name."


def check_submission_name(target: Path) -> None:
    """Check that the name of a submission has one of the ``SUFFIXES``.

    Raises:
        UsageError: it has none of them.
    """
    if not target.name.lower().endswith(SUFFIXES):
        raise UsageError(f"Cannot write {shown(target)}: a submission is named *{', *'.join(SUFFIXES)}.")


def refuse_other_file(target: Path, option: str, header: Sequence[str] = HEADER) -> None:
    """Check that writing a table of run-length rows would not replace any other file.

    Args:
        target: where it would be written.
        option: the option that names it, for the message.
        header: the header of the table; another one that may be replaced is ``HEADER``.

    Raises:
        UsageError: there is a file that is not empty and has neither header.
    """
    if not target.is_file() or not target.stat().st_size:
        return
    try:
        with contextlib.closing(read_lines(target)) as lines:
            found = next(lines)[1]
    except UsageError:
        found = []
    if found not in ([*HEADER], [*header]):
        raise UsageError(
            f"{option} {shown(target)} is there already, and has no run-length rows: it would be lost. Name"
            " another file."
        )


def write_table(target: Path, header: Sequence[str], rows: Iterable[tuple[str, str]]) -> SubmissionSummary:
    """Write a header and (photo, run-length row) pairs atomically, compressed according to the suffix.

    Controls in names, and what begins a formula, are escaped; see
    :func:`~carvana_batch.text.escape_row_name`.

    Raises:
        UsageError: a submission cannot be written at ``target``.
        CarvanaBatchError: see :func:`atomic_writer`.
    """
    check_submission_name(target)
    total = empty = 0
    first_empty: list[str] = []
    foreign, first_foreign = 0, ""
    with atomic_writer(target) as file, _open_text(file, target) as text:
        write_row(text, header)
        for name, runs in rows:
            write_row(text, (escape_row_name(name), runs))
            total += 1
            empty += not runs
            if not runs and len(first_empty) < NAMED:
                first_empty.append(name)
            if not COMPETITION_NAME.fullmatch(name):
                foreign += 1
                first_foreign = first_foreign or name
    try:
        with target.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = target.stat().st_size
    except OSError as error:
        raise read_error(target, error) from error
    return SubmissionSummary(
        total,
        empty,
        size,
        digest,
        tuple(first_empty),
        foreign=foreign,
        first_foreign=first_foreign,
    )


@contextlib.contextmanager
def _open_text(file: IO[bytes], target: Path) -> Iterator[IO[str]]:
    """Wrap ``file`` for text, compressed according to the target's suffix, without any time stamps."""
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
            member.create_system = 3  # Unix, to get the same bytes on every platform
            binary = stack.enter_context(archive.open(member, "w", force_zip64=True))
        text = io.TextIOWrapper(binary, "utf-8", errors="surrogateescape", newline="")
        try:
            yield text
        finally:
            text.detach()  # flushes; the files are closed by the exit stack and the caller


def _check_header(fields: Sequence[str], path: Path) -> None:
    """Check that the header consists of two names, neither of them a photo or a run-length row.

    Raises:
        UsageError: it does not; the message says what the line is instead.
    """
    line = ",".join(fields)
    if not fields:
        raise UsageError(f"{shown(path)} is empty: run-length rows begin with the line {','.join(HEADER)}.")
    beginning = cut_short(shown(line[:40]), 40)
    expected = ",".join(HEADER)
    if not line.isprintable():
        raise UsageError(
            f"{shown(path)} begins with '{beginning}', which is not text in UTF-8, or in UTF-16 with a byte"
            " order mark. Save it as CSV in UTF-8."
        )
    if len(fields) == len(HEADER) and (row_id(fields[0]) != fields[0] or any(map(rle.NUMBER.match, fields))):
        raise UsageError(
            f"{shown(path)} has no header, as it begins with the row '{beginning}'. Put the line {expected}"
            " above it."
        )
    if len(fields) == len(HEADER) and fields[0].strip().lower() in RUN_COLUMNS:
        raise _swapped(path)
    if len(fields) != len(HEADER) or not all(fields):
        raise UsageError(
            f"{shown(path)} begins with '{beginning}', not with {expected} or a header like it: these are no"
            " run-length rows."
        )


def _refuse_swapped(fields: Sequence[str], path: Path) -> None:
    """Raise UsageError for a row that has its runs first, then the name of the photo."""
    if len(fields) == len(HEADER) and RUNS.fullmatch(fields[0]) and re.search("[^0-9 ]", fields[1]):
        raise _swapped(path)


def _swapped(path: Path) -> UsageError:
    return UsageError(
        f"{shown(path)} has its two columns swapped: the photo comes first, its run-length row second."
        " Swap them."
    )
