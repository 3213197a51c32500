import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from carvana_batch.demo import draw_photo
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.masks.counts import Counts, SizeError, count
from carvana_batch.output.report import rank_correlation
from carvana_batch.values import PackedMask


def pack(rows):
    return PackedMask.from_bool(np.array(rows, bool))


def count_naively(predicted, true):
    """Pixel by pixel: true positive, false positive, false negative, true negative."""
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for pair in zip(predicted.ravel().tolist(), true.ravel().tolist(), strict=True):
        counts[pair] += 1
    return Counts(*counts.values())


def test_values_worked_out_by_hand():
    predicted = pack([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    true = pack([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    counts = count(predicted, true)
    assert counts == Counts(true_positive=4, false_positive=2, false_negative=1, true_negative=3)
    assert counts.area_predicted == 6
    assert counts.area_true == 5
    assert counts.dice == 8 / 11
    assert counts.iou == 4 / 7
    assert counts.pixel_accuracy == 7 / 10
    assert counts.precision == 4 / 6
    assert counts.recall == 4 / 5


@pytest.mark.parametrize(
    ("counts", "dice", "iou", "accuracy", "precision", "recall"),
    [
        (Counts(0, 0, 0, 9), 1, 1, 1, 1, 1),  # both empty
        (Counts(0, 9, 0, 0), 0, 0, 0, 0, 0),  # all predicted, nothing true
        (Counts(0, 0, 9, 0), 0, 0, 0, 0, 0),  # nothing predicted, all true
        (Counts(0, 0, 3, 6), 0, 0, 6 / 9, 0, 0),
        (Counts(0, 4, 5, 0), 0, 0, 0, 0, 0),  # not one pixel in common
        (Counts(9, 0, 0, 0), 1, 1, 1, 1, 1),
        (Counts(0, 0, 0, 0), 1, 1, 1, 1, 1),  # no pixels at all
    ],
)
def test_the_ends_of_the_scale(counts, dice, iou, accuracy, precision, recall):
    assert counts.dice == dice
    assert counts.iou == iou
    assert counts.pixel_accuracy == accuracy
    assert counts.precision == precision
    assert counts.recall == recall


def test_one_wrong_pixel_of_a_whole_photo_is_not_lost():
    true = np.zeros((1280, 1918), bool)
    true[200:1100, 100:1800] = True
    predicted = true.copy()
    predicted[-1, -1] = True
    counts = count(PackedMask.from_bool(predicted), PackedMask.from_bool(true))
    assert counts == Counts(900 * 1700, 1, 0, 1280 * 1918 - 900 * 1700 - 1)
    assert counts.dice == 2 * 900 * 1700 / (2 * 900 * 1700 + 1) < 1


@given(
    st.tuples(st.integers(1, 8), st.integers(1, 35)).flatmap(
        lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
    )
)
def test_counts_are_those_of_a_loop_over_pixels(pair):
    predicted, true = pair
    counts = count(PackedMask.from_bool(predicted), PackedMask.from_bool(true))
    assert counts == count_naively(predicted, true)
    assert all(type(value) is int for value in (counts.true_positive, counts.true_negative))
    swapped = count(PackedMask.from_bool(true), PackedMask.from_bool(predicted))
    assert (swapped.dice, swapped.iou) == (counts.dice, counts.iou)
    assert (swapped.precision, swapped.recall) == (counts.recall, counts.precision)
    assert counts.dice == pytest.approx(2 * counts.iou / (1 + counts.iou))


RATIOS = {
    "dice": f1_score,
    "iou": jaccard_score,
    "pixel_accuracy": accuracy_score,
    "precision": precision_score,
    "recall": recall_score,
}


def check_against_scikit_learn(predicted, true):
    counts = count(PackedMask.from_bool(predicted), PackedMask.from_bool(true))
    for name, ratio in RATIOS.items():
        assert getattr(counts, name) == pytest.approx(ratio(true.ravel(), predicted.ravel()), abs=1e-9)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 8), st.integers(1, 35)).flatmap(
        lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
    )
)
def test_ratios_are_those_of_scikit_learn(pair):
    predicted, true = pair
    predicted[0, 0] = true[-1, -1] = True  # 0/0 is a convention; see the ends of the scale
    check_against_scikit_learn(predicted, true)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (3, -2), (40, 90)])
def test_ratios_of_a_drawn_car_are_those_of_scikit_learn(down, right):
    _, mask = draw_photo(1, 4, (480, 320))
    true = mask.astype(bool)
    check_against_scikit_learn(np.roll(true, (down, right), axis=(0, 1)), true)


@pytest.mark.skipif("CARVANA_DATA" not in os.environ, reason="CARVANA_DATA names no folder with real photos")
@pytest.mark.real
def test_ratios_of_real_masks_are_those_of_scikit_learn():
    for path in sorted((Path(os.environ["CARVANA_DATA"]) / "val" / "masks").glob("*.gif"))[::100]:
        with Image.open(path) as image:
            true = np.asarray(image) == 1
        check_against_scikit_learn(np.roll(true, (2, 3), axis=(0, 1)), true)


@pytest.mark.parametrize("shape", [(3, 10), (4, 9), (10, 4)])
def test_masks_of_different_sizes_are_refused(shape):
    # 9 and 10 pixels fill the same number of bytes: the width, not the shape of the rows, must decide.
    with pytest.raises(SizeError, match=f"predicted mask is 10x4 pixels, the true one {shape[1]}x{shape[0]}"):
        count(pack(np.ones((4, 10))), pack(np.ones(shape)))
    assert issubclass(SizeError, ValueError)
    assert issubclass(SizeError, CarvanaBatchError)


def test_rank_correlation_by_hand():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1) / (4 * 15) with ranks 1 2 3 4 and 2 1 3 4
    assert rank_correlation([5, 6, 7, 8], [2, 1, 3, 4]) == pytest.approx(0.8)
    # ranks 1.5 1.5 3 against 1 2 3: covariance 0.5, variances 0.5 and 2 / 3
    assert rank_correlation([7, 7, 9], [1, 2, 3]) == pytest.approx(0.5 / (0.5 * 2 / 3) ** 0.5)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [2]), ([1, 1], [1, 2]), ([1, 2], [3, 3])])
def test_rank_correlation_may_be_undefined(first, second):
    assert rank_correlation(first, second) is None
