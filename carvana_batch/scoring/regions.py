"""Metrics for the regions where masks of cars are often wrong, comparable between runs.

- Thin structures (antennas, racks, spokes): their recall.
- The lower outline (wheels and the shadow between them), and the part of the outline where paint and
  background have similar colours: wrong pixels along that part, per pixel of it. This is roughly the
  thickness of the error there, in pixels; compare it with the same number for the whole outline.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from carvana_batch.colours import srgb_to_lab
from carvana_batch.masks.counts import clear_ignored
from carvana_batch.masks.morphology import CROSS, DISC_5, DISC_9, find_outline, find_pixels, grow, open_by
from carvana_batch.scoring.outline import Points, nearest_distances
from carvana_batch.values import PackedMask

MAX_OUTLINE_DISTANCE = 20
"""Wrong pixels further than this from the true outline, in pixels, are not counted as outline errors."""

COLOUR_RADIUS = 5
"""Half the side, in pixels, of the square around an outline pixel in which colours are averaged."""

SIMILAR_COLOUR_DISTANCE = 10.0
"""Colours whose CIELAB distance (CIE 1976) is less than this are similar."""

CHUNK_PIXELS = 4096
"""Outline pixels whose squares are averaged at a time; bounds the memory."""


class OutlineErrors:
    """The wrong pixels of a mask that are at most ``MAX_OUTLINE_DISTANCE`` from the true outline.

    Attributes:
        outline: (N, 2), row and column of the pixels of the true outline.
    """

    def __init__(self, predicted: PackedMask, true: PackedMask) -> None:
        self.outline: Points = find_pixels(find_outline(true, true.ignored))
        wrong = find_pixels(PackedMask(clear_ignored(predicted, true).rows ^ true.rows, true.width))
        distances = nearest_distances(wrong, self.outline, MAX_OUTLINE_DISTANCE)
        near = distances <= MAX_OUTLINE_DISTANCE
        self._wrong, self._distances = wrong[near], distances[near]

    @property
    def overall(self) -> float | None:
        """Wrong pixels per pixel of the whole outline; None if there is no true outline."""
        return len(self._wrong) / len(self.outline) if len(self.outline) else None

    def along(self, part: Points) -> float | None:
        """Return the wrong pixels along a part of the outline, per pixel of that part; None if it is empty.

        A wrong pixel lies along the part if no pixel of the outline is nearer to it than one of the part.
        """
        if not len(part):
            return None
        nearest = nearest_distances(self._wrong, part, MAX_OUTLINE_DISTANCE) <= self._distances
        return int(np.count_nonzero(nearest)) / len(part)


def find_thin_structures(true: PackedMask) -> PackedMask:
    """Find where a mask is less than 9 pixels wide, not counting corners.

    This is what a morphological opening by a disc of 9 pixels removes, except within 2 pixels of what the
    opening keeps. Without that exception, the rounded corners of the car would outnumber its antennas.
    """
    body = grow(open_by(PackedMask(_car_or_ignored(true), true.width), DISC_9), DISC_5)
    return PackedMask(true.rows & ~body.rows, true.width)


def find_lower_outline(true: PackedMask) -> Points:
    """Find the outline of the car towards the ground, (N, 2): where, coming from below, the car begins.

    These are the pixels in the lower half of the mask that share a side with background that has no car
    below it, in a column that contains car. They are restricted to the lower half because there is also
    background with no car below it under the mirrors.
    """
    at_or_below: NDArray[np.uint8] = np.bitwise_or.accumulate(_car_or_ignored(true)[::-1], axis=0)[::-1]
    ground = PackedMask(~at_or_below & at_or_below[:1], true.width)
    lower = find_pixels(PackedMask(true.rows & grow(ground, CROSS).rows, true.width))
    rows = np.flatnonzero(true.rows.any(axis=1))
    return lower[2 * lower[:, 0] >= rows[0] + rows[-1]] if len(rows) else lower


def find_similar_outline(true: PackedMask, photo: NDArray[np.uint8], outline: Points) -> Points:
    """Find the pixels of ``outline`` at which car and background have similar colours.

    The colours of car (according to the true mask) and background are each averaged over the square of
    11x11 pixels around the outline pixel. They are similar if they are less than
    ``SIMILAR_COLOUR_DISTANCE`` apart in CIELAB (CIE 1976). Where the square contains no background, which
    can happen at the image border, they are not similar.

    Args:
        true: the true mask.
        photo: (H, W, 3) uint8, RGB, of the size of the mask.
        outline: (N, 2), pixels of the outline of ``true``.

    Returns:
        (M, 2), a selection of ``outline``.
    """
    if not len(outline):
        return outline
    radius = COLOUR_RADIUS
    top, left = np.maximum(outline.min(axis=0) - radius, 0)
    bottom, right = outline.max(axis=0) + radius + 1
    padding = ((radius, radius), (radius, radius))
    car = np.pad(true.to_bool()[top:bottom, left:right], padding)
    filled = PackedMask(_car_or_ignored(true), true.width).to_bool()
    background = np.pad(~filled[top:bottom, left:right], padding)
    colours = np.pad(photo[top:bottom, left:right], (*padding, (0, 0)))
    corners = outline - (top, left)  # top left corner of each square in the padded arrays
    chunks = [corners[first : first + CHUNK_PIXELS] for first in range(0, len(corners), CHUNK_PIXELS)]
    distances = np.concatenate([_colour_distances(colours, car, background, chunk) for chunk in chunks])
    return outline[distances < SIMILAR_COLOUR_DISTANCE]


def _car_or_ignored(true: PackedMask) -> NDArray[np.uint8]:
    return true.rows if true.ignored is None else true.rows | true.ignored


def _colour_distances(
    colours: NDArray[np.uint8], car: NDArray[np.bool_], background: NDArray[np.bool_], corners: Points
) -> NDArray[np.float64]:
    """Return the CIELAB distance of car and background in each square, (N,); inf if either is missing."""
    side = 2 * COLOUR_RADIUS + 1
    rows, columns = corners.T
    squares = sliding_window_view(colours, (side, side), axis=(0, 1)).transpose(0, 1, 3, 4, 2)[rows, columns]
    pixels = squares.reshape(len(corners), -1, 3).astype(np.float32)  # exact for sums of 121 bytes
    means, counts = [], []
    for region in (car, background):
        inside = sliding_window_view(region, (side, side))[rows, columns].reshape(len(corners), -1)
        counts.append(inside.sum(axis=1))
        totals = np.einsum("nkc,nk->nc", pixels, inside.astype(np.float32)).astype(np.float64)
        means.append(srgb_to_lab(totals / np.maximum(counts[-1], 1)[:, None]))
    distances = np.linalg.norm(means[0] - means[1], axis=1)
    return np.where(np.minimum(*counts) > 0, distances, np.inf)
