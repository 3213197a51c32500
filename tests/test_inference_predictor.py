import collections
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from helpers import store
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import (
    WHOLE,
    Redness,
    assert_masks_match,
    assert_red_masks,
    make_model,
    make_predictor,
    make_small_network,
    predict_one,
    probabilities_of_whole_photo,
    random_photo,
    red_mask,
    red_probability,
)
from PIL import Image
from torch import Tensor, nn

import carvana_batch.inference.runner
from carvana_batch.inference.canvas import Canvas
from carvana_batch.inference.network_input import NetworkInput
from carvana_batch.inference.tiles import Tiling
from carvana_batch.inference.transfer import Download
from carvana_batch.network.blocks import AnySizeNetwork
from carvana_batch.orientation import ORIENTATIONS
from carvana_batch.values import Failure, ImageRef, Photo, Prediction

works_ahead = networks.works_ahead  # a fixture


# Tiles and stitching


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(12, 40),
    st.integers(12, 40),
    st.integers(0, 8),
    st.integers(1, 3),
)
@example(1, 1, 12, 12, 8, 1)
@example(64, 64, 16, 16, 0, 3)
def test_stitched_tiles_match_the_expected_map(height, width, tile_height, tile_width, overlap, batch):
    photo = random_photo(height, width)
    tiling = Tiling((tile_width, tile_height), 0, overlap)
    predictor = make_predictor(Redness(), tiling, batch=batch, keep_probability=True)
    result = predict_one(predictor, photo)
    assert result.photo is photo
    np.testing.assert_array_equal(result.mask.to_bool(), red_mask(photo))
    assert result.probability.shape == (height, width)
    assert result.probability.dtype == np.float32
    np.testing.assert_allclose(result.probability, red_probability(photo), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tiling", [WHOLE, Tiling((24, 16), 0, 4)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_photos_of_any_orientation_are_masked_upright(orientation, tiling):
    upright = random_photo(37, 50)
    stored = np.asarray(store(Image.fromarray(upright.pixels), orientation))
    photo = Photo(ImageRef("stored", "stored.jpg"), np.array(stored), orientation)
    predictor = make_predictor(make_small_network(), tiling, keep_probability=True)
    expected, result = predict_one(predictor, upright), predict_one(predictor, photo)
    expected_map = np.asarray(store(Image.fromarray(expected.probability), orientation))
    np.testing.assert_array_equal(result.probability, expected_map)
    np.testing.assert_array_equal(result.mask.to_bool(), expected_map > 0.5)
    assert result.expected_dice == pytest.approx(expected.expected_dice, rel=1e-6)
    assert result.photo is photo
    assert 0.01 < expected.mask.to_bool().mean() < 0.99
    if orientation > 1:  # the network would see the photo as it is stored in another way
        unturned = predict_one(predictor, Photo(photo.ref, photo.pixels))
        assert np.abs(unturned.probability - expected_map).max() > 0.1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reduced_photos_of_any_orientation_are_masked_upright(orientation):
    upright = random_photo(40, 64)
    stored = np.array(store(Image.fromarray(upright.pixels), orientation))
    predictor = make_predictor(make_model(Redness(), size=(16, 8)), keep_probability=True)
    expected = predict_one(predictor, upright).probability
    result = predict_one(predictor, Photo(ImageRef("stored", "stored.jpg"), stored, orientation))
    difference = result.probability - np.asarray(store(Image.fromarray(expected), orientation))
    # Pillow rounds between reducing rows and columns, and their order depends on how the photo is stored.
    assert np.abs(difference).max() < 0.02
    assert expected.std() > 0.02


def test_overlapping_tiles_are_blended_by_weight():
    class Column(AnySizeNetwork):
        """The logit is the pixel's column in the tile, so neighbouring tiles contradict each other."""

        def padded_logits(self, images: Tensor) -> Tensor:
            columns = torch.arange(images.shape[3], dtype=images.dtype)
            return columns.expand(len(images), 1, *images.shape[2:])

    predictor = make_predictor(Column(2), Tiling((4, 2), 0, 2), keep_probability=True)
    left, right = 1 / (1 + np.exp(-np.arange(4.0))), 1 / (1 + np.exp(-np.arange(4.0)))
    weights = np.array([0.5, 1, 1, 0.5])
    # Windows start at 0 and 2: columns 2 and 3 of the first are 0 and 1 of the second.
    middle = (weights[2:] * left[2:] + weights[:2] * right[:2]) / (weights[2:] + weights[:2])
    expected = np.concatenate([left[:2], middle, right[2:]])
    probability = predict_one(predictor, random_photo(2, 6)).probability
    np.testing.assert_allclose(probability, np.stack([expected, expected]), atol=1e-6)


@pytest.mark.parametrize("size", [(160, 224), (141, 203)])
@pytest.mark.parametrize("most_pixels", [12_000, 6000, 3000])
def test_tiles_match_the_whole_photo_if_the_overlap_suffices(size, most_pixels):
    network = make_small_network()  # it looks 18 pixels far, and 7/16 of the overlap are 19
    photo = random_photo(*size)
    predictor = make_predictor(network, Tiling(None, most_pixels, 44), keep_probability=True)
    assert predictor.runner.plan(photo, predictor.limits.tiling).tile_count > 3
    result = predict_one(predictor, photo)
    probability = probabilities_of_whole_photo(network, photo)
    np.testing.assert_allclose(result.probability, probability, atol=1e-3)
    assert_masks_match([result], {photo.ref.key: probability})


# What the network gets


def test_each_channel_is_normalised_by_its_own_statistics():
    class Channels(AnySizeNetwork):
        def padded_logits(self, images: Tensor) -> Tensor:
            return images[:, :1] + 10 * images[:, 1:2] - 5 * images[:, 2:]

    mean, deviation = np.array([0.1, 0.2, 0.6]), np.array([0.5, 0.25, 0.3])
    model = make_model(Channels(4), tuple(mean), tuple(deviation))
    photo = random_photo(9, 7)
    result = predict_one(make_predictor(model, keep_probability=True), photo)
    red, green, blue = np.moveaxis((photo.pixels / 255 - mean) / deviation, 2, 0)
    expected = 1 / (1 + np.exp(-(red + 10 * green - 5 * blue)))
    np.testing.assert_allclose(result.probability, expected, atol=2e-6)


def test_photos_are_padded_with_their_last_row_and_column(monkeypatch):
    network = make_small_network()
    monkeypatch.setattr(network, "unit", 4)
    photo = random_photo(13, 6)
    result = predict_one(make_predictor(network, keep_probability=True), photo)
    padded = np.pad(photo.pixels, ((0, 3), (0, 2), (0, 0)), mode="edge")
    images = torch.from_numpy((padded / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = torch.sigmoid(network.padded_logits(images))[0, 0, :13, :6].numpy()
    np.testing.assert_allclose(result.probability, expected, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("height", "width"), [(40, 64), (33, 47)])
def test_photos_are_averaged_down_and_logits_enlarged(height, width, flip):
    network = make_small_network()
    photo = random_photo(height, width)
    predictor = make_predictor(make_model(network, size=(16, 12)), keep_probability=True, flip=flip)
    result = predict_one(predictor, photo)
    smaller = np.asarray(Image.fromarray(photo.pixels).resize((16, 12), Image.Resampling.BOX))
    images = torch.from_numpy((smaller / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        probability = torch.sigmoid(network(images))
        if flip:
            probability = (probability + torch.sigmoid(network(images.flip(3))).flip(3)) / 2
        logits = torch.log(probability / (1 - probability))
        enlarged = nn.functional.interpolate(logits, (height, width), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(result.probability, 1 / (1 + np.exp(-enlarged)), atol=1e-4)
    clear = np.abs(enlarged) > 1e-3
    np.testing.assert_array_equal(result.mask.to_bool()[clear], (enlarged > 0)[clear])
    assert 0.1 < (enlarged > 0).mean() < 0.9


def test_tiles_are_cut_from_the_resized_photo():
    photo = random_photo(80, 128)
    model = make_model(make_small_network(), size=(32, 20))
    whole = make_predictor(model, keep_probability=True)
    tiled = make_predictor(model, Tiling((24, 20), 0, 20), keep_probability=True)
    network = model.network
    assert tiled.limits.tiling.plan(20, 32, network.stride, network.unit).tile_count > 1
    difference = predict_one(whole, photo).probability - predict_one(tiled, photo).probability
    assert np.abs(difference).mean() < 0.02


# Batches


SIZES = [(16, 24), (16, 24), (30, 24), (16, 24), (9, 5), (40, 47), (30, 24), (16, 24), (41, 47), (16, 23)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((24, 16), 0, 8)], ids=["whole", "tiles"])
def test_results_do_not_depend_on_the_other_photos(batch, tiling, dtype):
    network = make_small_network()
    photos = [random_photo(*size, seed) for seed, size in enumerate(SIZES)]

    def predict(chosen):
        predictor = make_predictor(network, tiling, dtype, batch=batch, keep_probability=True)
        results = {result.photo.ref.key: result for result in predictor.predict(chosen)}
        assert results.keys() == {photo.ref.key for photo in chosen}
        assert predictor.limits.dtype == dtype
        return results

    alone = {key: result for photo in photos for key, result in predict([photo]).items()}
    assert len({result.mask.rows.tobytes() for result in alone.values()}) == len(photos)
    for order in (range(10), range(9, -1, -1), np.random.default_rng(batch).permutation(10), [3, 4, 8]):
        for key, result in predict([photos[index] for index in order]).items():
            np.testing.assert_array_equal(result.mask.rows, alone[key].mask.rows)
            np.testing.assert_array_equal(result.probability, alone[key].probability)
            assert result.expected_dice == alone[key].expected_dice


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batches_always_have_the_planned_shape(batch):
    shapes = collections.Counter()

    class RecordingRedness(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            shapes[tuple(images.shape)] += 1
            return super().padded_logits(images)

    photos = [random_photo(20, 12, seed) for seed in range(25)] + [random_photo(8, 12)]
    assert_red_masks(make_predictor(RecordingRedness(), batch=batch).predict(photos), photos)
    assert shapes == {(batch, 3, 20, 12): -(-25 // batch), (batch, 3, 8, 12): 1}


# Streams


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([(16, 16), (12, 20), (33, 18), (4, 4), None]), max_size=14),
    st.integers(1, 5),
    st.sampled_from([WHOLE, Tiling((16, 16), 0, 4)]),
)
def test_photos_come_back_once_and_failures_are_passed_on(sizes, batch, tiling):
    stream = [
        Failure.of(ImageRef(f"failure {index}", Path("f")), "decode", "no JPEG")
        if size is None
        else random_photo(size[0], size[1], index)
        for index, size in enumerate(sizes)
    ]
    failures = [item for item in stream if isinstance(item, Failure)]
    results = list(make_predictor(Redness(), tiling, batch=batch).predict(iter(stream)))
    assert [result for result in results if isinstance(result, Failure)] == failures
    photos = [item for item in stream if isinstance(item, Photo)]
    assert_red_masks([result for result in results if isinstance(result, Prediction)], photos)


@pytest.mark.usefixtures("works_ahead")
def test_photos_of_one_size_keep_their_order():
    photos = [random_photo(40, 30, seed) for seed in range(11)]
    results = make_predictor(Redness(), Tiling((16, 16), 0, 4), batch=5).predict(photos)
    assert [result.photo.ref.key for result in results] == [photo.ref.key for photo in photos]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((16, 16), 0, 4)], ids=["whole", "tiles"])
def test_photos_of_many_sizes_do_not_accumulate(batch, tiling, works_ahead):
    waiting = most_waiting = 0

    def photos():
        nonlocal waiting, most_waiting
        for number in range(60):
            photo = random_photo(20 + 4 * (number % 10), 20 + 4 * (number // 10))
            waiting += photo.pixels[:, :, 0].size
            most_waiting = max(most_waiting, waiting)
            yield photo

    largest = 56 * 40
    for result in make_predictor(Redness(), tiling, batch=batch).predict(photos()):
        waiting -= result.photo.pixels[:, :, 0].size
    assert waiting == 0
    # Two full batches, the photo that did not fit into them, and one batch that has not been read yet.
    unread = batch * largest if works_ahead else 0
    assert most_waiting <= 2 * batch * (largest if tiling is WHOLE else 16 * 16) + largest + unread
    if batch == 1 and not works_ahead:
        assert most_waiting == largest


def test_the_first_result_comes_before_the_stream_ends():
    pulled = 0

    def photos():
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield random_photo(40, 4 * (number + 10))

    next(make_predictor(Redness(), batch=4).predict(photos()))
    # Two batches of the largest photo so far have 8 x 40 x 4 (9 + pulled) pixels; 15 photos exceed that.
    assert pulled <= 15


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.usefixtures("works_ahead")
def test_an_abandoned_stream_does_not_affect_the_next(batch):
    photos = [random_photo(16, 16, seed) for seed in range(9)]
    predictor = make_predictor(Redness(), batch=batch)
    for _ in predictor.predict(photos):
        break
    other = random_photo(16, 16, 99)
    np.testing.assert_array_equal(predictor.mask(other.pixels), red_mask(other))
    assert_red_masks(predictor.predict(photos), photos)


@pytest.mark.parametrize("batch", [1, 3])
def test_single_images_can_be_masked_during_a_stream(batch):
    photos = [random_photo(16, 16 + 4 * (seed % 2), seed) for seed in range(9)]
    predictor = make_predictor(Redness(), batch=batch)
    other = random_photo(16, 16, 99)
    results = []
    for result in predictor.predict(photos):
        results.append(result)
        np.testing.assert_array_equal(predictor.mask(other.pixels), red_mask(other))
    assert_red_masks(results, photos)


def test_predict_leaves_photos_and_inference_mode_unchanged():
    photos = [random_photo(30, 22, seed) for seed in range(3)]
    before = [photo.pixels.copy() for photo in photos]
    for _ in make_predictor(make_small_network(), Tiling((16, 16), 0, 4), flip=True).predict(photos):
        assert not torch.is_inference_mode_enabled()
    for photo, pixels in zip(photos, before, strict=True):
        np.testing.assert_array_equal(photo.pixels, pixels)


@pytest.mark.parametrize("batch", [1, 2])
def test_masks_are_read_while_the_device_works_ahead(batch, works_ahead, monkeypatch):
    events = []

    class RecordingRedness(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            events.append("run")
            return super().padded_logits(images)

    class RecordingDownload(Download):
        def read(self):
            events.append("read")
            return super().read()

    monkeypatch.setattr(carvana_batch.inference.runner, "Download", RecordingDownload)
    photos = [random_photo(8, 8, seed) for seed in range(6)]
    results = list(make_predictor(RecordingRedness(), batch=batch).predict(photos))
    assert [result.photo for result in results] == photos
    assert_red_masks(results, photos)
    read = ["read"] * batch
    assert events == (
        ["run", *["run", *read] * (6 // batch - 1), *read] if works_ahead else ["run", *read] * (6 // batch)
    )


@pytest.mark.parametrize(("threads", "fewer"), [(1, 1), (2, 1), (3, 1), (4, 4)])
def test_small_cpus_use_one_thread_outside_the_network(threads, fewer, monkeypatch):
    usual, in_network, outside = torch.get_num_threads(), [], []

    class FailingRedness(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            in_network.append(torch.get_num_threads())
            if len(in_network) == 4:
                raise ValueError("on purpose")
            return super().padded_logits(images)

    steps = (
        (NetworkInput, "normalise"),
        (Canvas, "probability"),
        (carvana_batch.inference.runner, "threshold_and_pack"),
    )
    for owner, name in steps:
        function = getattr(owner, name)

        def record_threads(*arguments, function=function):
            outside.append(torch.get_num_threads())
            return function(*arguments)

        monkeypatch.setattr(owner, name, record_threads)
    torch.set_num_threads(threads)
    try:
        results = make_predictor(FailingRedness()).predict(random_photo(8, 8, seed) for seed in range(5))
        for count in (1, 2, 3):
            next(results)
            assert torch.get_num_threads() == threads
            assert in_network == [threads] * count
        with pytest.raises(ValueError, match="on purpose"):
            next(results)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
    assert outside == [fewer] * (3 * 3 + 1)


# Mirrored photos


@pytest.mark.parametrize("tiling", [WHOLE, Tiling((16, 16), 0, 8)], ids=["whole", "tiles"])
def test_flip_averages_the_photo_and_its_mirror_image(tiling):
    network = make_small_network()
    photo = random_photo(20, 16)
    plain = predict_one(make_predictor(network, tiling, keep_probability=True), photo)
    flipped = predict_one(make_predictor(network, tiling, flip=True, keep_probability=True), photo)
    mirrored_photo = Photo(photo.ref, np.ascontiguousarray(photo.pixels[:, ::-1]))
    mirrored = predict_one(make_predictor(network, tiling, keep_probability=True), mirrored_photo)
    expected = (plain.probability + mirrored.probability[:, ::-1]) / 2
    assert np.abs(plain.probability - expected).mean() > 0.01
    np.testing.assert_allclose(flipped.probability, expected, atol=1e-5)
    np.testing.assert_array_equal(flipped.mask.to_bool(), flipped.probability > 0.5)


# Single images


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 3), np.int8),
        np.zeros((4, 5, 3), bool),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.shape} {pixels.dtype}",
)
def test_images_of_another_shape_or_dtype_are_rejected(pixels):
    with pytest.raises(ValueError, match="expected"):
        make_predictor(Redness()).mask(pixels)


def test_images_may_be_read_only_or_strided():
    photo = random_photo(12, 9)
    predictor = make_predictor(Redness())
    read_only = photo.pixels.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(predictor.mask(read_only), red_mask(photo))
    backwards = np.ascontiguousarray(photo.pixels[..., ::-1])
    np.testing.assert_array_equal(predictor.mask(backwards[..., ::-1]), red_mask(photo))
    np.testing.assert_array_equal(predictor.mask(photo.pixels[::-1, ::2]), red_mask(photo)[::-1, ::2])
    transposed = predictor.mask(photo.pixels.transpose(1, 0, 2))
    np.testing.assert_array_equal(transposed, red_mask(photo).T)


def test_predictions_contain_the_probability_on_request_only():
    assert predict_one(make_predictor(Redness()), random_photo(5, 5)).probability is None
