"""Check image sizes, and scale pixel values to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import ImageError

ORIENTATION = 0x0112
"""The number of the orientation tag, in EXIF and in TIFF."""


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
        values: unsigned integers below 2**bits, or floating-point values from 0 to 1; any shape.
        bits: number of significant bits of integers, at most 16.

    Raises:
        ImageError: floating-point values are outside of 0..1, or NaN.
    """
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ImageError("has floating-point values outside of 0 to 1; save it with 8 or 16 bits")
        return np.rint(values * 255.0).astype(np.uint8)
    if bits == 8:
        return values.astype(np.uint8, copy=False)
    table = np.rint(np.linspace(0, 255, 2**bits)).astype(np.uint8)
    return table[values.astype(np.uint16, copy=False)]
