"""Find damage in PNG, WebP, GIF and BMP files that Pillow passes over without an error.

The files are open, at their start.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
from PIL import Image

CRITICAL_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT"}

CUT_SHORT_DATA = "is damaged: its picture data end before the picture does"

LEFT_OVER = "is damaged: its picture data are corrupt, as the picture is whole before they end"

FILE_HEADER, V5_HEADER, V5_PROFILE = 14, 124, 112
"""Sizes of the headers of a BMP, and the offset in the second one of where its colour profile is."""

PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by the colour type of a PNG."""

WHOLE = ((0, 0, 1, 1),)

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and steps, of the pixels in each pass of an interlaced PNG."""

MOST_TRAILING_BYTES = 3
"""Bytes behind the pixels of a BMP that some programs write, such as a line end."""

UNPACKED_BYTES = 1 << 16
"""How much is unpacked at a time to count it."""

CUT_OFF = 6
"""Bytes that are taken from the end of compressed data, to see whether they are needed."""


def find_png_damage(file: BinaryIO) -> str | None:
    """Return why a PNG is damaged, or None; Pillow only checks some of the checksums."""
    content = file.read()
    offset = 8
    while offset + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        if kind == b"IEND":
            break
        end = offset + 8 + length
        if (
            kind in CRITICAL_PNG_CHUNKS
            and zlib.crc32(content[offset + 4 : end]).to_bytes(4) != content[end : end + 4]
        ):
            return "is damaged: a checksum of its picture data is wrong"
        offset = end + 4
    return None


def find_missing_png_rows(file: BinaryIO) -> str | None:
    """Return that a PNG has fewer rows than its header says, or None; Pillow leaves the others black."""
    content = file.read()
    if len(content) < 33:
        return None
    width, height, bits, colour_type, interlaced = struct.unpack_from(">IIBBxxB", content, 16)
    bits *= PNG_SAMPLES.get(colour_type, 1)
    missing = 0
    for left, top, across, down in PASSES if interlaced else WHOLE:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        missing += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    unpacker = zlib.decompressobj()
    for kind, packed in _png_chunks(content):
        while kind == b"IDAT" and packed and missing > 0:
            missing -= len(unpacker.decompress(packed, UNPACKED_BYTES))
            packed = unpacker.unconsumed_tail
    return CUT_SHORT_DATA if missing > 0 else None


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and data of each chunk before the end of the picture."""
    offset = 8
    while offset + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        if kind == b"IEND":
            return
        yield kind, content[offset + 8 : offset + 8 + length]
        offset += 12 + length


def find_webp_damage(file: BinaryIO) -> str | None:
    """Return why a WebP is damaged, or None.

    The coded data of damaged pictures usually end too late, which libwebp does not report: it then decodes
    them even without their last bytes. Animations are not checked.
    """
    for kind, data in _riff_chunks(file.read()):
        if kind in {b"VP8 ", b"VP8L"}:
            shortened = _webp(kind, data[:-CUT_OFF])
            try:
                imagecodecs.webp_decode(shortened)
            except RuntimeError:
                return None
            return LEFT_OVER
    return None


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = 12
    while offset + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, offset)
        yield kind, content[offset + 8 : offset + 8 + length]
        offset += 8 + length + (length & 1)


def _webp(kind: bytes, data: bytes) -> bytes:
    padded = data + bytes(len(data) & 1)
    return b"RIFF" + struct.pack("<I4s4sI", 12 + len(padded), b"WEBP", kind, len(data)) + padded


def find_bmp_damage(file: BinaryIO) -> str | None:
    """Return why an uncompressed BMP is damaged, or None: its pixels have a known size."""
    start, header, width, height, _, bits, compression = struct.unpack("<10xIIiiHHI", file.read(34))
    if header < 40 or compression not in {0, 3}:
        return None
    file.seek(start + (width * bits + 31) // 32 * 4 * abs(height))
    end = file.tell()
    rest = file.read()
    if len(rest) > MOST_TRAILING_BYTES and rest.strip(b"\0") and not _has_profile_behind(file, header, end):
        return f"is damaged: it has {len(rest):,} bytes more than its header says"
    return None


def _has_profile_behind(file: BinaryIO, header: int, end: int) -> bool:
    """Return whether a BMP, of a header of a size, has a colour profile behind the end of its pixels."""
    if header < V5_HEADER:
        return False
    file.seek(FILE_HEADER + V5_PROFILE)
    offset, size = struct.unpack("<II", file.read(8))
    return bool(size > 0 and FILE_HEADER + offset >= end)


def find_gif_damage(file: BinaryIO) -> str | None:
    """Return why the first frame of a GIF is damaged, or None: it must not decode without its last codes."""
    content = file.read()
    data = _find_gif_data(content)
    if data is None:
        return None
    start, blocks = data
    codes = b"".join(blocks).rstrip(b"\0")[:-CUT_OFF]  # some programs pad them with zeros
    parts = [codes[offset : offset + 255] for offset in range(0, len(codes), 255)]
    shortened = content[:start] + b"".join(bytes([len(part)]) + part for part in parts) + b"\0;"
    try:
        with Image.open(io.BytesIO(shortened), formats=["GIF"]) as image:
            image.load()
    except (EOFError, OSError, SyntaxError, ValueError):
        return None
    return LEFT_OVER


def _find_gif_data(content: bytes) -> tuple[int, list[bytes]] | None:
    """Return where the coded data of the first frame start, and their blocks."""
    offset = 13 + (3 << (content[10] & 7) + 1 if content[10] & 0x80 else 0)
    while offset + 10 < len(content):
        if content[offset] == 0x21:  # an extension
            offset = _skip_blocks(content, offset + 2, [])
        elif content[offset] == 0x2C:
            flags = content[offset + 9]
            start = offset + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            blocks: list[bytes] = []
            _skip_blocks(content, start, blocks)
            return start, blocks
        else:
            return None
    return None


def _skip_blocks(content: bytes, offset: int, blocks: list[bytes]) -> int:
    """Append the blocks from an offset on to a list, and return the offset after them."""
    while offset < len(content) and content[offset]:
        end = offset + 1 + content[offset]
        blocks.append(content[offset + 1 : end])
        offset = end
    return offset + 1
