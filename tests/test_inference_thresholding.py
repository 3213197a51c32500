import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from networks import WHOLE, Redness, make_predictor, predict_one, random_photo, red_mask, red_probability
from torch import Tensor

from carvana_batch.inference import thresholding
from carvana_batch.inference.thresholding import (
    expected_dice,
    pack_above,
    pack_bits_on_device,
    threshold_and_pack,
)
from carvana_batch.inference.tiles import Tiling
from carvana_batch.network.blocks import AnySizeNetwork

# Thresholds and packing


class Half(AnySizeNetwork):
    """Gives a probability of exactly one half everywhere."""

    def padded_logits(self, images: Tensor) -> Tensor:
        return images[:, :1] * 0


@pytest.mark.parametrize(("threshold", "is_car"), [(0.4999, True), (0.5, False), (0.5001, False), (0, True)])
def test_a_pixel_is_car_above_the_threshold_not_at_it(threshold, is_car):
    mask = make_predictor(Half(4), threshold=threshold).mask(random_photo(5, 6).pixels)
    assert mask.dtype == np.bool_
    assert mask.shape == (5, 6)
    assert (mask == is_car).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.booleans())
@example(5, 9, 1.0, False)
@example(5, 9, 0.0, True)
def test_packed_rows_are_the_thresholded_probabilities(height, width, threshold, tiled):
    tiling = Tiling((8, 8), 0, 4) if tiled else WHOLE
    predictor = make_predictor(Redness(), tiling, threshold=threshold, keep_probability=True)
    result = predict_one(predictor, random_photo(height, width))
    expected = np.packbits(result.probability > np.float32(threshold), axis=1)
    assert result.mask.rows.dtype == np.uint8
    assert result.mask.width == width
    np.testing.assert_array_equal(result.mask.rows, expected)


@settings(deadline=None)
@given(st.tuples(st.integers(1, 6), st.integers(1, 40)).flatmap(lambda shape: arrays(np.bool_, shape)))
def test_bits_are_packed_alike_on_every_device(mask):
    expected = np.packbits(mask, axis=1)
    values = torch.from_numpy(mask).float()
    for packed in (pack_above(values, 0.5), pack_bits_on_device(torch.from_numpy(mask))):
        assert packed.dtype == torch.uint8
        np.testing.assert_array_equal(packed.numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 100), (64, 33), (3, 1000)])
def test_large_maps_are_packed_in_bands(height, width, monkeypatch):
    probability = torch.from_numpy(np.random.default_rng(0).random((height, width), np.float32))
    mask = probability.numpy() > np.float32(0.3)
    values = probability.numpy().astype(np.float64)
    expected = 2 * values[mask].sum() / (mask.sum() + values.sum())
    for band_pixels in (thresholding.CPU_BAND_PIXELS, 200):
        monkeypatch.setattr(thresholding, "CPU_BAND_PIXELS", band_pixels)
        packed, sums = threshold_and_pack(probability, 0.3)
        np.testing.assert_array_equal(packed.numpy(), np.packbits(mask, axis=1))
        assert expected_dice(packed.numpy(), sums) == pytest.approx(expected, rel=1e-6)


# Expected Dice


def expected_dice_of(probabilities, threshold=0.5) -> float:
    packed, sums = threshold_and_pack(torch.tensor(probabilities, dtype=torch.float32), threshold)
    return expected_dice(packed.numpy(), sums)


def test_expected_dice_by_hand():
    # 2 x (0.9 + 0.6) / (2 + 0.9 + 0.2 + 0.6 + 0.4)
    assert expected_dice_of([[0.9, 0.2], [0.6, 0.4]]) == pytest.approx(3 / 4.1)
    # 2 x (0.9 + 0.2 + 0.6 + 0.4) / (4 + 0.9 + 0.2 + 0.6 + 0.4)
    assert expected_dice_of([[0.9, 0.2], [0.6, 0.4]], threshold=0.1) == pytest.approx(4.2 / 6.1)
    assert expected_dice_of([[1.0, 0.0, 1.0]]) == 1
    assert expected_dice_of([[0.3, 0.2]]) == 0
    assert expected_dice_of([[0.0, 0.0]]) == 1


def test_predictions_contain_the_expected_dice():
    photo = random_photo(40, 30)
    for tiling in (WHOLE, Tiling((16, 16), 0, 4)):
        probability, mask = red_probability(photo), red_mask(photo)
        expected = 2 * probability[mask].sum() / (mask.sum() + probability.sum())
        result = predict_one(make_predictor(Redness(), tiling), photo)
        assert result.expected_dice == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("doubt", [0.05, 0.5, 2.0])
def test_expected_dice_is_the_mean_over_random_truths(doubt):
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:60j, -1:1:80j]
    distance = 0.6 - np.hypot(rows, columns) + 0.1 * rng.standard_normal((60, 80))
    probability = 1 / (1 + np.exp(-distance / (0.1 * doubt)))
    mask = probability > 0.5
    truths = rng.random((300, 60, 80)) < probability
    dice = 2 * (truths & mask).sum((1, 2)) / (truths.sum((1, 2)) + mask.sum())
    assert expected_dice_of(probability) == pytest.approx(dice.mean(), abs=0.01)
