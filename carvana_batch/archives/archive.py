"""A ZIP or tar archive of photos as a local folder: each photo is an empty file until it is unpacked."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path, PurePosixPath
from typing import IO

from carvana_batch.archives.readers import CHUNK, READ_ERRORS, Member, TarReader, ZipReader
from carvana_batch.cloud.stand_ins import StandIns, make_empty
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.files import write_error
from carvana_batch.inputs.formats import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    NOT_IMAGES,
    OTHER_IMAGE_SUFFIXES,
    RAW_SUFFIXES,
)
from carvana_batch.text import shown

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz")
OTHER = (".7z", ".rar", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".lz4")

KNOWN_SUFFIXES = IMAGE_SUFFIXES | RAW_SUFFIXES | OTHER_IMAGE_SUFFIXES | NOT_IMAGES


def is_archive(path: Path) -> bool:
    """Whether the name of a file is that of an archive.

    Raises:
        UsageError: it is that of a kind of archive that is not read.
    """
    name = path.name.lower()
    if name.endswith(OTHER) and not name.endswith(TAR):
        raise UsageError(f"{shown(path)}: of archives, only .zip, .tar and .tar.gz are read. Unpack it.")
    return name.endswith(ZIP + TAR)


class Archive(StandIns):
    """Photos in an archive; the archive is only read, and never unpacked as a whole.

    Args:
        path: the archive.
        folder: an empty folder, in which the photos appear.
        most_bytes: larger files are not unpacked, whatever the archive says of their size.
    """

    def __init__(self, path: Path, folder: Path, most_bytes: int) -> None:
        super().__init__(folder, most_bytes)
        self.path = path
        self.ignored: dict[str, int] = {}
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        try:
            self._reader: ZipReader | TarReader = (
                ZipReader(path) if path.name.lower().endswith(ZIP) else TarReader(path)
            )
            self._state = self._reader.state()
        except READ_ERRORS as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        self._reader.close()

    def list(self) -> None:
        """Make an empty file for each file of the archive.

        Raises:
            UsageError: the archive is damaged, or has a name that cannot be that of a file in the folder.
        """
        try:
            for member in self._reader.members():
                self._stand_in(member)
            self.ignored = dict(self._reader.ignored)
        except READ_ERRORS as error:
            raise self._unreadable(error) from error

    def fetch(self, path: Path) -> None:
        """Unpack a file; if that is impossible, remove it, and remember why for :meth:`problem_of`.

        Raises:
            OutOfSpaceError: the disk is full.
            CarvanaBatchError: the archive has changed since it was opened.
        """
        name = self._names.get(str(path))
        if name is None:
            path.unlink(missing_ok=True)
            return
        with self._lock:  # readers have one position in the archive
            try:
                status = path.stat()
                source = self._reader.open(name)
                with source, path.open("r+b") as target:
                    self._copy(source, target, status.st_size)
                os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
            except _WriteError as error:
                raise write_error(path, error.error) from error
            except READ_ERRORS as error:
                self.leave_out(path, f"cannot be unpacked: {str(error) or type(error).__name__}")
            if self._reader.state() != self._state:  # what was read may be anything
                raise CarvanaBatchError(
                    f"{shown(self.path)} has changed while it was read. Run the same command again once it is"
                    " complete."
                )

    def in_words(self, text: str) -> str:
        """A text for the user, with the names that files have in the archive in place of their paths."""
        return text.replace(str(self.folder), str(self.path))

    def _stand_in(self, member: Member) -> None:
        name = PurePosixPath(member.name)
        if not name.parts or name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise UsageError(
                f"{shown(self.path)} has a file named {shown(member.name)}, which would lie outside."
                " Unpack it with care, and give the folder."
            )
        path = self.folder.joinpath(*name.parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise UsageError(
                    f"{shown(self.path)} has {shown(member.name)} twice. Unpack it, and give the folder."
                )
            too_large = self.size_problem(member.size)
            make_empty(path, 0 if too_large else member.size, member.time)
        except OSError as error:
            raise UsageError(
                f"{shown(self.path)}: {shown(member.name)} cannot be unpacked: {error.strerror or error}."
            ) from error
        if problem := member.problem or too_large:
            self._problems[str(path)] = problem
            return
        self._names[str(path)] = member.name
        if name.suffix.lower() not in KNOWN_SUFFIXES:
            self._add_head(path, member)

    def _add_head(self, path: Path, member: Member) -> None:
        """Write the first bytes of a file, by which it is told whether it is an image."""
        with contextlib.suppress(*READ_ERRORS), self._reader.open(member.name) as source:
            head = source.read(HEAD_BYTES)
            with path.open("r+b") as file:
                file.write(head)
            os.utime(path, ns=(member.time, member.time))

    def _copy(self, source: IO[bytes], target: IO[bytes], size: int) -> None:
        """Copy the file; raises ValueError if its size is not what the archive says."""
        copied = 0
        while chunk := source.read(CHUNK):
            copied += len(chunk)
            if copied > size:
                break
            try:
                target.write(chunk)
                target.flush()
            except OSError as error:
                raise _WriteError(error) from error
        if copied != size:
            raise ValueError("its size is not what the archive says")

    def _unreadable(self, error: Exception) -> UsageError:
        if isinstance(error, FileNotFoundError):
            return UsageError(f"There is no file or folder {shown(self.path)}.")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return UsageError(
            f"{shown(self.path)} cannot be read as an archive: {reason}. It may be cut off or damaged."
        )


class _WriteError(Exception):
    """The disk did not take what was unpacked."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error
