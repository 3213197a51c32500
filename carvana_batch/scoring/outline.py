"""Distances between the outlines of two masks.

An outline consists of the foreground pixels that share a side with background or with the image border.
Distances are measured between pixel centres, in pixels: if a mask is one pixel too large all around, every
pixel of its outline is 1 away from the true one. Pixels next to those that the true mask ignores belong to no
outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from carvana_batch.masks.counts import clear_ignored, count
from carvana_batch.masks.morphology import DISC_11, find_outline, find_pixels, grow
from carvana_batch.values import PackedMask

Points = NDArray[np.int64]
"""Pixel coordinates, (N, 2): row and column."""

BAND_DISC = DISC_11
"""Structuring element of the band for ``band_dice``: five pixels to either side of the true outline."""


@dataclass(frozen=True, slots=True)
class BoundaryMetrics:
    """How far two outlines are apart.

    Attributes:
        mean: mean distance, in pixels, from each pixel of either outline to the nearest pixel of the other,
            over both outlines together. 0 if both masks are empty, None (undefined) if only one of them has
            an outline, or if neither has one because of ignored pixels.
        p95: 95th percentile of the same distances; 0 or None as for ``mean``.
        band_dice: Dice of the pixels within ``BAND_DISC`` of the true outline. 1 if both masks are empty,
            None if the true mask has no outline.
    """

    mean: float | None
    p95: float | None
    band_dice: float | None


def compare_outlines(predicted: PackedMask, true: PackedMask) -> BoundaryMetrics:
    """Measure how far the outline of ``predicted`` is from that of ``true``; their sizes must be equal."""
    predicted = clear_ignored(predicted, true)
    outlines = find_outline(predicted, true.ignored), find_outline(true, true.ignored)
    predicted_points, true_points = map(find_pixels, outlines)
    if not predicted.rows.any() and not true.rows.any():
        return BoundaryMetrics(mean=0.0, p95=0.0, band_dice=1.0)
    mean = p95 = None
    if len(predicted_points) and len(true_points):
        distances = np.concatenate(
            [
                nearest_distances(predicted_points, true_points),
                nearest_distances(true_points, predicted_points),
            ]
        )
        mean, p95 = float(distances.mean()), float(np.percentile(distances, 95))
    if not len(true_points):
        return BoundaryMetrics(mean, p95, band_dice=None)
    band = grow(outlines[1], BAND_DISC).rows
    within_band = [PackedMask(mask.rows & band, mask.width) for mask in (predicted, true)]
    return BoundaryMetrics(mean, p95, band_dice=count(*within_band).dice)


def nearest_distances(points: Points, targets: Points, limit: float = np.inf) -> NDArray[np.float64]:
    """Return the distance, (N,) in pixels, of each point to the nearest target; inf if above ``limit``."""
    if not len(points) or not len(targets):
        return np.full(len(points), np.inf)
    tree = cKDTree(targets, balanced_tree=False, compact_nodes=False)  # builds three times as fast
    distances: NDArray[np.float64] = tree.query(points, distance_upper_bound=np.nextafter(limit, np.inf))[0]
    return distances
