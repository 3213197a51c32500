"""Drop the metadata of PNGs, which may be large or damaged, and decode PNGs that Pillow would misread."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.decode.pixels import CUT_SHORT, NOTES, scale_samples, to_image
from carvana_batch.errors import ImageError

BITS_OF_PNG = 24
"""Position in a PNG of the byte with the number of bits of a sample."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"

PICTURE_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}

USEFUL_CHUNKS = {b"tRNS", b"sBIT", b"eXIf", b"acTL", b"fcTL"}
"""Further chunks that may be kept: transparency, significant bits, orientation, number of frames."""

TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}

ORIENTATION_TEXTS = {b"Raw profile type exif", b"XML:com.adobe.xmp"}
"""Keywords of texts in which Pillow looks for an orientation."""

LONGEST_TEXT = 1 << 20
"""Most bytes of a text that Pillow accepts, when expanded."""


def without_metadata(file: BinaryIO) -> io.BytesIO:
    """Return a PNG without all chunks that its picture and orientation do not need.

    Wrong checksums of the picture are put right, so that its decoder does not stop there; whoever decodes it
    has to look for such damage in the file itself.

    Raises:
        ImageError: the file ends within a chunk, or it has unknown chunks that the picture needs.
    """
    kept = io.BytesIO()
    kept.write(SIGNATURE)
    colour_type = -1
    has_pixels = False
    for kind, data, checksum in _chunks(file):
        true_checksum = zlib.crc32(data, zlib.crc32(kind))
        if kind in PICTURE_CHUNKS:
            if kind == b"IHDR":
                colour_type = data[9]
            has_pixels = has_pixels or kind == b"IDAT"
        elif checksum != true_checksum or not _is_useful(kind, data, colour_type, has_pixels):
            continue
        kept.write(struct.pack(">I", len(data)) + kind)
        kept.write(data)
        kept.write(struct.pack(">I", true_checksum))
    kept.seek(0)
    return kept


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield kind, data and checksum of each chunk up to the end of the picture; skip unknown ones.

    Raises:
        ImageError: the file ends within a chunk, or a chunk without which the picture cannot be decoded is
            unknown.
    """
    size = file.seek(0, io.SEEK_END)
    position, kind = file.seek(len(SIGNATURE)), b""
    while kind != b"IEND" and position + 8 <= size:
        length, kind = struct.unpack(">I4s", file.read(8))
        position += 12 + length
        if kind in PICTURE_CHUNKS | USEFUL_CHUNKS | TEXT_CHUNKS:
            if position > size:
                raise ImageError(CUT_SHORT)
            data = file.read(length)
            yield kind, data, int.from_bytes(file.read(4))
        elif kind[0] & 0x20 == 0:
            raise ImageError("is damaged, or contains more than the PNG standard allows")
        file.seek(position)


def _is_useful(kind: bytes, data: bytes, colour_type: int, has_pixels: bool) -> bool:
    if kind == b"tRNS":
        lengths = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}
        return len(data) in lengths.get(colour_type, ()) and not has_pixels
    if kind == b"acTL":
        return len(data) == 8
    if kind == b"fcTL":  # those after the pixels belong to further frames
        return len(data) == 26 and not has_pixels
    return kind in USEFUL_CHUNKS or _tells_orientation(kind, data)


def _tells_orientation(kind: bytes, data: bytes) -> bool:
    """Return whether a text may contain an orientation, and Pillow accepts its length."""
    keyword, _, text = data.partition(b"\0")
    if kind not in TEXT_CHUNKS or keyword not in ORIENTATION_TEXTS or len(text) > LONGEST_TEXT:
        return False
    is_compressed = kind == b"zTXt"
    if kind == b"iTXt":
        is_compressed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    if is_compressed:
        try:
            unpacked = zlib.decompressobj().decompress(text[1:] if kind == b"zTXt" else text, LONGEST_TEXT)
        except zlib.error:
            return False
        return len(unpacked) < LONGEST_TEXT
    return True


def decode_by_libpng(file: BinaryIO) -> Image.Image:
    """Decode a PNG with 16 bits, or with a transparent colour, which Pillow would misread.

    Pillow keeps 8 of the 16 bits of colours, and misses transparent colours of other than 8 bits.

    Returns:
        The image, of mode L, RGB or RGBA, with ``NOTES`` in its ``info``.
    """
    content = without_metadata(file)
    values = decode_values(content)
    channels = 1 if values.shape[2] < 3 else 3
    colours = values[..., :channels]
    alpha = values[..., channels] if values.shape[2] > channels else None
    if values.dtype == np.uint8:
        return to_image(colours, alpha)
    scaled, scaled_alpha, notes = scale_samples(colours, alpha, 16, _declared_bits(content, colours))
    image = to_image(scaled, scaled_alpha)
    image.info[NOTES] = notes
    return image


def decode_values(content: io.BytesIO) -> NDArray[Any]:
    """Decode a PNG to its values as they are, (H, W, channels) uint8 or uint16."""
    values: NDArray[Any] = imagecodecs.png_decode(content.getvalue())
    return values.reshape(*values.shape[:2], -1)


def _declared_bits(file: BinaryIO, colours: NDArray[np.uint16]) -> int | None:
    """Return the bits that the sBIT chunk declares for values as they are; None without such a chunk.

    According to the standard, values are scaled to 16 bits, and the chunk says how many they had before. But
    some writers declare the bits of values that they have not scaled.
    """
    for kind, data, _ in _chunks(file):
        if kind == b"sBIT" and data:
            bits = max(data[: colours.shape[2]])
            remainder = colours & ((1 << max(0, 16 - bits)) - 1)
            # Scaling leaves the lower bits empty in dark values, but for rounding.
            return 16 if remainder.max() <= 1 else bits
    return None
