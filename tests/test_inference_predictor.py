import collections
import contextlib
import dataclasses
import gc
import re
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from short_memory import GPU_TEXT, ShortMemory
from torch import Tensor, nn

import carvana_batch.inference.predictor
import carvana_batch.inference.thresholding
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.canvas import Canvas
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inference.thresholding import (
    expected_dice,
    pack_above,
    pack_bits_on_device,
    threshold_and_pack,
)
from carvana_batch.inference.tiles import Tiling
from carvana_batch.inference.transfer import Download
from carvana_batch.network.blocks import AnySizeNetwork
from carvana_batch.network.checkpoints import Model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.values import Failure, ImageRef, Photo, Prediction

CPU = torch.device("cpu")
WHOLE = Tiling(None, 10**9, 0)
GAIN = 4.0
"""Logit of a pixel whose red is 255; minus that for 0. No red value gives exactly 0."""

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    " allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)"
)
OUT_OF_MEMORY = [torch.OutOfMemoryError(GPU_TEXT), RuntimeError(CPU_TEXT), MemoryError()]


class Redness(AnySizeNetwork):
    """Logits that grow with the red of the same pixel and depend on nothing else."""

    def __init__(self, stride: int = 4) -> None:
        super().__init__(stride)
        self.gain = nn.Parameter(torch.tensor(GAIN))

    def padded_logits(self, images: Tensor) -> Tensor:
        return self.gain * images[:, :1]


class Limited(Redness):
    """Runs out of memory above a number of images or of pixels of one image, in chosen precisions."""

    def __init__(self, most_images=10**9, most_pixels=10**9, error=OUT_OF_MEMORY[0], dtypes=None) -> None:
        super().__init__()
        self.most_images, self.most_pixels, self.error, self.dtypes = most_images, most_pixels, error, dtypes

    def padded_logits(self, images: Tensor) -> Tensor:
        too_large = len(images) > self.most_images or images.shape[2] * images.shape[3] > self.most_pixels
        if too_large and (self.dtypes is None or images.dtype in self.dtypes):
            raise self.error
        return super().padded_logits(images)


def make_model(network: AnySizeNetwork, mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5)) -> Model:
    return Model("test", network.eval(), mean, deviation, "digest")


def make_predictor(network: AnySizeNetwork, tiling=WHOLE, dtype=torch.float32, **options) -> Predictor:
    return Predictor(make_model(network), CPU, dtype, tiling, **options)


