"""Packed morphology against SciPy's, whose discs are drawn from their radius."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from carvana_batch.masks.morphology import (
    CROSS,
    DISC_5,
    DISC_9,
    DISC_11,
    find_outline,
    find_pixels,
    grow,
    open_by,
    shrink,
)
from carvana_batch.values import PackedMask

DISCS = {DISC_5: 2.5, DISC_9: 4.5, DISC_11: 5.5}
EVERY = [*DISCS, CROSS]


def draw_mask(shape, density, seed):
    return np.random.default_rng(seed).random(shape) < density


sizes = st.tuples(st.integers(1, 30), st.integers(1, 40))
masks = st.builds(draw_mask, sizes, st.sampled_from([0.02, 0.5, 0.9, 0.99]), st.integers(0, 2**32))


def draw_disc(disc):
    if disc == CROSS:
        return ndimage.generate_binary_structure(2, 1)
    y, x = np.mgrid[-8:9, -8:9]
    return y**2 + x**2 <= DISCS[disc] ** 2


def check(packed, expected):
    """Equal, and with padding bits that are 0."""
    np.testing.assert_array_equal(packed.rows, PackedMask.from_bool(expected).rows)
    assert packed.width == expected.shape[1]


@pytest.mark.parametrize("disc", EVERY)
def test_a_pixel_grows_into_the_disc(disc):
    point = np.zeros((17, 17), bool)
    point[8, 8] = True
    expected = np.zeros((17, 17), bool)
    structure = draw_disc(disc)
    reach = structure.shape[0] // 2
    expected[8 - reach : 9 + reach, 8 - reach : 9 + reach] = structure
    check(grow(PackedMask.from_bool(point), disc), expected)
    assert expected.any(axis=0).sum() == 2 * int(disc.radius) + 1


@settings(deadline=None)
@given(masks, st.sampled_from(EVERY))
def test_it_does_what_scipy_does(mask, disc):
    packed, structure = PackedMask.from_bool(mask), draw_disc(disc)
    before = packed.rows.copy()
    check(grow(packed, disc), ndimage.binary_dilation(mask, structure))
    check(shrink(packed, disc), ndimage.binary_erosion(mask, structure))
    check(open_by(packed, disc), ndimage.binary_opening(mask, structure))
    check(find_outline(packed), mask & ~ndimage.binary_erosion(mask))
    np.testing.assert_array_equal(packed.rows, before)


@settings(deadline=None)
@given(masks)
def test_pixels_come_in_row_major_order(mask):
    np.testing.assert_array_equal(find_pixels(PackedMask.from_bool(mask)), np.argwhere(mask))


@pytest.mark.parametrize("width", [7, 8, 9, 1918])
def test_a_whole_image(width):
    full = PackedMask.from_bool(np.ones((12, width), bool))
    check(grow(full, DISC_11), np.ones((12, width), bool))
    assert len(find_pixels(find_outline(full))) == 2 * width + 2 * 10
    empty = PackedMask.from_bool(np.zeros((12, width), bool))
    check(shrink(empty, DISC_5), np.zeros((12, width), bool))
    assert find_pixels(empty).shape == (0, 2)
