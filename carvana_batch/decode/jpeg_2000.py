"""Find damage in JPEG 2000 that its decoder passes over, and decode values of 16 bits.

The codestream is described in ISO/IEC 15444-1, annex A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image

from carvana_batch.decode.heif_damage import CORRUPT, ZEROED, read_boxes
from carvana_batch.decode.pixels import NOTES, scale_samples, to_image
from carvana_batch.errors import ImageError

START_OF_CODESTREAM = b"\xff\x4f\xff\x51"

SIZE, CODING_STYLE, TILE_PART, DATA, END = b"\xff\x51", b"\xff\x52", b"\xff\x90", b"\xff\x93", b"\xff\xd9"

MARKERS_IN_DATA = re.compile(rb"\xff\x91\x00\x04..|\xff\x92|(\xff[\x90-\xff])", re.DOTALL)
"""Markers of packets, and, as a group, what coded data never contain."""

MOST_ZEROS = 256
"""So many zeros in a row are damage, besides a zero for each packet of a tile, which may be empty.

Photos, also with white or black areas, have up to 39 zeros in a row.
"""


class Codestream(NamedTuple):
    """The main header of a codestream.

    Attributes:
        bits: of the values of the first component.
        is_signed: whether these may be negative.
        packets: of a tile, at most.
    """

    bits: int
    is_signed: bool
    packets: int


def find_jpeg_2000_damage(file: BinaryIO) -> str | None:
    """Return why the coded data of a JPEG 2000 are damaged, or None."""
    content = _find_codestream(file.read())
    header = _read_header(content)
    if header is None:
        return None
    zeros = bytes(MOST_ZEROS + header.packets)
    for data in _tile_parts(content):
        if zeros in data:
            return ZEROED
        if any(match[1] for match in MARKERS_IN_DATA.finditer(data)):
            return CORRUPT
    return None


def decode_deep_jpeg_2000(file: BinaryIO) -> Image.Image | None:
    """Decode a JPEG 2000 of 16 bits, whose values may be of fewer bits; None if it has another depth.

    Raises:
        ImageError: it is not clear which of its channels are colours.
    """
    content = file.read()
    header = _read_header(_find_codestream(content))
    if header is None or header.bits != 16 or header.is_signed:
        return None
    values = imagecodecs.jpeg2k_decode(content, numthreads=1)
    if values.dtype != np.uint16:
        return None
    values = values.reshape(*values.shape[:2], -1)
    if values.shape[2] > 4:
        raise ImageError(
            f"has {values.shape[2]} channels, so it is not clear which are colours; save it as RGB"
        )
    channels = 1 if values.shape[2] < 3 else 3
    alpha = values[..., channels] if values.shape[2] > channels else None
    colours, alpha, notes = scale_samples(values[..., :channels], alpha, 16)
    image = to_image(colours, alpha)
    image.info[NOTES] = notes
    return image


def _find_codestream(content: bytes) -> bytes:
    """Return the codestream, in boxes or not; what follows it may belong to it."""
    if content.startswith(START_OF_CODESTREAM):
        return content
    boxes = read_boxes(content, 0, len(content))
    return next((content[box.start : box.end] for box in boxes if box.kind == b"jp2c"), b"")


def _read_header(content: bytes) -> Codestream | None:
    """Return what the main header says; None if there is none."""
    size = coding = b""
    position = 2
    while position + 4 <= len(content):
        marker, length = (
            content[position : position + 2],
            int.from_bytes(content[position + 2 : position + 4]),
        )
        if marker == TILE_PART:
            break
        body = content[position + 4 : position + 2 + length]
        if marker == SIZE:
            size = body
        elif marker == CODING_STYLE:
            coding = body
        position += 2 + length
    if len(size) < 39 or len(coding) < 10:
        return None
    return Codestream(1 + (size[36] & 127), size[36] >= 128, _count_packets(size, coding))


def _count_packets(size: bytes, coding: bytes) -> int:
    """Return a limit of the number of packets of a tile."""
    right, bottom, left, top, tile_width, tile_height = (
        int.from_bytes(size[offset : offset + 4]) for offset in range(2, 26, 4)
    )
    width, height = min(right - left, tile_width), min(bottom - top, tile_height)
    components = int.from_bytes(size[34:36])
    layers, levels = int.from_bytes(coding[2:4]), coding[5]
    precincts = 0
    for resolution in range(levels + 1):
        sizes = coding[10 + resolution] if coding[0] & 1 and len(coding) > 10 + resolution else 0xFF
        scale = levels - resolution
        across, down = (
            math.ceil(side / 2**scale / 2**exponent)
            for side, exponent in ((width, sizes & 15), (height, sizes >> 4))
        )
        # A tile may begin and end within precincts.
        precincts += (across + (across > 1)) * (down + (down > 1))
    return layers * components * precincts


def _tile_parts(content: bytes) -> Iterator[bytes]:
    """Yield the data of each part of a tile."""
    position = content.find(TILE_PART)
    while position >= 0 and content[position : position + 2] == TILE_PART:
        length = int.from_bytes(content[position + 6 : position + 10])
        if length == 0:  # up to the end
            last = content.rfind(END)
            length = (len(content) if last < position else last) - position
        end = position + length
        marker = position
        while marker < end and content[marker : marker + 2] != DATA:
            marker += 2 + int.from_bytes(content[marker + 2 : marker + 4])
        yield content[marker + 2 : end]
        if length < 14:
            return
        position = end