@pytest.fixture(scope="module")
def small_network():
    """Random weights, and batch norms with statistics of their own, so that neighbours matter.

    A pixel depends on those up to 18 pixels away in each direction.
    """
    torch.manual_seed(0)
    network = SegUNet((4, 8), center=8, decoder_convolutions=1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def random_photo(height: int, width: int, seed: int = 0) -> Photo:
    pixels = np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    name = f"{height}x{width}_{seed}"
    return Photo(ImageRef(name, Path(f"{name}.jpg")), pixels)


def red_mask(photo: Photo) -> np.ndarray:
    return photo.pixels[:, :, 0] >= 128


def red_probability(photo: Photo) -> np.ndarray:
    logits = GAIN * (photo.pixels[:, :, 0] / 255 - 0.5) / 0.5
    return 1 / (1 + np.exp(-logits))


def predict_one(predictor: Predictor, photo: Photo) -> Prediction:
    (result,) = predictor.predict([photo])
    assert isinstance(result, Prediction)
    return result


@pytest.fixture(params=[False, True], ids=["waits", "ahead"])
def both_ways(request, monkeypatch):
    """With a device that is done when a call returns, and with one that works ahead and is read later."""
    monkeypatch.setattr(carvana_batch.inference.predictor, "works_ahead", lambda device: request.param)
    return request.param


def assert_red_masks(results, photos) -> None:
    """Each photo came back once, with the mask that a network without neighbours has to give."""
    results = list(results)
    assert sorted(result.photo.ref.key for result in results) == sorted(photo.ref.key for photo in photos)
    for result in results:
        np.testing.assert_array_equal(result.mask.to_bool(), red_mask(result.photo))


@contextlib.contextmanager
def time_limit(seconds: int):
    def stop(_number, _frame):
        raise AssertionError(f"not done after {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


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
def test_stitched_tiles_equal_the_direct_computation(height, width, tile_height, tile_width, overlap, batch):
    photo = random_photo(height, width)
    tiling = Tiling((tile_width, tile_height), 0, overlap)
    predictor = make_predictor(Redness(), tiling, batch=batch, keep_probability=True)
    result = predict_one(predictor, photo)
    assert result.photo is photo
    np.testing.assert_array_equal(result.mask.to_bool(), red_mask(photo))
    assert result.probability.shape == (height, width)
    assert result.probability.dtype == np.float32
    np.testing.assert_allclose(result.probability, red_probability(photo), rtol=0, atol=1e-6)


def test_tiles_are_width_by_height():
    plan = Tiling((64, 16), 0, 0).plan(32, 128, stride=4, unit=4)
    assert (plan.tile_width, plan.tile_height) == (64, 16)
    assert (len(plan.lefts), len(plan.tops)) == (2, 2)


def test_overlapping_tiles_are_blended_by_their_weights():
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


def test_each_channel_is_normalised_by_its_own_statistics():
    class Channels(AnySizeNetwork):
        def padded_logits(self, images: Tensor) -> Tensor:
            return images[:, :1] + 10 * images[:, 1:2] - 5 * images[:, 2:]

    mean, deviation = np.array([0.1, 0.2, 0.6]), np.array([0.5, 0.25, 0.3])
    model = make_model(Channels(4), tuple(mean), tuple(deviation))
    photo = random_photo(9, 7)
    result = predict_one(Predictor(model, CPU, torch.float32, WHOLE, keep_probability=True), photo)
    red, green, blue = np.moveaxis((photo.pixels / 255 - mean) / deviation, 2, 0)
    expected = 1 / (1 + np.exp(-(red + 10 * green - 5 * blue)))
    np.testing.assert_allclose(result.probability, expected, atol=2e-6)


def test_a_whole_photo_is_padded_to_the_unit_of_the_network_only():
    plan = Tiling(None, 10**6, 0).plan(13, 6, stride=16, unit=4)
    assert (plan.tile_height, plan.tile_width, plan.tile_count) == (16, 8, 1)


def test_tiles_are_those_of_the_photo_padded_to_the_unit_of_the_network():
    plan = Tiling(None, 16 * 24, 0).plan(13, 38, stride=16, unit=4)
    assert (plan.padded_height, plan.padded_width) == (16, 40)
    assert (plan.tile_height, plan.tile_width, plan.tile_count) == (16, 24, 2)


def test_large_maps_take_from_what_tiles_may_have():
    tiling = Tiling(None, 1_000_000, 64, map_share=0.05)

    def tile_pixels(height, width, limit=None):
        plan = tiling.plan(height, width, 4, 4, limit)
        return plan.tile_height * plan.tile_width

    assert tile_pixels(1000, 1000) == 1_000_000  # a whole photo has no maps beside its only tile
    assert 350_000 < tile_pixels(3000, 4000) <= 1_000_000 - 600_000
    # Tiles stay sensible, as large as the memory that there is, or as small as they have to be.
    assert 200_000 < tile_pixels(10_000, 10_000) <= 512**2
    assert tile_pixels(10_000, 10_000, limit=100_000) <= 100_000
    small = dataclasses.replace(tiling, most_pixels=80_000).plan(5000, 5000, 4, 4)
    assert 50_000 < small.tile_height * small.tile_width <= 80_000


def test_a_photo_is_padded_with_its_last_row_and_column(small_network, monkeypatch):
    monkeypatch.setattr(small_network, "unit", 4)
    photo = random_photo(13, 6)
    result = predict_one(make_predictor(small_network, keep_probability=True), photo)
    padded = np.pad(photo.pixels, ((0, 3), (0, 2), (0, 0)), mode="edge")
    images = torch.from_numpy((padded / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = torch.sigmoid(small_network.padded_logits(images))[0, 0, :13, :6].numpy()
    np.testing.assert_allclose(result.probability, expected, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("height", "width"), [(40, 64), (33, 47)])
def test_a_network_for_smaller_photos_gets_averages_and_gives_enlarged_logits(
    small_network, height, width, flip
):
    photo = random_photo(height, width)
    model = dataclasses.replace(make_model(small_network), size=(16, 12))
    predictor = Predictor(model, CPU, torch.float32, WHOLE, keep_probability=True, flip=flip)
    result = predict_one(predictor, photo)
    smaller = np.asarray(Image.fromarray(photo.pixels).resize((16, 12), Image.Resampling.BOX))
    images = torch.from_numpy((smaller / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        probability = torch.sigmoid(small_network(images))
        if flip:
            probability = (probability + torch.sigmoid(small_network(images.flip(3))).flip(3)) / 2
        logits = torch.log(probability / (1 - probability))
        enlarged = nn.functional.interpolate(logits, (height, width), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(result.probability, 1 / (1 + np.exp(-enlarged)), atol=1e-4)
    clear = np.abs(enlarged) > 1e-3
    np.testing.assert_array_equal(result.mask.to_bool()[clear], (enlarged > 0)[clear])
    assert 0.1 < (enlarged > 0).mean() < 0.9


def test_tiles_are_cut_from_the_smaller_photo(small_network):
    photo = random_photo(80, 128)
    model = dataclasses.replace(make_model(small_network), size=(32, 20))
    whole = Predictor(model, CPU, torch.float32, WHOLE, keep_probability=True)
    tiled = Predictor(model, CPU, torch.float32, Tiling((24, 20), 0, 20), keep_probability=True)
    assert tiled.tiling.plan(20, 32, small_network.stride, small_network.unit).tile_count > 1
    difference = predict_one(whole, photo).probability - predict_one(tiled, photo).probability
    assert np.abs(difference).mean() < 0.02


# A photo's company


SIZES = [(16, 24), (16, 24), (30, 24), (16, 24), (9, 5), (40, 47), (30, 24), (16, 24), (41, 47), (16, 23)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((24, 16), 0, 8)], ids=["whole", "tiles"])
def test_results_do_not_depend_on_a_photos_company(small_network, batch, tiling, dtype):
    photos = [random_photo(*size, seed) for seed, size in enumerate(SIZES)]

    def predict(chosen):
        predictor = make_predictor(small_network, tiling, dtype, batch=batch, keep_probability=True)
        results = {result.photo.ref.key: result for result in predictor.predict(chosen)}
        assert results.keys() == {photo.ref.key for photo in chosen}
        assert predictor.dtype == dtype
        return results

    alone = {key: result for photo in photos for key, result in predict([photo]).items()}
    assert len({result.mask.rows.tobytes() for result in alone.values()}) == len(photos)
    for order in (range(10), range(9, -1, -1), np.random.default_rng(batch).permutation(10), [3, 4, 8]):
        for key, result in predict([photos[place] for place in order]).items():
            np.testing.assert_array_equal(result.mask.rows, alone[key].mask.rows)
            np.testing.assert_array_equal(result.probability, alone[key].probability)
            assert result.expected_dice == alone[key].expected_dice


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_batches_always_have_the_planned_shape(batch):
    shapes = collections.Counter()

    class Watching(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            shapes[tuple(images.shape)] += 1
            return super().padded_logits(images)

    photos = [random_photo(20, 12, seed) for seed in range(25)] + [random_photo(8, 12)]
    assert_red_masks(make_predictor(Watching(), batch=batch).predict(photos), photos)
    assert shapes == {(batch, 3, 20, 12): -(-25 // batch), (batch, 3, 8, 12): 1}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([(16, 16), (12, 20), (33, 18), (4, 4), None]), max_size=14),
    st.integers(1, 5),
    st.sampled_from([WHOLE, Tiling((16, 16), 0, 4)]),
)
def test_every_photo_comes_back_once_and_failures_pass_by(sizes, batch, tiling):
    stream = [
        Failure.of(ImageRef(f"failure {place}", Path("f")), "decode", "no JPEG")
        if size is None
        else random_photo(*size, place)
        for place, size in enumerate(sizes)
    ]
    failures = [item for item in stream if isinstance(item, Failure)]
    results = list(make_predictor(Redness(), tiling, batch=batch).predict(iter(stream)))
    assert [result for result in results if isinstance(result, Failure)] == failures
    photos = [item for item in stream if isinstance(item, Photo)]
    assert_red_masks([result for result in results if isinstance(result, Prediction)], photos)


@pytest.mark.usefixtures("both_ways")
def test_photos_of_one_size_keep_their_order():
    photos = [random_photo(40, 30, seed) for seed in range(11)]
    results = make_predictor(Redness(), Tiling((16, 16), 0, 4), batch=5).predict(photos)
    assert [result.photo.ref.key for result in results] == [photo.ref.key for photo in photos]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((16, 16), 0, 4)], ids=["whole", "tiles"])
def test_photos_of_many_sizes_do_not_pile_up(batch, tiling, both_ways):
    waiting = most_waiting = 0

    def photos():
        nonlocal waiting, most_waiting
        for place in range(60):
            photo = random_photo(20 + 4 * (place % 10), 20 + 4 * (place // 10))
            waiting += photo.pixels[:, :, 0].size
            most_waiting = max(most_waiting, waiting)
            yield photo

    largest = 56 * 40
    for result in make_predictor(Redness(), tiling, batch=batch).predict(photos()):
        waiting -= result.photo.pixels[:, :, 0].size
    assert waiting == 0
    # What fills two batches, the photo that came on top, and one batch that is not read yet.
    unread = batch * largest if both_ways else 0
    assert most_waiting <= 2 * batch * (largest if tiling is WHOLE else 16 * 16) + largest + unread
    if batch == 1 and not both_ways:
        assert most_waiting == largest


def test_the_first_result_does_not_wait_for_the_whole_folder():
    pulled = 0

    def photos():
        nonlocal pulled
        for place in range(1000):
            pulled += 1
            yield random_photo(40, 4 * (place + 10))

    next(make_predictor(Redness(), batch=4).predict(photos()))
    # Two batches of the largest so far have 8 x 40 x 4 (9 + pulled) pixels; 15 photos together have more.
    assert pulled <= 15


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.usefixtures("both_ways")
def test_a_stream_left_halfway_does_not_mix_with_the_next(batch):
    photos = [random_photo(16, 16, seed) for seed in range(9)]
    predictor = make_predictor(Redness(), batch=batch)
    for _ in predictor.predict(photos):
        break
    other = random_photo(16, 16, 99)
    np.testing.assert_array_equal(predictor.mask(other.pixels), red_mask(other))
    assert_red_masks(predictor.predict(photos), photos)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_can_be_masked_while_a_stream_is_going_on(batch):
    photos = [random_photo(16, 16 + 4 * (seed % 2), seed) for seed in range(9)]
    predictor = make_predictor(Redness(), batch=batch)
    other = random_photo(16, 16, 99)
    results = []
    for result in predictor.predict(photos):
        results.append(result)
        np.testing.assert_array_equal(predictor.mask(other.pixels), red_mask(other))
    assert_red_masks(results, photos)


def test_photos_are_not_changed_and_inference_mode_does_not_leak(small_network):
    photos = [random_photo(30, 22, seed) for seed in range(3)]
    before = [photo.pixels.copy() for photo in photos]
    for _ in make_predictor(small_network, Tiling((16, 16), 0, 4), flip=True).predict(photos):
        assert not torch.is_inference_mode_enabled()
    for photo, pixels in zip(photos, before, strict=True):
        np.testing.assert_array_equal(photo.pixels, pixels)


# Thresholds and packing


@pytest.mark.parametrize(("threads", "fewer"), [(1, 1), (2, 1), (3, 1), (4, 4)])
def test_normalising_and_thresholding_take_one_of_few_threads(threads, fewer, monkeypatch):
    usual, of_network, others = torch.get_num_threads(), [], []

    class Failing(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            of_network.append(torch.get_num_threads())
            if len(of_network) == 4:
                raise ValueError("as it should")
            return super().padded_logits(images)

    places = (
        (Predictor, "_normalise"),
        (Canvas, "probability"),
        (carvana_batch.inference.predictor, "threshold_and_pack"),
    )
    for owner, name in places:
        function = getattr(owner, name)

        def note(*arguments, function=function):
            others.append(torch.get_num_threads())
            return function(*arguments)

        monkeypatch.setattr(owner, name, note)
    torch.set_num_threads(threads)
    try:
        results = make_predictor(Failing()).predict(random_photo(8, 8, seed) for seed in range(5))
        for count in (1, 2, 3):
            next(results)
            assert torch.get_num_threads() == threads
            assert of_network == [threads] * count
        with pytest.raises(ValueError, match="as it should"):
            next(results)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(usual)
    assert others == [fewer] * (3 * 3 + 1)


class Half(AnySizeNetwork):
    """A probability of exactly one half everywhere."""

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


def test_the_probability_is_kept_only_where_it_is_asked_for():
    assert predict_one(make_predictor(Redness()), random_photo(5, 5)).probability is None


@settings(deadline=None)
@given(st.tuples(st.integers(1, 6), st.integers(1, 40)).flatmap(lambda shape: arrays(np.bool_, shape)))
def test_bits_are_packed_alike_on_every_device(mask):
    expected = np.packbits(mask, axis=1)
    values = torch.from_numpy(mask).float()
    for packed in (pack_above(values, 0.5), pack_bits_on_device(torch.from_numpy(mask))):
        assert packed.dtype == torch.uint8
        np.testing.assert_array_equal(packed.numpy(), expected)


# A device that works ahead


@pytest.mark.parametrize("batch", [1, 2])
def test_only_a_device_that_works_ahead_has_its_next_batch_before_the_last_one_is_read(
    batch, both_ways, monkeypatch
):
    events = []

    class Watching(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            events.append("run")
            return super().padded_logits(images)

    class WatchedDownload(Download):
        def read(self):
            events.append("read")
            return super().read()

    monkeypatch.setattr(carvana_batch.inference.predictor, "Download", WatchedDownload)
    photos = [random_photo(8, 8, seed) for seed in range(6)]
    results = list(make_predictor(Watching(), batch=batch).predict(photos))
    assert [result.photo for result in results] == photos
    assert_red_masks(results, photos)
    read = ["read"] * batch
    assert events == (
        ["run", *["run", *read] * (6 // batch - 1), *read] if both_ways else ["run", *read] * (6 // batch)
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("both_ways")
def test_a_photo_that_is_never_finite_fails_in_its_turn(dtype, batch):
    photos = [red_photo([50, 200, 255] if seed == 2 else [50, 200], seed) for seed in range(5)]
    network = NeverFinite(float("nan"))
    results = list(make_predictor(network, dtype=dtype, batch=batch).predict(photos))
    assert [isinstance(result, Failure) for result in results] == [seed == 2 for seed in range(5)]
    assert results[2].id == photos[2].ref.key
    assert_red_masks([*results[:2], *results[3:]], [*photos[:2], *photos[3:]])


# Running out of memory


TILED = Tiling((32, 32), 0, 4)
PHOTO_SIZES = [(64, 64), (64, 64), (30, 70), (64, 64), (9, 9), (64, 60)]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("most_images", [1, 2, 3])
@pytest.mark.usefixtures("both_ways")
def test_fewer_images_at_a_time_when_memory_runs_out(most_images, error):
    photos = [random_photo(*size, seed) for seed, size in enumerate(PHOTO_SIZES)]
    predictor = make_predictor(Limited(most_images, error=error), TILED, batch=8)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert predictor.batch == (2 if most_images == 3 else most_images)
    assert predictor.warnings == [
        f"out of memory: going on with batches of {batch}" for batch in (4, 2, 1) if batch >= predictor.batch
    ]
    assert predictor.tiling == TILED


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("most_pixels", [1000, 300, 64])
@pytest.mark.parametrize("tiling", [TILED, WHOLE, Tiling(None, 32 * 32, 4)], ids=["size", "whole", "auto"])
def test_smaller_tiles_when_memory_runs_out(tiling, most_pixels, error):
    tiling = Tiling(tiling.tile, tiling.most_pixels, 4)
    photos = [random_photo(*size, seed) for seed, size in enumerate(PHOTO_SIZES)]
    predictor = make_predictor(Limited(most_pixels=most_pixels, error=error), tiling, batch=2)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert predictor.batch == 1
    assert predictor.warnings[0] == "out of memory: going on with batches of 1"
    assert "going on with tiles of at most" in predictor.warnings[-1]
    # Halving goes no further than it has to.
    assert predictor.tiling.most_pixels <= most_pixels or predictor.tiling.most_pixels < 2 * most_pixels
    assert predictor.tiling.most_pixels > most_pixels // 4


@pytest.mark.parametrize("call", range(12))
@pytest.mark.usefixtures("both_ways")
def test_memory_that_runs_out_once_at_any_call_costs_no_photo(call):
    calls = []

    class Once(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            calls.append(images.shape)
            if len(calls) == call + 1:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [random_photo(*size, seed) for seed, size in enumerate([(40, 40), (40, 40), (20, 50), (40, 40)])]
    predictor = make_predictor(Once(), Tiling((32, 32), 0, 4), batch=1)
    assert_red_masks(predictor.predict(photos), photos)
    assert len(predictor.warnings) == 1


def predict_on(device: ShortMemory, predictor: Predictor, photos) -> list[Prediction | Failure]:
    with device:
        return list(predictor.predict(photos))


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((16, 16), 0, 4)], ids=["whole", "tiles"])
@pytest.mark.usefixtures("both_ways")
def test_memory_that_runs_out_at_any_operation_costs_no_photo(tiling, count_faults):
    # In bfloat16 with a check against float32, and the second try of a photo in float32.
    photos = [red_photo([50, 200], 0), red_photo([50, 200, 250], 1), red_photo([50, 200], 2)]

    def predict(at):
        predictor = make_predictor(WrongInHalf(NOT_FINITE["inf"], 0.9), tiling, torch.bfloat16, batch=2)
        return predict_on(device := ShortMemory(at), predictor, photos), device.count, predictor.dtype

    _, operations, dtype = predict(None)
    assert (operations > 150, dtype) == (True, torch.bfloat16)
    for at in range(1, operations + 1):
        results, _, _ = predict(at)
        assert_red_masks(results, photos)
    count_faults("out of memory at one operation of torch costs no photo", operations)


PLACES = {
    "admit": (Predictor, "_admit", lambda predictor, photo, limit: predictor._plan(photo, limit)),
    "run": (Predictor, "_run", lambda predictor, jobs: jobs[0][0].plan),
    "blend": (Canvas, "blend", lambda canvas, *_: canvas.plan),
    "finish": (Predictor, "_finish", lambda predictor, canvas: canvas.plan),
    "read": (Predictor, "_result", lambda predictor, photo, _: predictor._plan(photo, None)),
}


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("most_images", "most_pixels"), [(3, 10**9), (1, 10**9), (8, 300), (1, 64)])
@pytest.mark.parametrize("place", PLACES)
def test_memory_that_is_too_short_at_any_place_costs_no_photo(
    place, most_images, most_pixels, dtype, error, monkeypatch, count_faults
):
    owner, name, find_plan = PLACES[place]
    method, run = getattr(owner, name), Predictor._run
    faults, last_to_run = 0, None

    def note(predictor, jobs):
        nonlocal last_to_run
        last_to_run = predictor
        return run(predictor, jobs)

    def limited(self, *arguments):
        nonlocal faults
        plan = find_plan(self, *arguments)
        batch = (last_to_run if isinstance(self, Canvas) else self).batch
        if batch > most_images or plan.tile_height * plan.tile_width > most_pixels:
            faults += 1
            raise error
        return method(self, *arguments)

    monkeypatch.setattr(Predictor, "_run", note)
    monkeypatch.setattr(owner, name, limited)
    photos = [red_photo([50, 200] if seed % 3 else [50, 200, 250], seed) for seed in range(7)]
    # Photos with 250 are not finite in bfloat16, and are run again in float32.
    network = WrongInHalf(NOT_FINITE["inf"], 0.9)
    predictor = make_predictor(network, Tiling((32, 32), 0, 4), dtype, batch=8)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert 0 < faults < 40
    assert predictor.batch == (1 if most_pixels < 10**9 else 2 if most_images == 3 else most_images)
    assert len(set(predictor.warnings)) == len(predictor.warnings) > 0
    count_faults("out of memory above a batch or tile costs no photo", faults)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("failing", [1, 2, 3, 10**9])
def test_photos_keep_their_order_when_there_is_no_memory_for_their_second_try(failing, batch, monkeypatch):
    photos = [red_photo([50, 200, 250] if seed in (2, 3) else [50, 200], seed) for seed in range(6)]
    predictor = make_predictor(WrongInHalf(NOT_FINITE["inf"], 0.9), dtype=torch.bfloat16, batch=batch)
    tiling, make_exact, calls = predictor.tiling, predictor._exact_predictor, 0

    def limited():
        nonlocal calls
        calls += 1
        if calls > 1 and calls <= 1 + failing:  # the first is for the check of the precision
            raise torch.OutOfMemoryError(GPU_TEXT)
        return make_exact()

    monkeypatch.setattr(predictor, "_exact_predictor", limited)
    with time_limit(60):
        results = list(predictor.predict(photos))
    refs = [result.ref if isinstance(result, Failure) else result.photo.ref for result in results]
    assert refs == [photo.ref for photo in photos]
    failed = [place for place, result in enumerate(results) if isinstance(result, Failure)]
    assert failed == ([2, 3] if failing > 10 else [])
    assert_red_masks(
        [result for result in results if isinstance(result, Prediction)],
        [photo for place, photo in enumerate(photos) if place not in failed],
    )
    if failed:
        assert predictor.tiling == tiling
        assert GPU_TEXT in results[2].reason


def mask_directly(network: AnySizeNetwork, photo: Photo) -> np.ndarray:
    """(H, W) float32 probabilities of the whole photo at once."""
    images = torch.from_numpy((photo.pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        return torch.sigmoid(network(images))[0, 0].numpy()


def assert_masks_of(results, probabilities: dict[str, np.ndarray]) -> None:
    """Each photo came back, with its mask except where the probability is next to the threshold."""
    assert sorted(result.photo.ref.key for result in results) == sorted(probabilities)
    for result in results:
        probability = probabilities[result.photo.ref.key]
        clear = np.abs(probability - 0.5) > 1e-3
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(result.mask.to_bool()[clear], probability[clear] > 0.5)


@pytest.mark.parametrize("size", [(160, 224), (141, 203)])
@pytest.mark.parametrize("most_pixels", [12_000, 6000, 3000])
def test_smaller_tiles_give_the_same_masks_if_the_network_looks_no_further_than_the_overlap(
    small_network, size, most_pixels
):
    photo = random_photo(*size)
    predictor = make_predictor(small_network, Tiling(None, most_pixels, 44), keep_probability=True)
    network = predictor.model.network
    assert predictor.tiling.plan(*size, network.stride, network.unit).tile_count > 3
    result = predict_one(predictor, photo)
    probability = mask_directly(small_network, photo)
    np.testing.assert_allclose(result.probability, probability, atol=1e-3)
    assert_masks_of([result], {photo.ref.key: probability})


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("megabytes", [4, 2, 1])
def test_a_device_with_little_memory_gives_the_same_masks(small_network, megabytes, batch, count_faults):
    photos = [random_photo(*size, seed) for seed, size in enumerate([(120, 160), (160, 121), (120, 160)] * 2)]
    probabilities = {photo.ref.key: mask_directly(small_network, photo) for photo in photos}
    predictor = make_predictor(small_network, Tiling(None, 10**9, 44), batch=batch)
    device = ShortMemory(most_bytes=megabytes * 10**6)
    results = predict_on(device, predictor, photos)
    assert_masks_of(results, probabilities)
    assert (predictor.warnings != []) == (batch == 4 or megabytes < 2)
    # What gave way once is enough for all that follow.
    before = list(predictor.warnings)
    assert_masks_of(predict_on(device, predictor, photos), probabilities)
    assert predictor.warnings == before
    count_faults("out of memory on a device with few bytes costs no photo", device.faults)


def test_nothing_of_a_failed_attempt_is_left_when_the_next_one_begins():
    tensors = []

    class Leaking(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            assert [tensor() for tensor in tensors] == [None] * len(tensors)
            if images[:, 0].numel() > 300:
                inside = torch.zeros(1000)
                tensors.extend([weakref.ref(images), weakref.ref(inside)])
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [random_photo(40, 40, seed) for seed in range(4)]
    gc.disable()
    try:
        assert_red_masks(make_predictor(Leaking(), Tiling(None, 1600, 4), batch=4).predict(photos), photos)
    finally:
        gc.enable()
    assert len(tensors) > 6


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.usefixtures("both_ways")
def test_a_photo_whose_maps_do_not_fit_is_a_failure_and_changes_nothing_for_the_others(batch, count_faults):
    photos = [random_photo(60, 60, seed) for seed in range(6)]
    monsters = [random_photo(600, 500, seed) for seed in range(2)]
    predictor = make_predictor(Redness(), Tiling(None, 3600, 16), batch=batch)
    tiling = predictor.tiling
    # Their pixels and maps alone take 2.1 MB.
    stream = [*photos[:2], monsters[0], *photos[2:5], monsters[1], photos[5]]
    with time_limit(60):
        results = predict_on(device := ShortMemory(most_bytes=10**6), predictor, stream)
    failures = [result for result in results if isinstance(result, Failure)]
    assert [failure.id for failure in failures] == [photo.ref.key for photo in monsters]
    for failure in failures:
        assert failure.stage == "predict"
        assert "500x600 pixels do not fit into the memory of cpu" in failure.reason
        assert "make the photo smaller" in failure.reason
        assert GPU_TEXT in failure.reason
    assert_red_masks([result for result in results if isinstance(result, Prediction)], photos)
    assert (predictor.batch, predictor.tiling, predictor.warnings) == (batch, tiling, [])
    with ShortMemory(most_bytes=10**6), pytest.raises(CarvanaBatchError, match="do not fit into the memory"):
        predictor.mask(monsters[0].pixels)
    count_faults("out of memory for the maps of a photo costs no other", device.faults)


@pytest.mark.usefixtures("both_ways")
def test_memory_that_is_short_for_a_moment_only_costs_no_photo_in_the_smallest_tiles():
    photos = [random_photo(9, 9, seed) for seed in range(3)]
    for at in range(1, 60):
        predictor = make_predictor(Redness(), Tiling(None, 10**6, 16))
        assert_red_masks(predict_on(ShortMemory(at), predictor, photos), photos)
        assert predictor.warnings == []


def test_a_lack_of_memory_before_the_check_against_float32_does_not_replace_it():
    photos = [random_photo(9, 9, seed) for seed in range(3)]
    for at in range(1, 20):
        network = WrongInHalf(lambda logits: -logits)
        predictor = make_predictor(network, Tiling(None, 10**6, 16), torch.bfloat16)
        assert_red_masks(predict_on(ShortMemory(at), predictor, photos), photos)
        assert predictor.dtype == torch.float32


@pytest.mark.usefixtures("both_ways")
def test_what_gives_way_for_a_large_photo_leaves_the_tiles_of_small_ones():
    shapes = []

    class Watching(Limited):
        def padded_logits(self, images: Tensor) -> Tensor:
            shapes.append(tuple(images.shape[2:]))
            return super().padded_logits(images)

    small, large = random_photo(60, 60), random_photo(400, 400)
    predictor = make_predictor(Watching(most_pixels=3600), Tiling(None, 90_000, 16, map_share=0.5))
    assert_red_masks(predictor.predict([large, small]), [large, small])
    assert shapes[-1] == (60, 60)
    assert 80_000 < predictor.tiling.most_pixels < 90_000
    assert predictor.warnings[-1].endswith(f"tiles of at most {predictor.tiling.most_pixels} pixels")


def test_only_what_gave_way_for_the_photo_that_fails_is_taken_back():
    photos, monster = [random_photo(60, 60, seed) for seed in range(2)], random_photo(600, 500)
    predictor = make_predictor(Limited(most_pixels=2000), Tiling(None, 3600, 16))
    results = predict_on(ShortMemory(most_bytes=10**6), predictor, [photos[0], monster, photos[1]])
    assert_red_masks([result for result in results if isinstance(result, Prediction)], photos)
    assert predictor.tiling == Tiling(None, 1800, 16)
    assert predictor.warnings == ["out of memory: going on with tiles of at most 1800 pixels"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_that_is_enlarged_survives_a_lack_of_memory(small_network, dtype):
    photo = random_photo(90, 140)
    model = dataclasses.replace(make_model(small_network), size=(96, 64))
    expected = predict_one(Predictor(model, CPU, dtype, WHOLE), photo).mask.to_bool()
    faults = 0
    for at in range(1, 200, 3):
        predictor = Predictor(model, CPU, dtype, Tiling(None, 10**6, 44))
        (result,) = predict_on(device := ShortMemory(at), predictor, [photo])
        assert (result.mask.to_bool() != expected).mean() < 0.02
        faults += device.faults
    assert faults > 20


def test_a_mask_is_not_kept_on_the_device_until_the_caller_has_written_it():
    photo = random_photo(300, 300)
    with ShortMemory() as device:
        for _ in make_predictor(Redness(), Tiling(None, 5000, 8)).predict([photo]):
            assert device.live < 3 * 300 * 300 + 2 * 4 * 5000 + 1000  # the photo and a tile or two


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("tiling", [TILED, WHOLE, Tiling(None, 32 * 32, 256)], ids=["size", "whole", "auto"])
def test_memory_that_never_suffices_ends_the_run_with_advice(tiling, batch, error):
    photos = [random_photo(*size, seed) for seed, size in enumerate(PHOTO_SIZES)]
    predictor = make_predictor(Limited(most_pixels=0, error=error), tiling, batch=batch)
    with time_limit(60), pytest.raises(CarvanaBatchError) as told:
        list(predictor.predict(photos))
    assert re.match(r".*64x64_0.jpg: not enough memory on cpu .* --overlap", str(told.value))
    assert (str(error) or "MemoryError") in str(told.value)  # in case that it was something else


@pytest.mark.parametrize("error", [RuntimeError("another shape"), ValueError("x"), KeyError("out of memory")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    predictor = make_predictor(Limited(most_images=0, error=error), TILED, batch=4)
    with pytest.raises(type(error)) as caught:
        list(predictor.predict([random_photo(64, 64)]))
    assert str(caught.value) == str(error)
    assert predictor.warnings == []


# Precision


class WrongInHalf(Redness):
    """In half precision something becomes of the logits where the photo is bright."""

    def __init__(self, spoil, level: float = -2.0) -> None:
        super().__init__()
        self.spoil, self.level = spoil, level

    def padded_logits(self, images: Tensor) -> Tensor:
        logits = super().padded_logits(images)
        if images.dtype == torch.bfloat16:
            logits = torch.where(images[:, :1] > self.level, self.spoil(logits), logits)
        return logits


def red_photo(reds: list[int], seed: int) -> Photo:
    """20 x 24 pixels of these values of red."""
    pixels = np.random.default_rng(seed).choice(np.array(reds, np.uint8), (20, 24, 3))
    return Photo(ImageRef(f"red {seed}", Path(f"{seed}.jpg")), pixels)


NOT_FINITE = {
    "inf": lambda logits: logits * float("inf"),
    "minus inf": lambda logits: logits.abs() * -float("inf"),
    "nan": lambda logits: logits * float("nan"),
    "both": lambda logits: torch.where(logits.cumsum(3) > 200, float("inf"), -float("inf")).to(logits.dtype),
}


@pytest.mark.parametrize("tiling", [WHOLE, Tiling((12, 12), 0, 4)], ids=["whole", "tiles"])
@pytest.mark.parametrize("spoil", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("batch", [1, 3])
def test_output_that_is_not_finite_in_bfloat16_is_tried_again_in_float32(spoil, tiling, batch):
    photos = [red_photo([50, 200] if seed % 3 else [50, 200, 250], seed) for seed in range(1, 8)]
    model = WrongInHalf(spoil, level=0.9)
    predictor = make_predictor(model, tiling, torch.bfloat16, batch=batch, keep_probability=True)
    # The first batch is harmless, so that bfloat16 itself is not given up.
    harmless = [red_photo([50, 200], seed) for seed in range(100, 100 + batch)]
    results = list(predictor.predict(harmless + photos))
    assert predictor.dtype == torch.bfloat16
    assert_red_masks(results, harmless + photos)
    exact = make_predictor(Redness(), tiling, keep_probability=True)
    for result in results:
        expected = predict_one(exact, result.photo).probability
        if (result.photo.pixels[:, :, 0] == 250).any():
            np.testing.assert_array_equal(result.probability, expected)
        else:
            assert np.abs(result.probability - expected).max() < 0.01


class NeverFinite(Redness):
    """One logit of every photo with a red of 255 is not finite."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def padded_logits(self, images: Tensor) -> Tensor:
        return torch.where(images[:, :1] > 0.99, self.value, super().padded_logits(images))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"batch": 3}])
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((12, 12), 0, 4)], ids=["whole", "tiles"])
def test_output_that_is_never_finite_is_a_failure_not_a_mask(value, dtype, options, tiling):
    photos = [red_photo([50, 200], seed) for seed in range(6)]
    bad = [photos[2], photos[5]]
    for photo in bad:
        photo.pixels[17, 3, 0] = 255
    predictor = make_predictor(NeverFinite(value), tiling, dtype, **options)
    results = list(predictor.predict(photos))
    failures = [result for result in results if isinstance(result, Failure)]
    assert sorted(failure.id for failure in failures) == ["red 2", "red 5"]
    assert {failure.stage for failure in failures} == {"predict"}
    assert all("not finite" in failure.reason for failure in failures)
    good = [photo for photo in photos if photo not in bad]
    assert_red_masks([result for result in results if isinstance(result, Prediction)], good)
    with pytest.raises(CarvanaBatchError, match="not finite"):
        predictor.mask(bad[0].pixels)


@pytest.mark.parametrize("place", [0, 1])
def test_the_mirrored_pass_is_checked_too(place):
    class OneSided(Redness):
        """Not finite where the first pixel of the photo, or of the mirrored one, has a red of 255."""

        def padded_logits(self, images: Tensor) -> Tensor:
            logits = super().padded_logits(images)
            spoilt = images[:, 0, 0, 0].reshape(-1, 1, 1, 1) > 0.999
            return torch.where(spoilt, float("inf"), logits)

    photo = red_photo([50, 200], 0)
    photo.pixels[0, [0, -1][place], 0] = 255
    (result,) = make_predictor(OneSided(), flip=True).predict([photo])
    assert isinstance(result, Failure)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "spoil", [lambda logits: -logits, lambda logits: logits * float("nan"), torch.zeros_like]
)
def test_a_network_that_goes_wrong_in_bfloat16_is_run_in_float32(spoil, batch):
    photos = [random_photo(20, 24, seed) for seed in range(6)]
    predictor = make_predictor(WrongInHalf(spoil), WHOLE, torch.bfloat16, batch=batch, keep_probability=True)
    results = list(predictor.predict(photos))
    assert predictor.dtype == torch.float32
    assert len(predictor.warnings) == 1
    assert "using float32" in predictor.warnings[0]
    assert_red_masks(results, photos)
    exact = make_predictor(Redness(), WHOLE, batch=batch, keep_probability=True)
    for result, expected in zip(results, exact.predict(photos), strict=True):
        np.testing.assert_array_equal(result.probability, expected.probability)


def test_a_network_that_is_right_in_bfloat16_stays_there():
    photos = [red_photo([50, 200], seed) for seed in range(6)]
    predictor = make_predictor(Redness(), WHOLE, torch.bfloat16, batch=4)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.dtype == torch.bfloat16
    assert predictor.warnings == []


def test_the_empty_places_of_a_batch_do_not_take_part_in_the_check():
    # Black is wrong in bfloat16 here, and the empty places are grey, which is right.
    spoil = WrongInHalf(lambda logits: -logits, level=0.5)
    photos = [red_photo([250], 0)]
    predictor = make_predictor(spoil, WHOLE, torch.bfloat16, batch=64)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.dtype == torch.float32


@pytest.mark.parametrize("limits", [{"most_images": 1}, {"most_pixels": 300}])
def test_a_check_for_which_memory_did_not_suffice_is_made_up_for(limits):
    class LimitedAndWrong(Limited):
        """float32 takes too much memory at first, and bfloat16 is wrong."""

        def padded_logits(self, images: Tensor) -> Tensor:
            logits = super().padded_logits(images)
            return -logits if images.dtype == torch.bfloat16 else logits

    photos = [random_photo(32, 32, seed) for seed in range(6)]
    network = LimitedAndWrong(**limits, dtypes=[torch.float32])
    predictor = make_predictor(network, Tiling((32, 32), 0, 4), torch.bfloat16, batch=4)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert predictor.dtype == torch.float32


def test_the_check_takes_no_more_float32_images_at_a_time_than_one():
    network = Limited(most_images=1, dtypes=[torch.float32])
    photos = [red_photo([50, 200], seed) for seed in range(6)]
    predictor = make_predictor(network, WHOLE, torch.bfloat16, batch=4)
    assert_red_masks(predictor.predict(photos), photos)
    assert (predictor.batch, predictor.warnings) == (4, [])


def test_a_check_that_never_fits_is_left_out_and_said_so():
    # float32 never fits, so the photos that are not finite in bfloat16 cannot be masked, but all others can.
    class HalfOnly(WrongInHalf):
        def padded_logits(self, images: Tensor) -> Tensor:
            if images.dtype == torch.float32:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [red_photo([50, 200] if seed % 3 else [50, 250], seed) for seed in range(1, 9)]
    predictor = make_predictor(HalfOnly(NOT_FINITE["nan"], 0.9), TILED, torch.bfloat16, batch=2)
    results = list(predictor.predict(photos))
    failures = [result for result in results if isinstance(result, Failure)]
    assert sorted(failure.id for failure in failures) == ["red 3", "red 6"]
    assert all(
        "not finite" in failure.reason and "not enough memory" in failure.reason for failure in failures
    )
    assert_red_masks(
        [result for result in results if isinstance(result, Prediction)],
        [photo for photo in photos if (photo.pixels[:, :, 0] != 250).all()],
    )
    assert predictor.warnings == ["torch.bfloat16 was not checked: float32 does not fit into the memory"]
    assert (predictor.batch, predictor.tiling) == (2, TILED)


def test_a_second_try_in_float32_that_needs_smaller_tiles_leaves_those_of_the_others():
    class Large(WrongInHalf):
        def padded_logits(self, images: Tensor) -> Tensor:
            if images.dtype == torch.float32 and images[:, 0].numel() > 200:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [red_photo([50, 200] if seed % 3 else [50, 200, 250], seed) for seed in range(1, 9)]
    predictor = make_predictor(Large(NOT_FINITE["inf"], 0.9), Tiling(None, 480, 4), torch.bfloat16)
    assert_red_masks(predictor.predict(photos), photos)
    assert (predictor.dtype, predictor.tiling) == (torch.bfloat16, Tiling(None, 480, 4))
    assert [line for line in predictor.warnings if not line.startswith("second try in float32: ")] == []
    assert len(predictor.warnings) == 1


def test_a_second_try_in_float32_begins_with_the_tiles_that_others_came_to():
    class Small(WrongInHalf):
        def padded_logits(self, images: Tensor) -> Tensor:
            if images[:, 0].numel() > 100:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [red_photo([50, 200], 0), red_photo([50, 200, 250], 1)]
    predictor = make_predictor(Small(NOT_FINITE["inf"], 0.9), Tiling(None, 480, 4), torch.bfloat16)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.tiling.most_pixels <= 120
    assert not any(line.startswith("second try") for line in predictor.warnings)


def test_a_second_try_in_float32_is_cut_alike_whether_the_batch_gave_way_before_it_or_in_an_earlier_run():
    plans = []
    for batches in ((2, 1), (1,)):
        predictor = make_predictor(Redness(), Tiling(None, 480, 4), torch.bfloat16, batch=batches[0])
        for batch in batches:
            predictor.batch = batch
            tiling = predictor._exact_predictor().tiling
        plans.append(tiling)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("batch", [1, 4])
def test_float32_takes_no_more_memory_than_half_precision_was_to_take(batch):
    most = 0

    class Watching(WrongInHalf):
        def padded_logits(self, images: Tensor) -> Tensor:
            nonlocal most
            if images.dtype == torch.float32:
                most = max(most, images[:, 0].numel())
            return super().padded_logits(images)

    photos = [random_photo(48, 40, seed) for seed in range(6)]
    network = Watching(lambda logits: -logits)
    predictor = make_predictor(network, Tiling(None, 960, 4), torch.bfloat16, batch=batch)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.dtype == torch.float32
    assert most <= batch * 960 // 2


# Mirrored photos


@pytest.mark.parametrize("tiling", [WHOLE, Tiling((16, 16), 0, 8)], ids=["whole", "tiles"])
def test_flip_averages_the_photo_and_its_mirror_image(small_network, tiling):
    photo = random_photo(20, 16)
    plain = predict_one(make_predictor(small_network, tiling, keep_probability=True), photo)
    flipped = predict_one(make_predictor(small_network, tiling, flip=True, keep_probability=True), photo)
    mirrored_photo = Photo(photo.ref, np.ascontiguousarray(photo.pixels[:, ::-1]))
    mirrored = predict_one(make_predictor(small_network, tiling, keep_probability=True), mirrored_photo)
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
def test_images_of_another_shape_or_dtype_are_refused(pixels):
    with pytest.raises(ValueError, match="expected"):
        make_predictor(Redness()).mask(pixels)


def test_read_only_turned_and_mirrored_arrays_are_taken():
    photo = random_photo(12, 9)
    predictor = make_predictor(Redness())
    read_only = photo.pixels.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(predictor.mask(read_only), red_mask(photo))
    backwards = np.ascontiguousarray(photo.pixels[..., ::-1])
    np.testing.assert_array_equal(predictor.mask(backwards[..., ::-1]), red_mask(photo))
    np.testing.assert_array_equal(predictor.mask(photo.pixels[::-1, ::2]), red_mask(photo)[::-1, ::2])
    turned = predictor.mask(photo.pixels.transpose(1, 0, 2))
    np.testing.assert_array_equal(turned, red_mask(photo).T)


# Expected Dice


def dice_of(probabilities, threshold=0.5) -> float:
    packed, sums = threshold_and_pack(torch.tensor(probabilities, dtype=torch.float32), threshold)
    return expected_dice(packed.numpy(), sums)


def test_expected_dice_by_hand():
    # 2 x (0.9 + 0.6) / (2 + 0.9 + 0.2 + 0.6 + 0.4)
    assert dice_of([[0.9, 0.2], [0.6, 0.4]]) == pytest.approx(3 / 4.1)
    # 2 x (0.9 + 0.2 + 0.6 + 0.4) / (4 + 0.9 + 0.2 + 0.6 + 0.4)
    assert dice_of([[0.9, 0.2], [0.6, 0.4]], threshold=0.1) == pytest.approx(4.2 / 6.1)
    assert dice_of([[1.0, 0.0, 1.0]]) == 1
    assert dice_of([[0.3, 0.2]]) == 0
    assert dice_of([[0.0, 0.0]]) == 1


def test_a_prediction_tells_its_expected_dice():
    photo = random_photo(40, 30)
    for tiling in (WHOLE, Tiling((16, 16), 0, 4)):
        probability, mask = red_probability(photo), red_mask(photo)
        expected = 2 * probability[mask].sum() / (mask.sum() + probability.sum())
        result = predict_one(make_predictor(Redness(), tiling), photo)
        assert result.expected_dice == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 100), (64, 33), (3, 1000)])
def test_a_large_map_is_packed_in_bands(height, width, monkeypatch):
    probability = torch.from_numpy(np.random.default_rng(0).random((height, width), np.float32))
    mask = probability.numpy() > np.float32(0.3)
    values = probability.numpy().astype(np.float64)
    expected = 2 * values[mask].sum() / (mask.sum() + values.sum())
    for band_pixels in (carvana_batch.inference.thresholding.CPU_BAND_PIXELS, 200):
        monkeypatch.setattr(carvana_batch.inference.thresholding, "CPU_BAND_PIXELS", band_pixels)
        packed, sums = threshold_and_pack(probability, 0.3)
        np.testing.assert_array_equal(packed.numpy(), np.packbits(mask, axis=1))
        assert expected_dice(packed.numpy(), sums) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("doubt", [0.05, 0.5, 2.0])
def test_expected_dice_is_the_mean_dice_of_many_possible_truths(doubt):
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:60j, -1:1:80j]
    distance = 0.6 - np.hypot(rows, columns) + 0.1 * rng.standard_normal((60, 80))
    probability = 1 / (1 + np.exp(-distance / (0.1 * doubt)))
    mask = probability > 0.5
    truths = rng.random((300, 60, 80)) < probability
    dices = 2 * (truths & mask).sum((1, 2)) / (truths.sum((1, 2)) + mask.sum())
    assert dice_of(probability) == pytest.approx(dices.mean(), abs=0.01)
