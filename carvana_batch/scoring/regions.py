"""Where masks of cars tend to be wrong, each as a number that can be compared between runs.

- Thin structures (antennas, racks, spokes): how much of them was found.
- The lower outline (wheels and the shadow between them), and the part of the outline where paint and
  background are of similar colour: how many pixels are wrong along them, for each pixel of them. This is
  about how thick the error is there, in pixels; along the whole outline it is the number to compare with.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from carvana_batch.masks.morphology import CROSS, DISC_5, DISC_9, find_outline, find_pixels, grow, open_by
from carvana_batch.scoring.outline import Points, find_distances
from carvana_batch.values import PackedMask

REACH = 20
"""Pixels around the true outline: a wrong pixel further away is no error of the outline."""

NEIGHBOURHOOD = 5
"""Pixels in every direction that the colours of car and background beside an outline pixel are taken from."""

SIMILAR = 10.0
"""Colours less than this apart in CIELAB are similar."""

CHUNK = 4096
"""Outline pixels whose surroundings are looked at together; bounds the memory."""

TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""Linear sRGB to CIE XYZ (IEC 61966-2-1)."""


D65 = np.array([0.95047, 1.0, 1.08883])
"""The XYZ of white in sRGB."""


class OutlineErrors:
    """The wrong pixels of a mask that are at most ``REACH`` from the true outline.

    ``outline`` is (N, 2), the row and column of the pixels of the true outline.
    """

    def __init__(self, predicted: PackedMask, true: PackedMask) -> None:
        self.outline: Points = find_pixels(find_outline(true))
        wrong = find_pixels(PackedMask(predicted.rows ^ true.rows, true.width))
        distances = find_distances(wrong, self.outline, REACH)
        near = distances <= REACH
        self._wrong, self._distances = wrong[near], distances[near]

    @property
    def everywhere(self) -> float | None:
        """Wrong pixels along the whole outline for each pixel of it; None if there is no true outline."""
        return len(self._wrong) / len(self.outline) if len(self.outline) else None

    def along(self, part: Points) -> float | None:
        """Wrong pixels along a part of the outline for each pixel of the part; None if that is empty.

        A wrong pixel lies along the part if no pixel of the outline is nearer than one of the part.
        """
        if not len(part):
            return None
        nearest = find_distances(self._wrong, part, REACH) <= self._distances
        return int(np.count_nonzero(nearest)) / len(part)


def find_thin(true: PackedMask) -> PackedMask:
    """The thin structures of a mask: where it is less than 9 pixels wide, apart from mere corners.

    That is what a morphological opening by a disc of 9 pixels across removes, except within 2 pixels of
    what the opening leaves; without the exception, the rounded corners of the car would outnumber its
    antennas.
    """
    body = grow(open_by(true, DISC_9), DISC_5)
    return PackedMask(true.rows & ~body.rows, true.width)


def find_lower_outline(true: PackedMask) -> Points:
    """The outline towards the ground, (N, 2): where the car, from below, is seen first.

    These are the pixels in the lower half of the mask's height that touch, with one of their four sides,
    background with no car below it, in a column that holds car. (The lower half, because background that
    has no car below it is also found under the mirrors.)
    """
    at_or_below: NDArray[np.uint8] = np.bitwise_or.accumulate(true.rows[::-1], axis=0)[::-1]
    ground = PackedMask(~at_or_below & at_or_below[:1], true.width)
    lower = find_pixels(PackedMask(true.rows & grow(ground, CROSS).rows, true.width))
    rows = np.flatnonzero(true.rows.any(axis=1))
    return lower[2 * lower[:, 0] >= rows[0] + rows[-1]] if len(rows) else lower


def find_similar_outline(true: PackedMask, photo: NDArray[np.uint8], outline: Points) -> Points:
    """The pixels of ``outline`` at which car and background are of similar colour, (N, 2).

    Around each, in the square of 11x11 pixels, the colours of the car (as the true mask has it) and of the
    background are averaged, and are similar if less than ``SIMILAR`` apart in CIELAB (CIE 1976). Where the
    square holds no background, which can be at the frame, they are not.

    Args:
        true: the true mask.
        photo: (H, W, 3) uint8, RGB, of the size of the mask.
        outline: (N, 2), pixels of the outline of ``true``.
    """
    if not len(outline):
        return outline
    reach = NEIGHBOURHOOD
    top, left = np.maximum(outline.min(axis=0) - reach, 0)
    bottom, right = outline.max(axis=0) + reach + 1
    frame = ((reach, reach), (reach, reach))
    car = np.pad(true.to_bool()[top:bottom, left:right], frame)
    inside = np.pad(np.ones((min(bottom, true.height) - top, min(right, true.width) - left), bool), frame)
    colours = np.pad(photo[top:bottom, left:right], (*frame, (0, 0)))
    places = outline - (top, left)  # of the square's corner, in what is padded
    chunks = [places[first : first + CHUNK] for first in range(0, len(places), CHUNK)]
    apart = np.concatenate([_difference(colours, car, inside & ~car, chunk) for chunk in chunks])
    return outline[apart < SIMILAR]


def to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB in 0..255, (..., 3), to CIELAB under D65: L* in 0..100, a* and b* (CIE 15)."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / D65
    x, y, z = np.moveaxis(np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _difference(
    colours: NDArray[np.uint8], car: NDArray[np.bool_], background: NDArray[np.bool_], corners: Points
) -> NDArray[np.float64]:
    """How far car and background are apart in CIELAB in each square, (N,); inf where one is not there."""
    side = 2 * NEIGHBOURHOOD + 1
    rows, columns = corners.T
    squares = sliding_window_view(colours, (side, side), axis=(0, 1)).transpose(0, 1, 3, 4, 2)[rows, columns]
    pixels = squares.reshape(len(corners), -1, 3).astype(np.float32)  # sums of 121 bytes are exact
    means, counts = [], []
    for which in (car, background):
        inside = sliding_window_view(which, (side, side))[rows, columns].reshape(len(corners), -1)
        counts.append(inside.sum(axis=1))
        totals = np.einsum("nkc,nk->nc", pixels, inside.astype(np.float32)).astype(np.float64)
        means.append(to_lab(totals / np.maximum(counts[-1], 1)[:, None]))
    apart = np.linalg.norm(means[0] - means[1], axis=1)
    return np.where(np.minimum(*counts) > 0, apart, np.inf)
