"""What IN and OUT of ``predict`` are, and which photos it finds."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from carvana_batch.archives.archive import Archive, is_archive
from carvana_batch.archives.unpacking import open_archive
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.commands.buckets import Place
from carvana_batch.errors import UsageError
from carvana_batch.files import temporary_prefix, write_error
from carvana_batch.inputs.decisions import is_decisions
from carvana_batch.inputs.find import Found, find_images, find_photos, find_rejected, read_file_list
from carvana_batch.inputs.formats import IMAGE_SUFFIXES
from carvana_batch.options import most_bytes
from carvana_batch.output.journal import read_entries
from carvana_batch.output.paths import OutPaths
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.text import shown

STANDARD = Path("-")
"""Stands for the standard input or output."""

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


def is_local(source: Place) -> bool:
    """Whether IN is a folder or a photo on this machine, rather than an archive or in a bucket."""
    return isinstance(source, Path) and (source.is_dir() or not is_archive(source))


def open_photos(
    context: click.Context, sources: list[Place], out: Place, pixel_limit: int, engine: str
) -> Archive | None:
    """Open the archive that IN is, until the command ends; None if it is none.

    Raises:
        UsageError: it cannot be used, or something does not go with it.
    """
    for each in sources:
        if isinstance(each, BucketUrl) and is_archive(Path(each.name)):
            raise UsageError(f"{each} is an archive, which is only read from a local disk. Download it.")
    archive = next((each for each in sources if isinstance(each, Path) and is_archive(each)), None)
    if archive is None:
        return None
    if len(sources) > 1:
        raise UsageError(f"{shown(archive)} is an archive. Give either one archive, or photos only.")
    if archive.is_dir():
        raise UsageError(f"{shown(archive)} is a folder with the name of an archive. Rename it.")
    if archive.exists() and not archive.is_file():
        raise UsageError(f"{shown(archive)} is not a regular file, so it cannot be read as an archive.")
    if engine != "local":
        raise UsageError(f"--engine {engine} does not read archives. Unpack {shown(archive)}.")
    if not isinstance(out, Path):
        raise UsageError(f"Masks of an archive do not go into a bucket. Unpack {shown(archive)}.")
    if out == STANDARD or out.suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"The masks of an archive need a folder as OUT, not {shown(out)}.")
    return context.with_resource(open_archive(archive, most_bytes(pixel_limit)))


def find(
    sources: list[Path],
    out: Path,
    files_from: str | None,
    follow_links: bool,
    archive: Archive | None = None,
    overwrite: bool = False,
) -> Found:
    """Find the photos of a run.

    Args:
        sources: IN; for an archive, the folder that stands for it.
        out: OUT.
        files_from: a list of photos, or the decisions of a review.
        follow_links: see :func:`find_images`.
        archive: the archive.
        overwrite: whether masks of another archive may be replaced.

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
        found = find_rejected(source, Path(files_from), follow_links=follow_links, exclude=out)
    else:
        found = find_images(source, follow_links=follow_links, exclude=out)
    if archive is None:
        return found
    if not overwrite:
        _refuse_another_archive(found, out, archive)
    return replace(found, ignored={**found.ignored, **archive.ignored})


def _refuse_another_archive(found: Found, out: Path, archive: Archive) -> None:
    """Raise UsageError if OUT has masks of photos of these names, and what these are in is still there."""
    entries = read_entries(OutPaths(out).state)
    for ref in found.refs:
        entry, source = entries.get(ref.key), archive.in_words(ref.path_text)
        if entry is None or not entry.masked or entry.source == source:
            continue
        member = ref.path.relative_to(archive.folder).as_posix()
        other = Path(entry.source.removesuffix(f"/{member}"))
        if other.exists() and not other.samefile(archive.path):
            raise UsageError(
                f"{shown(OutPaths(out).mask(ref.key))} is the mask of {shown(entry.source)}, and would be"
                f" replaced by that of {shown(source)}. Choose another OUT, or use --overwrite to replace it."
            )


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


def _has_decisions(files_from: str | None) -> bool:
    """Whether the file is there and has the decisions of a review."""
    try:
        return files_from not in (None, "-") and is_decisions(Path(str(files_from)).read_bytes())
    except OSError:
        return False
