"""Reading a gzip file from any position, without decompressing all that comes before."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO, NamedTuple

LEAST_DISTANCE = 32 * 2**20
"""Decompressed bytes between two positions from which reading can begin; more in files of more than 16 GB."""

MOST_POINTS = 512
"""Of these positions; each takes about 50 kB of memory."""

CHUNK = 2**18

GZIP = 16 + zlib.MAX_WBITS


class Point(NamedTuple):
    """A position from which reading can begin.

    Attributes:
        position: in the decompressed data.
        offset: in the file, of the next bytes to be decompressed.
        state: of the decompressor there.
    """

    position: int
    offset: int
    state: zlib._Decompress


class SeekableGzip(io.RawIOBase):
    """The decompressed data of a gzip file, which may have several members.

    While it is read for the first time, states of the decompressor are kept here and there.

    Args:
        file: the file, which is closed with this one.

    Reading raises EOFError if the file is cut off, and zlib.error if it is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._distance = LEAST_DISTANCE
        self._points = [Point(0, 0, zlib.decompressobj(GZIP))]
        self._start_at(self._points[0])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            offset += self._position
            if whence != io.SEEK_CUR:
                raise io.UnsupportedOperation("the size of a gzip file is not known")
        nearest = max(
            (point for point in self._points if point.position <= offset), key=lambda point: point.position
        )
        if offset < self._position or nearest.position > self._position:
            self._start_at(nearest)
        while self._position < offset and self.read(min(offset - self._position, CHUNK)):
            pass
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._decompress(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _start_at(self, point: Point) -> None:
        self._position, self._offset = point.position, point.offset
        self._state, self._pending = point.state.copy(), b""

    def _decompress(self, most: int) -> bytes:
        while most:
            if self._state.eof:
                # The next member; zeros that pad the last one are no member.
                self._pending = self._state.unused_data.lstrip(b"\0") or self._read_file().lstrip(b"\0")
                if not self._pending:
                    return b""
                self._state = zlib.decompressobj(GZIP)
            self._keep_point()
            if not self._pending:
                self._pending = self._read_file()
                if not self._pending:
                    raise EOFError("the compressed data are cut off")
            data = self._state.decompress(self._pending, most)
            self._pending = self._state.unconsumed_tail
            self._position += len(data)
            if data:
                return data
        return b""

    def _read_file(self) -> bytes:
        self._file.seek(self._offset)
        data = self._file.read(CHUNK)
        self._offset += len(data)
        return data

    def _keep_point(self) -> None:
        if self._position - self._points[-1].position < self._distance:
            return
        offset = self._offset - len(self._pending)
        self._points.append(Point(self._position, offset, self._state.copy()))
        if len(self._points) > MOST_POINTS:
            del self._points[1::2]
            self._distance *= 2
