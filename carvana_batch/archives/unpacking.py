"""The photos of an archive, unpacked ahead of the processes that decode them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from carvana_batch.archives.archive import Archive
from carvana_batch.cloud.fetching import AHEAD, Prefetcher
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.output.journal import Entry
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.values import Failure, ImageRef

if TYPE_CHECKING:  # it imports what takes a while, and help need not wait
    from carvana_batch.output.writer import Written

PREFIX = "carvana-batch-archive-"

Result = TypeVar("Result", bound="Entry | Failure | Written")

Arrive = Callable[[int], object]
"""Waits until the photo with an index is unpacked."""


@contextlib.contextmanager
def open_archive(path: Path, most_bytes: int) -> Iterator[Archive]:
    """List an archive in a temporary folder, whose path errors do not name.

    Args:
        path: the archive.
        most_bytes: see :class:`Archive`.

    Raises:
        UsageError: see :class:`Archive`.
    """
    with temporary_folder(Path(tempfile.gettempdir()), PREFIX) as scratch:
        folder = scratch / "photos"
        folder.mkdir()
        archive = Archive(path, folder, most_bytes)
        with contextlib.closing(archive):
            try:
                archive.list()
                yield archive
            except CarvanaBatchError as error:
                error.args = (archive.in_words(str(error)),)
                raise


def unpack(
    archive: Archive | None, photos: Sequence[ImageRef], process: Callable[[Arrive | None], Generator[Result]]
) -> Generator[Result]:
    """Process photos, each of which is unpacked before and removed after.

    Args:
        archive: where they are; None if they are files of their own.
        photos: the photos.
        process: yields what comes of each, once the function that it is given has waited for it.

    Yields:
        The results, with the names of the archive.
    """
    if archive is None:
        yield from process(None)
        return
    with contextlib.ExitStack() as stack:
        coming = stack.enter_context(Prefetcher(photos, archive.fetch, archive.empty, AHEAD))
        for result in stack.enter_context(contextlib.closing(process(coming.arrive))):
            coming.release(_key_of(result))
            yield _as_named(archive, result)


def _key_of(result: Entry | Failure | Written) -> str:
    if isinstance(result, Failure):
        return result.id
    return result.key if isinstance(result, Entry) else result.entry.key


def _as_named(archive: Archive, result: Result) -> Result:
    if isinstance(result, Failure):
        reason = archive.problem_of(result.source) or archive.in_words(result.reason)
        return replace(result, source=archive.in_words(result.source), reason=reason)
    if isinstance(result, Entry):
        return replace(result, source=archive.in_words(result.source))
    return replace(result, entry=replace(result.entry, source=archive.in_words(result.entry.source)))
