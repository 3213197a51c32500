"""Tells a band of a third level along the outline, as in trimaps, from soft edges and compression noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from carvana_batch.masks.morphology import find_outline
from carvana_batch.values import PackedMask

BAND_SHARE = 0.55
"""Least share of the pixels between two levels that are near a single third one. It is at most 0.45 for masks
that were resized or blurred and have ``BAND_WIDTH``, and at least 0.6 for bands of 1 to 15 pixels at JPEG
qualities from 50 on."""

BAND_WIDTH = 0.55
"""Least number of pixels near that level for each pixel of the outline. It is at most 0.45 for masks that
were resized so that single levels are frequent, such as to half their size; and at least 0.6 for bands."""

LEAST_PIXELS = 64
"""Fewer pixels are no band along the outline of a car."""

NEAR = 12 / 255
"""How far pixels near a level may be from it, of the full range."""


def find_band(
    grey: NDArray[np.uint8] | NDArray[np.uint16], low: int, high: int, full: int
) -> tuple[int, int] | None:
    """Find a level between two others that a band along the outline has.

    A soft edge has all levels between the two about equally often, and compression noise mostly such near
    them.

    Args:
        grey: (H, W), the values of a mask.
        low: the level of background.
        high: the level of car.
        full: the largest value that the file can hold.

    Returns:
        The level, and the number of pixels near it; None if there is no band.
    """
    margin = (high - low) // 8
    near = min(round(NEAR * full), margin)
    first, last = low + margin, high - margin
    counts = np.bincount(grey.ravel(), minlength=high + 1)[first : last + 1]
    between = int(counts.sum())
    sums = np.concatenate([[0], counts.cumsum()])
    sums = sums[2 * near + 1 :] - sums[: -2 * near - 1]
    best, pixels = int(sums.argmax()), int(sums.max())
    if pixels < max(LEAST_PIXELS, BAND_SHARE * between):
        return None
    outline = find_outline(PackedMask.from_bool(grey > (low + high) // 2))
    if pixels < BAND_WIDTH * int(np.bitwise_count(outline.rows).sum()):
        return None
    level = first + best + int(counts[best : best + 2 * near + 1].argmax())
    return level, pixels
