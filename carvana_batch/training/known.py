"""Masks of known pixels: 255 where the true mask is known, else 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

ALL_KNOWN = 254.99
"""A resampled pixel above this value has no unknown part, apart from errors of rounding."""


def resample_known(known: Image.Image, resample: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Resample an L mask of known pixels, so that a pixel with any unknown part becomes unknown.

    Args:
        known: the mask.
        resample: what to do; it gets the mask in mode F, because 8 bits would round small parts away.
    """
    shares = np.asarray(resample(known.convert("F")))
    return Image.fromarray((shares > ALL_KNOWN).astype(np.uint8) * 255)


def is_all_known(known: Image.Image) -> bool:
    return bool(known.getextrema() == (255, 255))
