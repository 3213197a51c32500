"""Whether rows are recognised that were made of masks of another size, or down the columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.masks import rle
from carvana_batch.masks.layout import Misfit, find_clear_line, find_misfit, fits_swapped, measure_misfit

SIZE = (160, 100)


def ellipse(width, height, shift=0):
    """An ellipse with a bump and a hole, similar to a car with a window, whose place depends on ``shift``."""
    y, x = np.mgrid[:height, :width]
    x, y = (x - width / 2 - shift) / width, (y - height / 2 + shift) / height
    body = (x / 0.35) ** 2 + (y / 0.3) ** 2 < 1
    bump = (abs(x - 0.1) < 0.05) & (abs(y) < 0.4)
    hole = (abs(x + 0.1) < 0.05) & (abs(y + 0.1) < 0.05)
    return (body | bump) & ~hole


def rows_of(masks, size=SIZE):
    return [(rle.encode(mask), size) for mask in masks]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=9),
    st.integers(1, 60),
)
def test_the_misfit_is_the_number_of_differing_pixels(gaps_and_lengths, line):
    lengths = np.array(gaps_and_lengths).cumsum()
    runs = lengths.reshape(-1, 2)
    pixels = np.zeros(int(runs[-1, 1]) + 2 * line + 1, bool)
    for start, end in runs:
        pixels[line + start : line + end] = True
    assert measure_misfit(runs, line) == np.count_nonzero(pixels[line:] != pixels[:-line])


@pytest.mark.parametrize("size", [(160, 100), (100, 160), (120, 120), (1918, 1280)])
def test_right_rows_fit(size):
    assert find_misfit(rows_of([ellipse(size[0], size[1], shift) for shift in range(5)], size)) is None


@pytest.mark.parametrize("size", [(160, 100), (100, 160)])
def test_rows_down_the_columns_are_recognised(size):
    masks = [ellipse(size[0], size[1], shift).T for shift in range(5)]
    assert find_misfit(rows_of(masks, size)) == Misfit(size[1], columns=True, rows=5, judged=5)


@pytest.mark.parametrize("true_size", [(80, 50), (81, 50), (120, 90), (90, 120), (150, 100)])
def test_rows_of_another_width_are_recognised(true_size):
    masks = [ellipse(true_size[0], true_size[1], shift) for shift in range(5)]
    misfit = find_misfit(rows_of(masks))
    assert (misfit.line, misfit.columns, misfit.judged) == (true_size[0], False, 5)


@pytest.mark.parametrize("wider", [-2, -1, 1, 2])
def test_a_few_pixels_of_width_are_recognised(wider):
    masks = [ellipse(480 + wider, 320, shift) for shift in range(5)]
    assert find_misfit(rows_of(masks, (480, 320))).line == 480 + wider
    assert find_misfit(rows_of(masks[:2], (480, 320))) is None


def runs_of(mask, size):
    return rle.parse(rle.encode(mask), size[1], size[0])


@pytest.mark.parametrize("size", [(160, 100), (100, 160), (120, 120), (1918, 1280)])
def test_a_single_right_row_fits(size):
    runs = runs_of(ellipse(*size), size)
    assert find_clear_line(runs, *size) == size[0]
    assert not fits_swapped(runs, *size)


@pytest.mark.parametrize("line", [80, 99, 120, 151])
def test_a_single_row_of_another_width(line):
    runs = runs_of(ellipse(line, 90), SIZE)
    assert find_clear_line(runs, *SIZE) == line
    assert not fits_swapped(runs, *SIZE)


@pytest.mark.parametrize("size", [(160, 100), (100, 160)])
def test_a_single_row_with_swapped_sides(size):
    assert fits_swapped(runs_of(ellipse(*size[::-1]), size), *size)


def test_a_single_row_that_may_be_slanted_or_is_short_fits():
    assert find_clear_line(runs_of(ellipse(163, 90), SIZE), *SIZE) == SIZE[0]
    few = runs_of(np.ones((15, 80), bool) & (np.arange(80) > 9), SIZE)
    assert len(few) == 15
    assert find_clear_line(few, *SIZE) == SIZE[0]


def test_noise_and_slants_are_no_misfit():
    generator = np.random.default_rng(0)
    assert find_misfit(rows_of([generator.random(SIZE[::-1]) < 0.5 for _ in range(5)])) is None
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    slanted = abs(x - y - 20) < 10
    assert find_misfit(rows_of([slanted])) is None
    assert find_misfit(rows_of([slanted, slanted, slanted])).line == SIZE[0] + 1


def test_rows_that_say_nothing_are_not_judged():
    wrong = rows_of([ellipse(80, 50)])
    nothing = [("", SIZE), ("5 1 3 1", SIZE), ("a", SIZE), ("1 99999999", SIZE), ("3 5 20 4", SIZE)]
    assert find_misfit(nothing) is None
    assert find_misfit([*nothing, *wrong]) == Misfit(80, columns=False, rows=1, judged=1)


def test_rows_must_agree():
    masks = [ellipse(80, 50), ellipse(96, 60), ellipse(120, 75), ellipse(*SIZE)]
    assert find_misfit(rows_of(masks)) is None


def test_square_masks_have_the_same_lines_either_way():
    assert find_misfit(rows_of([ellipse(100, 100).T], (100, 100))) is None
