"""Local folders that stand for photos which are elsewhere: each is an empty file until it is fetched."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from carvana_batch.errors import CarvanaBatchError, OutOfSpaceError
from carvana_batch.text import shown


class StandIns:
    """Files that can be fetched.

    A file that has not been fetched has its size and time, but holds no data and takes no room on the disk.
    What reads it nevertheless finds zeros, which are no image.

    Args:
        folder: the local folder.
        most_bytes: larger files are not fetched; None for no limit.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._problems: dict[str, str] = {}

    def fetch(self, path: Path) -> None:
        """Let a file have its content; remove it if that is impossible, see :meth:`problem_of`.

        Several threads may call it at once.

        Raises:
            CarvanaBatchError: no file can be fetched.
        """
        raise NotImplementedError

    def empty(self, path: Path) -> None:
        """Let a file that was fetched hold no data any more."""
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            make_empty(path, status.st_size, status.st_mtime_ns)

    @contextlib.contextmanager
    def fetched(self, path: Path) -> Iterator[None]:
        """A with block in which a file has its content."""
        self.fetch(path)
        try:
            yield
        finally:
            self.empty(path)

    def problem_of(self, path: str) -> str:
        """Why a file could not be fetched; "" if it could, or is not there."""
        return self._problems.get(path, "")

    def size_problem(self, size: int) -> str:
        """Why a file of ``size`` bytes is not fetched; "" if it is."""
        if self.most_bytes is None or size <= self.most_bytes:
            return ""
        return f"is too large: {size:,} bytes; raise --pixel-limit if it is a photo"

    def leave_out(self, path: Path, reason: str) -> None:
        """Remove a file that cannot be fetched, and remember why."""
        self._problems[str(path)] = reason
        path.unlink(missing_ok=True)


def make_empty(path: Path, size: int, time: int) -> None:
    """Make a file of ``size`` bytes and ``time`` in ns that holds no data, or let one hold none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        os.utime(descriptor, ns=(time, time))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """A with block whose errors have the names of what local folders stand for, by the path of these."""
    try:
        yield
    except CarvanaBatchError as error:
        text = str(error)
        for folder, name in names.items():
            text = text.replace(folder, name)
        if isinstance(error, OutOfSpaceError) and text != str(error):
            text = (
                f"No space left for temporary files in {shown(tempfile.gettempdir())}. Free some, or name"
                " another folder by the environment variable TMPDIR, and run the same command again."
            )
        error.args = (text,)
        raise
