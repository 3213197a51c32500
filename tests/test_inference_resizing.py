"""In which size the network sees photos, and that masks keep the size of the photo."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import store
from hypothesis import given
from hypothesis import strategies as st
from networks import (
    WHOLE,
    Redness,
    make_model,
    make_predictor,
    make_small_network,
    predict_one,
    random_photo,
    red_probability,
)
from PIL import Image

from carvana_batch.inference import resizing
from carvana_batch.inference.resizing import InputSize, resize_photo, resize_probability
from carvana_batch.inference.tiles import Tiling
from carvana_batch.network.checkpoints import load_model
from carvana_batch.orientation import ORIENTATIONS, swaps_sides
from carvana_batch.values import ImageRef, Photo

# Which size


@pytest.mark.parametrize(
    ("photo", "seen"),
    [
        ((1280, 1918), (1280, 1918)),
        ((1918, 1280), (1918, 1280)),
        ((1000, 1535), (1000, 1535)),
        ((1600, 2397), (1600, 2397)),
        ((1600, 2400), (1279, 1918)),
        ((3024, 4032), (1438, 1918)),
        ((4032, 3024), (1918, 1438)),
        ((6000, 8000), (1438, 1918)),
        ((960, 1440), (1279, 1918)),
        ((480, 640), (1438, 1918)),
        ((300, 400), (900, 1200)),
        ((1, 1), (3, 3)),
        ((2, 20_000), (1, 1918)),
    ],
)
def test_photos_are_seen_at_about_the_training_scale(photo, seen):
    assert InputSize(scale=1918).of(*photo) == seen


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(100, 5000))
def test_the_aspect_ratio_stays(height, width, scale):
    seen_height, seen_width = InputSize(scale=scale).of(height, width)
    if (seen_height, seen_width) == (height, width):
        assert 0.79 * scale < max(height, width) < 1.26 * scale
        return
    factor = max(seen_height, seen_width) / max(height, width)
    assert max(seen_height, seen_width) in (scale, 3 * max(height, width))
    for before, after in ((height, seen_height), (width, seen_width)):
        assert abs(after - factor * before) <= 0.5 or after == 1


def test_what_is_asked_for_comes_before_the_weights():
    network = Redness()
    scaled, fixed = replace(make_model(network), scale=64), make_model(network, size=(16, 8))
    plain = make_model(network)
    for model, by_default in ((plain, (100, 200)), (scaled, (32, 64)), (fixed, (8, 16))):
        assert InputSize.choose(model, None).of(100, 200) == by_default
        assert InputSize.choose(model, "native").of(100, 200) == (100, 200)
        assert InputSize.choose(model, (30, 40)).of(100, 200) == (40, 30)


def test_the_bundled_weights_see_studio_photos_as_they_are():
    assert InputSize.choose(load_model("segunet-s"), None).of(1280, 1918) == (1280, 1918)


# Resizing


def test_reduced_photos_are_means_of_areas():
    pixels = random_photo(12, 20).pixels
    means = pixels.reshape(4, 3, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_photo(pixels, 4, 5), means, atol=1)


@pytest.mark.parametrize("shape", [(40, 30), (37, 50), (101, 7), (64, 1)])
@pytest.mark.parametrize("reduced", [(13, 5), (36, 1), (1, 1)])
@pytest.mark.parametrize("band", [1, 50, 200])
def test_bands_do_not_show(shape, reduced, band, monkeypatch):
    pixels = random_photo(*shape).pixels
    height, width = min(shape[0], reduced[0]), min(shape[1], reduced[1])
    whole = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
    monkeypatch.setattr(resizing, "BAND_PIXELS", band)
    # Pillow rounds between reducing rows and columns, and chooses their order by the shape.
    difference = resize_photo(pixels, height, width).astype(int) - whole
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.1


@pytest.mark.parametrize("size", [(3, 5), (7, 11), (40, 60), (3, 60)])
def test_constant_photos_and_maps_stay_constant(size):
    resized = resize_photo(np.full((7, 11, 3), (9, 200, 77), np.uint8), *size)
    assert resized.shape == (*size, 3)
    assert (resized == (9, 200, 77)).all()
    for probability in (0.0, 0.3, 0.5, 1.0):
        result = resize_probability(torch.full((7, 11), probability), *size)
        assert result.shape == size
        np.testing.assert_allclose(result.numpy(), probability, atol=2e-6)


# Masks


def scaled_predictor(network, scale, tiling=WHOLE, **options):
    model = replace(make_model(network), scale=scale)
    return make_predictor(model, tiling, keep_probability=True, **options)


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (40, 52), (48, 80)])
def test_photos_of_about_the_scale_are_masked_as_before(size):
    photo = random_photo(*size)
    expected = predict_one(make_predictor(make_small_network(), keep_probability=True), photo)
    result = predict_one(scaled_predictor(make_small_network(), 64), photo)
    np.testing.assert_array_equal(result.probability, expected.probability)
    np.testing.assert_array_equal(result.mask.rows, expected.mask.rows)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(5, 7), (150, 200), (33, 400), (2, 3)])
def test_masks_have_the_size_of_the_photo(size, orientation):
    photo = replace(random_photo(*size), orientation=orientation)
    predictor = scaled_predictor(Redness(), 64)
    result = predict_one(predictor, photo)
    assert result.probability.shape == size
    assert (result.mask.height, result.mask.width) == size
    upright = size[::-1] if swaps_sides(orientation) else size
    assert predictor.runner.network_size(photo) == InputSize(scale=64).of(*upright)
    assert max(predictor.runner.network_size(photo)) == min(64, 3 * max(size))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(20, 30), (150, 200)])
def test_turned_photos_are_masked_upright(size, orientation):
    upright = random_photo(*size)
    stored = np.array(store(Image.fromarray(upright.pixels), orientation))
    predictor = scaled_predictor(make_small_network(), 64)
    expected = predict_one(predictor, upright).probability
    result = predict_one(predictor, Photo(ImageRef("stored", "stored.jpg"), stored, orientation))
    expected_map = np.asarray(store(Image.fromarray(expected), orientation))
    np.testing.assert_allclose(result.probability, expected_map, atol=1e-5)
    assert expected.std() > 0.02


def smooth_photo(height, width):
    """A photo whose red is a wave; no edge is steeper than the pixels are fine."""
    rows, columns = np.mgrid[:height, :width]
    red = 127.5 + 127 * np.sin(7 * rows / height) * np.cos(9 * columns / width)
    pixels = np.stack([red, 0 * red, 0 * red], axis=2).round().astype(np.uint8)
    return Photo(ImageRef("smooth", "smooth.png"), pixels)


@pytest.mark.parametrize("tiling", [WHOLE, Tiling((24, 24), 0, 8)], ids=["whole", "tiles"])
@pytest.mark.parametrize("size", [(240, 360), (251, 367), (12, 20)])
def test_large_and_small_photos_are_masked_like_their_own_pixels(size, tiling):
    photo = smooth_photo(*size)
    result = predict_one(scaled_predictor(Redness(), 60, tiling), photo)
    expected = red_probability(photo)
    np.testing.assert_allclose(result.probability, expected, atol=0.1)
    assert ((expected > 0.5) == result.mask.to_bool()).mean() > 0.98
    assert 0.2 < result.mask.to_bool().mean() < 0.8


def test_a_large_photo_has_the_mask_of_its_averaged_version():
    small = random_photo(40, 60)
    large = Photo(ImageRef("large", "large.png"), np.kron(small.pixels, np.ones((6, 6, 1), np.uint8)))
    predictor = scaled_predictor(make_small_network(), 60)
    expected = predict_one(predictor, small).probability
    result = predict_one(predictor, large).probability
    # Logits are interpolated: in the middle of six rows and columns they lie between the nearest ones.
    logits, small_logits = np.log(result / (1 - result)), np.log(expected / (1 - expected))
    middle = (logits[2::6] + logits[3::6])[:, 2::6] + (logits[2::6] + logits[3::6])[:, 3::6]
    assert np.corrcoef(middle.ravel(), small_logits.ravel())[0, 1] > 0.99
    assert ((middle > 0) == (small_logits > 0)).mean() > 0.97


def test_tiles_are_cut_from_the_resized_photo():
    photo = random_photo(300, 400)
    tiled = scaled_predictor(Redness(), 100, Tiling((64, 48), 0, 20))
    plan = tiled.runner.plan(photo, tiled.limits.tiling)
    assert (plan.tile_count, plan.padded_height, plan.padded_width) == (4, 76, 100)
    result, whole = predict_one(tiled, photo), predict_one(scaled_predictor(Redness(), 100), photo)
    np.testing.assert_allclose(result.probability, whole.probability, atol=1e-5)
