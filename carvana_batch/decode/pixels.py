"""Check image sizes, scale pixel values to 8 bits, and make images of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.errors import ImageError
from carvana_batch.notes import Note

CUT_SHORT = "is cut short: the file ends before the picture does"

ORIENTATION = 0x0112
"""The number of the orientation tag, in EXIF and in TIFF."""

PAGES = "pages"
"""Key in the ``info`` of an image that is decoded already: the number of its pages or frames."""

NOTES = "notes"
"""Key in the ``info`` of an image: a tuple of notes about how it was decoded."""

SIGNIFICANT_BITS = "significant bits"
"""Key in the ``info`` of an image of mode I;16: the number of bits in which its values are."""

BITS = "bits"
"""Key in the ``info`` of an image from a TIFF: the bits of a value, unless it was scaled from more than 8."""

DIFFERING_SAMPLES = "differing samples"
"""Key in the ``info`` of an image from a TIFF: whether ignored samples differ."""

LOSSY = "lossy"
"""Key in the ``info`` of an image that is decoded already: whether JPEG has changed its values."""

FEWEST_BITS, MOST_BITS = 8, 14
"""Range of the bits of cameras whose values are stored in 16 bits without being scaled."""

BLACK_LEVEL = 1024
"""By so much, values of 14 bits may be larger than that: some programs leave the level of black in them."""

FEW_VALUES, FEW_SHARE, LARGEST_SHARE = 16, 1e-5, 0.01
"""So many values, or such a share if more, may be larger, as hot pixels are; but at most the last share."""


def check_size(width: int, height: int, pixel_limit: int) -> None:
    """Check the size of an image.

    Raises:
        ImageError: the image has no pixels, or more than ``pixel_limit``.
    """
    if width < 1 or height < 1:
        raise ImageError("has no pixels")
    if width * height > pixel_limit:
        raise ImageError(
            f"has {width} x {height} pixels, more than the limit of {pixel_limit:,}; "
            "if it is meant to be that large, raise --pixel-limit"
        )


def scale_to_eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Scale pixel values to 0..255, with rounding.

    Args:
        values: unsigned integers, or floating-point values from 0 to 1; any shape. Integers of 2**bits and
            above become 255.
        bits: number of significant bits of integers, at most 16.

    Raises:
        ImageError: floating-point values are outside of 0..1, or NaN.
    """
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ImageError("has floating-point values outside of 0 to 1; save it with 8 or 16 bits")
        return np.rint(values * 255.0).astype(np.uint8)
    if bits == 8:
        return values if values.dtype == np.uint8 else np.minimum(values, 255).astype(np.uint8)
    table = np.rint(np.linspace(0, 255, 2**bits)).astype(np.uint8)
    if values.max() >= 2**bits:
        values = np.minimum(values, 2**bits - 1)
    return table[values.astype(np.uint16, copy=False)]


def significant_bits(values: NDArray[np.uint16], declared: int | None = None) -> int:
    """Return in how many of their 16 bits the values of a photo are: 8 to 14, or 16.

    Cameras of 10, 12 or 14 bits often store their values in 16 bits as they are, which would be nearly black
    if 65535 were white. Without a declaration, values that leave the upper two bits empty, but for a few hot
    pixels, are taken for such values. This also brightens photos that are as dark as that, which a note
    reports.

    Args:
        values: colours without alpha, of any shape.
        declared: the number of bits that the file declares; ignored if the values need more.
    """
    needed = _largest_value(values).bit_length()
    if (
        declared is not None
        and needed <= declared
        and (FEWEST_BITS <= declared <= MOST_BITS or declared == 16)
    ):
        return declared
    return max(FEWEST_BITS, needed) if 0 < needed <= MOST_BITS else 16


def _largest_value(values: NDArray[np.uint16]) -> int:
    """Return the largest value; without hot pixels and a level of black, if all others are of few bits."""
    largest, white = int(values.max()), (1 << MOST_BITS) - 1
    if largest < 2**MOST_BITS + BLACK_LEVEL:
        return min(largest, white)
    hot = int(np.count_nonzero(values >= 2**MOST_BITS))
    if hot > min(max(FEW_VALUES, FEW_SHARE * values.size), LARGEST_SHARE * values.size):
        return largest
    rest = int(values.max(where=values < 2**MOST_BITS, initial=0))
    return rest or largest  # a picture of two values is a mask


def notes_on_bits(bits: int) -> tuple[Note, ...]:
    """Return the notes about a photo whose 16-bit values are in so many bits."""
    return () if bits == 16 else (Note(f"scaled from {bits} bits"),)


def to_image(
    colours: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None, *, premultiplied: bool = False
) -> Image.Image:
    """Make an image of mode L, RGB, CMYK, RGBA or RGBa.

    Args:
        colours: (H, W, channels).
        alpha: (H, W); only with 1 or 3 channels.
        premultiplied: whether the colours are multiplied by alpha.
    """
    height, width, channels = colours.shape
    if alpha is None:
        return Image.frombytes({1: "L", 3: "RGB", 4: "CMYK"}[channels], (width, height), colours.tobytes())
    colours = np.broadcast_to(colours, (height, width, 3))
    mode = "RGBa" if premultiplied else "RGBA"
    return Image.frombytes(mode, (width, height), np.dstack([colours, alpha]).tobytes())


def scale_samples(
    colours: NDArray[Any], alpha: NDArray[Any] | None, bits: int, declared: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, tuple[Note, ...]]:
    """Scale colours and alpha to 8 bits, those of 16 bits from their :func:`significant_bits`.

    Floating-point values of which all are as small as values of fewer bits in 16 are treated like these.

    Args:
        colours: values as for :func:`scale_to_eight_bits`; any shape.
        alpha: of the same type, or None.
        bits: in which integers are stored.
        declared: as for :func:`significant_bits`.

    Returns:
        Colours, alpha, and notes.

    Raises:
        ImageError: floating-point values are outside of 0..1, or NaN.
    """
    if colours.dtype.kind == "f" and colours.min() >= 0 and colours.max() < 2**MOST_BITS / 65535:
        colours, bits = np.rint(colours * 65535.0).astype(np.uint16), 16
        alpha = None if alpha is None else np.rint(alpha.clip(0, 1) * 65535.0).astype(np.uint16)
    notes: tuple[Note, ...] = ()
    alpha_bits = bits
    if colours.dtype == np.uint16 and bits == 16:
        bits = significant_bits(colours, declared)
        if alpha is not None and alpha.max() < 2**bits:
            alpha_bits = bits
        notes = notes_on_bits(bits)
    scaled_alpha = None if alpha is None else scale_to_eight_bits(alpha, alpha_bits)
    return scale_to_eight_bits(colours, bits), scaled_alpha, notes
