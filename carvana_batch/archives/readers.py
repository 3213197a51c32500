"""Readers of archives: which files these hold, and the content of each."""

from __future__ import annotations

import calendar
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Self

from carvana_batch.archives.gzip_file import SeekableGzip
from carvana_batch.text import counted

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
        while chunk := self._file.read(CHUNK):  # so that a damaged or incomplete end is noticed
            if any(chunk):
                raise tarfile.ReadError("more follows on its end, as if archives had been joined")

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
