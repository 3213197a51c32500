"""Decode JPEG XL images with imagecodecs, after reading their size and depth from the header.

The header is described in ISO/IEC 18181-1, sections 9 (size) and 10 (metadata).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import imagecodecs
from PIL import Image

from carvana_batch.decode.pixels import CUT_SHORT, NOTES, PAGES, check_size, scale_samples, to_image
from carvana_batch.errors import ImageError

CONTAINER = b"\0\0\0\x0cJXL "

RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
"""Ratios of width to height, by their number in the header."""

HEADER_BYTES = 64
"""More than the longest header up to the depth."""


class JpegXlHeader(NamedTuple):
    """The beginning of a JPEG XL image.

    Attributes:
        width: in pixels, as stored.
        height: in pixels, as stored.
        bits: of a sample; 0 for floating-point values.
        is_animated: whether it may have several frames.
    """

    width: int
    height: int
    bits: int
    is_animated: bool = False


def decode_jpeg_xl(file: BinaryIO, pixel_limit: int) -> Image.Image:
    """Decode the first frame, upright.

    Args:
        file: an open JPEG XL, at its start.
        pixel_limit: most pixels that the image may have.

    Raises:
        ImageError: the image is too large, or has floating-point values outside of 0 to 1. For damage,
            imagecodecs raises errors of its own.
    """
    content = file.read()
    header = read_jpeg_xl_header(content)
    check_size(header.width, header.height, pixel_limit)
    values = imagecodecs.jpegxl_decode(content, index=0, numthreads=1)
    values = values.reshape(*values.shape[:2], -1)
    if values.shape[2] > 4:
        raise ImageError(
            f"has {values.shape[2]} channels, so it is not clear which are colours; save it as RGB"
        )
    channels = 1 if values.shape[2] < 3 else 3
    alpha = values[..., channels] if values.shape[2] > channels else None
    colours, alpha, notes = scale_samples(values[..., :channels], alpha, header.bits)
    image = to_image(colours, alpha)
    image.info[PAGES], image.info[NOTES] = 1 + header.is_animated, notes
    return image


def read_jpeg_xl_header(content: bytes) -> JpegXlHeader:
    """Read the header of a JPEG XL image, in a container or not.

    Raises:
        ImageError: there is no header.
    """
    bits = _Bits(_find_codestream(content))
    if bits.read(16) != 0x0AFF:
        raise ImageError("is damaged or cut short: its header cannot be read")
    width, height = _read_size(bits)
    return JpegXlHeader(width, height, *_read_depth(bits))


def _find_codestream(content: bytes) -> bytes:
    """Return the first bytes of the codestream.

    Raises:
        ImageError: the container has none.
    """
    if not content.startswith(CONTAINER):
        return content[:HEADER_BYTES]
    position = 0
    while position + 8 <= len(content):
        size, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        start = position + 8
        if size == 1:  # the size follows in 8 bytes
            size = int.from_bytes(content[start : start + 8])
            start += 8
        if kind in {b"jxlc", b"jxlp"}:
            start += 4 if kind == b"jxlp" else 0  # the number of the part
            return content[start : start + HEADER_BYTES]
        if size < 8:
            break
        position += size
    raise ImageError("is damaged or cut short: its header cannot be read")


class _Bits:
    """Reads numbers from bytes, lowest bits first."""

    def __init__(self, data: bytes) -> None:
        self._number = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Return the next ``count`` bits as a number.

        Raises:
            ImageError: there are not so many.
        """
        if count > self._left:
            raise ImageError(CUT_SHORT)
        value = self._number & ((1 << count) - 1)
        self._number >>= count
        self._left -= count
        return value

    def choose(self, choices: Sequence[tuple[int, int]]) -> int:
        """Read which of four (offset, number of bits) is used, then the bits, and add the offset."""
        offset, count = choices[self.read(2)]
        return offset + self.read(count)


def _read_size(bits: _Bits) -> tuple[int, int]:
    """Read a SizeHeader; return width and height."""
    is_small = bits.read(1)

    def read_side() -> int:
        if is_small:
            return 8 * (1 + bits.read(5))
        return bits.choose([(1, 9), (1, 13), (1, 18), (1, 30)])

    height = read_side()
    ratio = bits.read(3)
    if ratio == 0:
        return read_side(), height
    numerator, denominator = RATIOS[ratio]
    return height * numerator // denominator, height


def _skip_preview(bits: _Bits) -> None:
    """Skip a PreviewHeader."""
    choices = [(2, 0), (4, 0), (1, 5), (33, 9)] if bits.read(1) else [(1, 6), (65, 8), (321, 10), (1345, 12)]
    bits.choose(choices)
    if bits.read(3) == 0:
        bits.choose(choices)


def _skip_animation(bits: _Bits) -> None:
    """Skip an AnimationHeader."""
    bits.choose([(100, 0), (1000, 0), (1, 10), (1, 30)])
    bits.choose([(1, 0), (1001, 0), (1, 8), (1, 10)])
    bits.choose([(0, 0), (0, 3), (0, 16), (0, 32)])
    bits.read(1)


def _read_depth(bits: _Bits) -> tuple[int, bool]:
    """Read ImageMetadata up to the depth.

    Returns:
        The bits of a sample, 0 if it is floating-point, and whether it is an animation.
    """
    if bits.read(1):  # all values are defaults
        return 8, False
    is_animated = False
    if bits.read(1):  # there are extra fields
        bits.read(3)  # orientation
        if bits.read(1):
            _read_size(bits)  # the size at which it is meant to be shown
        if bits.read(1):
            _skip_preview(bits)
        is_animated = bool(bits.read(1))
        if is_animated:
            _skip_animation(bits)
    if bits.read(1):
        return 0, is_animated
    return bits.choose([(8, 0), (10, 0), (12, 0), (1, 6)]), is_animated
