"""A ZIP or tar archive of photos as a local folder: each photo is an empty file until it is unpacked."""

from __future__ import annotations

import calendar
import contextlib
import io
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Self

from carvana_batch.archives.gzip_file import SeekableGzip
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
from carvana_batch.text import counted, shown

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz")
OTHER = (".7z", ".rar", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".lz4")

KNOWN_SUFFIXES = IMAGE_SUFFIXES | RAW_SUFFIXES | OTHER_IMAGE_SUFFIXES | NOT_IMAGES

CHUNK = 2**20

GZIP_BUFFER = 2**18

LATEST = 2**33
"""In seconds since 1970: later times, which no file system need accept, are taken for this one."""

READ_ERRORS = (
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What readers of archives raise for damaged ones."""


def is_archive(path: Path) -> bool:
    """Whether the name of a file is that of an archive.

    Raises:
        UsageError: it is that of a kind of archive that is not read.
    """
    name = path.name.lower()
    if name.endswith(OTHER) and not name.endswith(TAR):
        raise UsageError(f"{shown(path)}: of archives, only .zip, .tar and .tar.gz are read. Unpack it.")
    return name.endswith(ZIP + TAR)


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: as the archive has it.
        size: of the unpacked file, in bytes.
        time: of its last change, in ns; in place of fractions of a second, which ZIP lacks, a part of the
            checksum of its content, because programs that make the same archive each time leave times out.
        problem: why it cannot be unpacked; "" if it can.
    """

    name: str
    size: int
    time: int
    problem: str = ""


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


class ZipReader:
    """A ZIP archive."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self.ignored: dict[str, int] = {}

    def members(self) -> Iterator[Member]:
        for info in self._archive.infolist():
            if info.is_dir():
                continue
            if info.external_attr >> 28 == 0o12:  # the kind of a file in Unix, where it was made
                self.ignored[LINKS] = self.ignored.get(LINKS, 0) + 1
                continue
            try:
                time = calendar.timegm((*info.date_time, 0, 0, 0))
            except (ValueError, OverflowError):
                time = 0
            problem = "is encrypted; unpack the archive with its password" if info.flag_bits & 1 else ""
            name = _name_in_zip(info)
            self._infos[name] = info
            yield Member(name, info.file_size, _within(time) + info.CRC % 10**9, problem)

    def open(self, name: str) -> IO[bytes]:
        return self._archive.open(self._infos[name])

    def state(self) -> tuple[int, int]:
        """Size of the archive in bytes, and time of its last change in ns."""
        return _state_of(self._archive.fp)

    def close(self) -> None:
        self._archive.close()


class BoundedInfo(tarfile.TarInfo):
    """An entry of a tar archive; headers that would fill the memory are refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in HEADERS and info.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"an entry has a header of {info.size:,} bytes")
        return info


class TarReader:
    """A tar archive, perhaps compressed by gzip."""

    def __init__(self, path: Path) -> None:
        file = self._raw = path.open("rb")
        try:
            packed = path.name.lower().endswith((".gz", ".tgz"))
            self._file = io.BufferedReader(SeekableGzip(file), GZIP_BUFFER) if packed else file
            self._archive = tarfile.TarFile(fileobj=self._file, tarinfo=BoundedInfo)
        except BaseException:
            file.close()
            raise
        self._infos: dict[str, tarfile.TarInfo] = {}
        self.ignored: dict[str, int] = {}

    def members(self) -> Iterator[Member]:
        for info in self._archive:
            if info.isreg():
                if info.sparse is not None:
                    yield Member(
                        info.name, 0, 0, "is stored with holes, which is not read; unpack the archive"
                    )
                    continue
                self._infos[info.name] = info
                yield Member(info.name, info.size, _within(int(info.mtime)))
            elif not info.isdir():
                kind = LINKS if info.issym() or info.islnk() else SPECIAL
                self.ignored[kind] = self.ignored.get(kind, 0) + 1
        # tarfile takes a damaged entry for the end, which two blocks of zeros mark.
        self._file.seek(self._archive.offset)
        end = self._file.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise tarfile.ReadError(f"its list of files breaks off after {counted(len(self._infos), 'file')}")
        while self._file.read(CHUNK):  # so that a damaged or incomplete end is noticed
            pass

    def open(self, name: str) -> IO[bytes]:
        file = self._archive.extractfile(self._infos[name])
        if file is None:
            raise ValueError("is no file")
        return file

    def state(self) -> tuple[int, int]:
        """See :meth:`ZipReader.state`."""
        return _state_of(self._raw)

    def close(self) -> None:
        self._archive.close()
        self._file.close()


UTF_8 = 0x800
"""The flag of a file in a ZIP archive that says how its name is encoded."""

MOST_HEADER_BYTES = 2**20
"""Of what tar writes ahead of a file, such as its long name; tarfile reads it into memory as a whole."""

HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

LINKS = "links in the archive"
SPECIAL = "pipes and devices in the archive"


class _WriteError(Exception):
    """The disk did not take what was unpacked."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _state_of(file: IO[bytes] | None) -> tuple[int, int]:
    if file is None:
        raise ValueError("is closed")
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """The name of a file, also if the archive fails to say that it is UTF-8, as those made by macOS."""
    if info.flag_bits & UTF_8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _within(seconds: int) -> int:
    """A time as ns."""
    return min(max(seconds, 0), LATEST) * 10**9
