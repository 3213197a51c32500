"""Cleaning of masks, compared with the labelling of scipy.ndimage."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from carvana_batch.masks.specks import areas_of_regions, clean, find_background, find_runs
from carvana_batch.values import PackedMask

CORNERS = np.ones((3, 3))
"""Pixels that share only a corner are connected."""


def random_bits(seed):
    random = np.random.default_rng(seed)
    shape = random.integers(1, 40, 2)
    return ndimage.gaussian_filter(random.standard_normal(shape), 1) > random.uniform(-0.2, 0.3)


def draw(runs, shape):
    bits = np.zeros(shape, bool)
    for row, start, end in zip(*runs, strict=True):
        bits[row, start:end] = True
    return bits


@pytest.mark.parametrize("seed", range(50))
def test_regions_are_those_of_another_implementation(seed):
    bits = random_bits(seed)
    runs = find_runs(PackedMask.from_bool(bits))
    np.testing.assert_array_equal(draw(runs, bits.shape), bits)
    labels, _ = ndimage.label(bits, CORNERS)
    np.testing.assert_array_equal(
        areas_of_regions(runs, 1, 1), np.bincount(labels.ravel())[labels[runs.row, runs.start]]
    )
    framed = np.pad(~bits, 1, constant_values=True)
    background = find_background(runs, *bits.shape)
    background = type(background)(background.row + 1, background.start + 1, background.end + 1)
    np.testing.assert_array_equal(draw(background, framed.shape), framed)
    labels, _ = ndimage.label(framed)
    np.testing.assert_array_equal(
        areas_of_regions(background, 1, 0),
        np.bincount(labels.ravel())[labels[background.row, background.start]],
    )


@pytest.mark.parametrize(("gap", "area"), [(0, 8), (3, 8), (4, 4)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_pieces_near_each_other_are_one_region(gap, area, is_turned):
    bits = np.zeros((2, 20), bool)
    bits[:, 2:4] = bits[:, 4 + gap : 6 + gap] = True
    runs = find_runs(PackedMask.from_bool(bits.T if is_turned else bits))
    assert set(areas_of_regions(runs, 4, 4).tolist()) == {area}


def car():
    """A car of 20,000 pixels in a photo of 480x200, within 2 pixels of which pieces are near it."""
    bits = np.zeros((200, 480), bool)
    bits[60:160, 100:300] = True
    return bits


def cleaned(bits):
    return clean(PackedMask.from_bool(bits)).to_bool()


@pytest.mark.parametrize(
    ("part", "is_kept"),
    [
        ((slice(10, 11), slice(10, 11)), False),  # a single pixel far away
        ((slice(10, 20), slice(10, 29)), False),  # 190 pixels: less than 1 % of the car
        ((slice(10, 20), slice(10, 30)), True),  # 200 pixels
        ((slice(30, 59), slice(200, 201)), True),  # an antenna with a gap of one pixel
        ((slice(30, 56), slice(200, 201)), False),  # with a gap of four pixels
        ((slice(58, 59), slice(200, 201)), False),  # a single pixel near the car
    ],
)
def test_parts_that_are_specks_are_removed(part, is_kept):
    bits = car()
    bits[part] = True
    np.testing.assert_array_equal(cleaned(bits), bits if is_kept else car())


@pytest.mark.parametrize(
    ("hole", "is_filled"),
    [
        ((slice(100, 101), slice(200, 201)), True),
        ((slice(100, 101), slice(200, 202)), False),  # 2 of 20,000 pixels
        ((slice(60, 61), slice(200, 201)), False),  # a notch in the outline
    ],
)
def test_holes_that_are_specks_are_filled(hole, is_filled):
    bits = car()
    bits[hole] = False
    np.testing.assert_array_equal(cleaned(bits), car() if is_filled else bits)


def test_the_border_of_a_photo_is_no_hole():
    bits = np.ones((100, 300), bool)
    bits[0, 0] = bits[-1, 150] = bits[50, -1] = False
    np.testing.assert_array_equal(cleaned(bits), bits)


def test_a_removed_speck_does_not_leave_its_own_hole():
    bits = car()
    bits[5:12, 5:12] = True
    bits[8, 8] = False
    np.testing.assert_array_equal(cleaned(bits), car())


@pytest.mark.parametrize("value", [False, True])
def test_masks_without_specks_are_returned_as_they_are(value):
    for bits in (np.full((5, 9), value), car()):
        mask = PackedMask.from_bool(bits)
        assert clean(mask) is mask


@pytest.mark.parametrize("seed", range(20))
def test_cleaning_twice_changes_nothing_and_does_not_depend_on_the_orientation(seed):
    random = np.random.default_rng(seed)
    bits = ndimage.gaussian_filter(random.standard_normal((200, 300)), 3) > 0.05
    once = cleaned(bits)
    assert (once != bits).any()
    np.testing.assert_array_equal(cleaned(np.rot90(bits)), np.rot90(once))
    np.testing.assert_array_equal(cleaned(bits[:, ::-1]), once[:, ::-1])


def test_padding_bits_stay_zero():
    bits = car()[:, :299]
    bits[:, :8] = False
    bits[3, 298] = True
    mask = clean(PackedMask.from_bool(bits))
    np.testing.assert_array_equal(np.unpackbits(mask.rows, axis=1)[:, 299:], 0)
    assert mask.to_bool()[3, 298] == 0


def test_cleaning_noise_takes_memory_in_proportion_to_its_pixels():
    """In noise, each run is near many others: 60 in a photo of this size, and 600 in one of 12 megapixels."""
    mask = PackedMask.from_bool(np.random.default_rng(0).random((640, 960)) > 0.5)
    tracemalloc.start()
    clean(mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 640 * 960
