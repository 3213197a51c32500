"""What IN and OUT of ``predict`` are, and which photos it finds."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from carvana_batch.commands.buckets import Place
from carvana_batch.errors import UsageError
from carvana_batch.files import temporary_prefix, write_error
from carvana_batch.inputs.decisions import is_decisions
from carvana_batch.inputs.find import Found, find_images, find_photos, find_rejected, read_file_list
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.text import shown

STANDARD = Path("-")
"""Stands for the standard input or output."""

BYTES_PER_PIXEL = 8

CHUNK = 2**20


def split_paths(
    paths: tuple[Place, ...], out: Place | None, files_from: str | None
) -> tuple[list[Place], Place]:
    """Tell what of the arguments is IN, perhaps several photos or none at all, and what is OUT.

    Raises:
        UsageError: something is missing or too much.
    """
    sources = list(paths)
    if out is None and sources:
        out = sources.pop()
        if len(sources) > 1:
            raise UsageError("Several photos need -o for OUT, as in `carvana-batch predict in/*.jpg -o out`.")
    listed = files_from is not None and bool(sources)
    if (
        out is None
        or bool(sources) == (files_from is not None and not listed)
        or (listed and (len(sources) > 1 or not _has_decisions(files_from)))
    ):
        raise UsageError(
            "Give IN and OUT, as in `carvana-batch predict in/ out/`, or --files-from FILE and OUT; all three"
            " only if FILE has the decisions of a review."
        )
    return sources, out


def find(sources: list[Path], out: Path, files_from: str | None, follow_links: bool) -> Found:
    """Find the photos of a run.

    Raises:
        UsageError: there are none, or some of the names do not fit together.
    """
    if not sources:
        if files_from == "-":
            return read_file_list(sys.stdin.buffer)
        return read_file_list(Path(str(files_from)))
    if len(sources) > 1:
        return find_photos(sources)
    (source,) = sources
    if source.is_dir() and out.resolve() == source.resolve():
        raise UsageError(
            f"IN and OUT are both {shown(source)}: masks must not lie among the photos. Choose another OUT."
        )
    if files_from is not None:
        return find_rejected(source, Path(files_from), follow_links=follow_links, exclude=out)
    return find_images(source, follow_links=follow_links, exclude=out)


@contextlib.contextmanager
def standard_input(pixel_limit: int) -> Iterator[Path]:
    """The photo on the standard input as a temporary file.

    Raises:
        UsageError: the input is a terminal, is empty, or is larger than a photo of ``pixel_limit`` pixels.
        OutOfSpaceError: the disk of temporary files is full.
    """
    if sys.stdin.isatty():
        raise UsageError("IN is -, but the standard input is a terminal. Pipe a photo into this command.")
    limit = most_bytes(pixel_limit)
    with temporary_folder(Path(tempfile.gettempdir()), temporary_prefix()) as folder:
        path, size = folder / "photo", 0
        try:
            with path.open("wb") as file:
                while chunk := sys.stdin.buffer.read(CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise UsageError(
                            f"The standard input has more than {limit:,} bytes, more than a photo of"
                            f" {pixel_limit:,} pixels. Raise --pixel-limit if it is one."
                        )
                    file.write(chunk)
        except OSError as error:
            raise write_error(path, error) from error
        if not size:
            raise UsageError("The standard input is empty. Pipe a photo into this command.")
        yield path


def most_bytes(pixel_limit: int) -> int:
    """The size of a file that holds so many pixels of 16 bits without compression, and much besides."""
    return BYTES_PER_PIXEL * pixel_limit + 2**26


def _has_decisions(files_from: str | None) -> bool:
    """Whether the file is there and has the decisions of a review."""
    try:
        return files_from not in (None, "-") and is_decisions(Path(str(files_from)).read_bytes())
    except OSError:
        return False
