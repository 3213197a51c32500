"""The photos of an archive, unpacked ahead of the processes that decode them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from carvana_batch.archives.archive import Archive
from carvana_batch.cloud.fetching import Arrive, Result, in_words, process_fetched
from carvana_batch.cloud.stand_ins import named
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.values import ImageRef

PREFIX = "carvana-batch-archive-"


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
        with contextlib.closing(archive), named({str(folder): str(path)}):
            archive.list()
            yield archive


def unpack(
    archive: Archive | None, photos: Sequence[ImageRef], process: Callable[[Arrive | None], Generator[Result]]
) -> Generator[Result]:
    """Process photos, each of which is unpacked before and removed after.

    Args:
        archive: where they are; None if they are files of their own.
        photos, process: see :func:`process_fetched`.

    Yields:
        The results, with the names of the archive.
    """
    if archive is None:
        yield from process(None)
        return
    with contextlib.closing(process_fetched(archive, photos, process)) as results:
        for result in results:
            yield in_words(result, archive.in_words)
