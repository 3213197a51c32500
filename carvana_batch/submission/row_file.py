"""Opening a file of run-length rows as text, whatever its compression and encoding."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from carvana_batch.errors import UsageError
from carvana_batch.text import shown

GZIP_MAGIC = b"\x1f\x8b"

ZIP_MAGIC = b"PK\x03\x04"

STREAMED_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Compression methods of a zip that zipfile unpacks piece by piece. With bzip2, it unpacks 4 KB at a time to
whatever they hold, which may be gigabytes; and LZMA takes as much memory as the archive asks for."""


@contextlib.contextmanager
def open_row_file(path: Path) -> Iterator[IO[str]]:
    """Open a file as text, with its line ends as they are.

    The first bytes tell whether it is compressed by gzip or zip, because downloads often have the wrong
    suffix. Text is UTF-8, or UTF-16 if a byte order mark says so, as spreadsheets save it.

    Raises:
        UsageError: a zip does not contain exactly one CSV, stored or deflated.
        Exception: those of the libraries that read and decompress, also while the text is read.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        binary: io.BufferedReader | gzip.GzipFile | zipfile.ZipExtFile = file
        beginning = file.peek(4)
        if beginning.startswith(GZIP_MAGIC):
            binary = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif beginning.startswith(ZIP_MAGIC) or path.name.lower().endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(file))
            member = stack.enter_context(archive.open(_find_csv(archive, path)))
            binary = cast(zipfile.ZipExtFile, member)
        has_mark = binary.peek(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if has_mark else "utf-8-sig"
        errors = "strict" if has_mark else "surrogateescape"
        yield stack.enter_context(io.TextIOWrapper(binary, encoding, errors, newline=""))


def _find_csv(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """Return the only CSV in the archive, ignoring the ``._`` files of archives made by macOS."""
    members = [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith(".csv")
        and not member.filename.rpartition("/")[2].startswith("._")
    ]
    if len(members) != 1:
        raise UsageError(
            f"{shown(path)} holds {len(members)} CSV files; it must hold one, of run-length rows."
        )
    if members[0].compress_type not in STREAMED_METHODS:
        raise UsageError(
            f"{shown(path)} is compressed by another method than deflate, the usual one of zip files. Unpack"
            " it, and give the CSV."
        )
    return members[0]
