"""Distances between outlines, compared with all pairs of pixels and with a distance transform."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist

from carvana_batch.scoring.outline import BoundaryMetrics, compare_outlines, nearest_distances
from carvana_batch.values import PackedMask

pairs = st.tuples(st.integers(1, 24), st.integers(1, 30)).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def compare(predicted, true):
    return compare_outlines(PackedMask.from_bool(predicted), PackedMask.from_bool(true))


def rectangle(top, bottom, left, right, shape=(40, 50)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def outline_of(mask):
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


def test_one_pixel_too_large_all_around():
    boundary = compare(rectangle(9, 21, 9, 21), rectangle(10, 20, 10, 20))
    # 44 pixels of the larger outline, of which the 4 corners are diagonal, and 36 of the smaller one
    assert boundary.mean == pytest.approx((40 + 4 * math.sqrt(2) + 36) / 80)
    assert boundary.p95 == pytest.approx(1 + (math.sqrt(2) - 1) * 0.05)  # index 75.05 of 0..79
    assert boundary.band_dice == pytest.approx(2 * 100 / (100 + 144))


def test_shifted_by_three_pixels():
    boundary = compare(rectangle(10, 30, 13, 33), rectangle(10, 30, 10, 30))
    assert 0 < boundary.mean < 3
    assert boundary.p95 == 3


def test_identical_masks_have_no_distance():
    mask = rectangle(3, 30, 5, 40)
    assert compare(mask, mask) == BoundaryMetrics(mean=0, p95=0, band_dice=1)


def test_band_dice_ignores_pixels_outside_the_band():
    true = rectangle(10, 40, 10, 50)
    with_hole = true.copy()
    with_hole[20:30, 20:40] = False
    assert compare(with_hole, true).band_dice == 1
    with_hole[15, 20] = False  # the outline is in row 10
    assert compare(with_hole, true).band_dice < 1


def test_empty_masks():
    square, empty = rectangle(10, 20, 10, 20), np.zeros((40, 50), bool)
    assert compare(empty, empty) == BoundaryMetrics(mean=0, p95=0, band_dice=1)
    assert compare(empty, square) == BoundaryMetrics(mean=None, p95=None, band_dice=0)
    assert compare(square, empty) == BoundaryMetrics(mean=None, p95=None, band_dice=None)


@settings(deadline=None)
@given(pairs)
def test_distances_match_all_pairs_of_pixels(pair):
    predicted, true = map(outline_of, pair)
    boundary = compare(*pair)
    if len(predicted) and len(true):
        all_distances = cdist(predicted, true)
        distances = np.concatenate([all_distances.min(axis=0), all_distances.min(axis=1)])
        assert boundary.mean == pytest.approx(distances.mean(), abs=1e-9)
        assert boundary.p95 == pytest.approx(np.percentile(distances, 95), abs=1e-9)
        swapped = compare(*reversed(pair))
        assert (swapped.mean, swapped.p95) == (pytest.approx(boundary.mean), pytest.approx(boundary.p95))


@settings(deadline=None)
@given(pairs)
def test_band_matches_a_distance_transform(pair):
    predicted, true = pair
    if not true.any():
        return
    outline = true & ~ndimage.binary_erosion(true)
    band = ndimage.distance_transform_edt(~outline) <= 5.5
    inside = predicted & band, true & band
    dice = 2 * (inside[0] & inside[1]).sum() / (inside[0].sum() + inside[1].sum())
    assert compare(predicted, true).band_dice == pytest.approx(dice, abs=1e-9)


def test_distances_above_the_limit_are_infinite():
    points = np.array([[0, 0], [0, 3], [0, 4], [3, 0]])
    targets = np.array([[0, 0], [9, 9]])
    assert nearest_distances(points, targets).tolist() == [0, 3, 4, 3]
    assert nearest_distances(points, targets, 3).tolist() == [0, 3, math.inf, 3]
    assert nearest_distances(points, targets[:0], 3).tolist() == [math.inf] * 4
    assert nearest_distances(points[:0], targets).tolist() == []
