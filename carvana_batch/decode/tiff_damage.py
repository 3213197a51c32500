"""Find damage in strips and tiles of a TIFF that tifffile passes over without an error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
import tifffile
from tifffile import COMPRESSION, PLANARCONFIG

from carvana_batch.decode import jpeg
from carvana_batch.decode.jpeg_markers import END_OF_IMAGE, START_OF_IMAGE
from carvana_batch.decode.pixels import CUT_SHORT
from carvana_batch.decode.tiff_tags import FAX, JPEG_IN_TIFF

WRONG_SIZE = "is damaged: a part of its picture data is corrupt, as it is larger or smaller than the picture"

DECODERS = {
    COMPRESSION.ADOBE_DEFLATE: imagecodecs.deflate_decode,
    COMPRESSION.DEFLATE: imagecodecs.deflate_decode,
    COMPRESSION.LZMA: imagecodecs.lzma_decode,
    COMPRESSION.LZW: imagecodecs.lzw_decode,
    COMPRESSION.PACKBITS: imagecodecs.packbits_decode,
    COMPRESSION.ZSTD: imagecodecs.zstd_decode,
}
"""Compressions whose data are decoded to compare their size with that of the picture.

tifffile ignores what is too much, and fills up what is missing.
"""

LAYOUTS = ((1, 8), (1, 16), (3, 8), (4, 8), (3, 16), (4, 16), (1, 32), (3, 32))
"""Usual numbers of samples, and of bits of a sample."""


def read_segments(page: tifffile.TiffPage, file: BinaryIO) -> Iterator[bytes]:
    """Yield the stored data of each strip or tile."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        file.seek(offset)
        yield file.read(count)


def join_tables(page: tifffile.TiffPage, data: bytes) -> bytes:
    """Return the JPEG of a strip or tile together with the tables that all of them share."""
    tables: bytes | None = page.jpegtables
    if page.jpegheader:
        return bytes(page.jpegheader) + data
    if tables and data.startswith(START_OF_IMAGE):
        return tables.removesuffix(END_OF_IMAGE) + data[2:]
    return data


def is_cut_short(page: tifffile.TiffPage, file_size: int) -> bool:
    """Return whether data are missing at the end of the file.

    Some programs store too large a size for the last strip. That is harmless if its decoder notices missing
    data.
    """
    last = max(page.dataoffsets, default=0)
    for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=False)):
        if page.compression == COMPRESSION.NONE:
            count = min(count, _size_of_segment(page, index))
        elif offset == last and page.compression not in FAX:
            count = 1
        if offset + count > file_size:
            return True
    return False


def find_damage(page: tifffile.TiffPage, file: BinaryIO, file_size: int) -> str | None:
    """Return why the data of a page are damaged, or None."""
    if page.compression in JPEG_IN_TIFF:
        contents = (join_tables(page, data) for data in read_segments(page, file))
        return next(filter(None, map(jpeg.find_damage, contents)), None)
    if page.compression == COMPRESSION.NONE:
        end = max(
            offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
        )
        return jpeg.TEXT_MODE if file_size > end and _is_text_mode(file, file_size - end) else None
    decode = DECODERS.get(COMPRESSION(page.compression))
    if decode is None:
        return None
    whole = _size_of_segment(page, 0)
    for index, data in enumerate(read_segments(page, file)):
        stored = bytes(imagecodecs.bitorder_decode(data)) if page.fillorder == 2 else data
        size = len(decode(stored, out=whole + 1))
        if size < _size_of_segment(page, index):
            return CUT_SHORT if len(data) < page.databytecounts[index] else WRONG_SIZE
        if size > whole:  # the last strip may be as large as the others
            return WRONG_SIZE
    return None


def find_contradiction(page: tifffile.TiffPage) -> str | None:
    """Return what uncompressed data seem to contain, if that is another layout than the tags say, or None.

    The last strip is not asked, because some programs store too large a size for it.
    """
    if page.compression != COMPRESSION.NONE:
        return None
    counts = page.databytecounts[: max(1, len(page.databytecounts) - 1)]
    for samples, bits in LAYOUTS:
        sizes = [_size_of_segment(page, index, samples * bits) for index in range(len(counts))]
        if sizes == list(counts) and counts[0] > _size_of_segment(page, 0):
            return f"{samples} sample{'s' * (samples > 1)} of {bits} bits"
    return None


def _size_of_segment(page: tifffile.TiffPage, index: int, bits: int | None = None) -> int:
    """Size of a decoded strip or tile in bytes; ``bits`` of a pixel are those in the tags by default."""
    if page.is_tiled:
        width, rows = page.tilewidth, page.tilelength
    else:
        width, rows = page.imagewidth, min(page.rowsperstrip, page.imagelength)
        rows = min(rows, page.imagelength - index % math.ceil(page.imagelength / rows) * rows)
    if bits is None:
        samples = 1 if page.planarconfig == PLANARCONFIG.SEPARATE else page.samplesperpixel
        bits = samples * page.bitspersample
    return int(rows * math.ceil(width * bits / 8))


def _is_text_mode(file: BinaryIO, excess: int) -> bool:
    """Return whether a file has grown by a \\r before each \\n; pixels alone may look so, but not by size."""
    file.seek(0)
    content = file.read()
    return jpeg.is_text_mode(content) and content.count(b"\r\n") <= excess
