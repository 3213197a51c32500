import dataclasses
import time

import networks
import numpy as np
import pytest
import torch
from networks import (
    CPU,
    NOT_FINITE,
    WHOLE,
    LimitedRedness,
    Redness,
    WrongInBfloat16,
    assert_red_masks,
    make_predictor,
    photo_of_reds,
    predict_one,
    random_photo,
    time_limit,
)
from short_memory import GPU_TEXT
from torch import Tensor, nn

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference import precision
from carvana_batch.inference.precision import choose_precision
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inference.tiles import Tiling
from carvana_batch.values import Failure, Prediction

works_ahead = networks.works_ahead  # a fixture


class NeverFinite(Redness):
    """Logits of pixels with a red of 255 are ``value``, in float32 too."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def padded_logits(self, images: Tensor) -> Tensor:
        return torch.where(images[:, :1] > 0.99, self.value, super().padded_logits(images))


# Choice


@pytest.mark.parametrize(
    ("has_instructions", "milliseconds", "chosen"),
    [
        (True, {torch.float32: 5, torch.bfloat16: 1}, torch.bfloat16),
        (True, {torch.float32: 5, torch.bfloat16: 5}, torch.bfloat16),
        (True, {torch.float32: 5, torch.bfloat16: 6}, torch.bfloat16),
        (True, {torch.float32: 1, torch.bfloat16: 6}, torch.float32),
        (False, {torch.float32: 5, torch.bfloat16: 1}, torch.float32),
    ],
)
def test_a_cpu_with_instructions_for_it_uses_bfloat16(monkeypatch, has_instructions, milliseconds, chosen):
    def prepare(_network, _device, dtype):
        return lambda images: time.sleep(milliseconds[dtype] / 1000)

    monkeypatch.setattr(precision, "prepare_network", prepare)
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: has_instructions)
    dtype, reason = choose_precision(nn.Identity(), CPU)
    assert dtype == chosen
    assert reason.startswith("fp32 (" if chosen == torch.float32 else "bf16 (")
    assert choose_precision(nn.Identity(), torch.device("cuda"))[0] == torch.float16


def test_timing_goes_on_until_it_is_stable(monkeypatch):
    """A machine that is busy at first does not make bfloat16 look slow."""
    runs = {torch.float32: 0, torch.bfloat16: 0}
    now = 0.0

    def prepare(_network, _device, dtype):
        def run(_images):
            nonlocal now
            runs[dtype] += 1
            busy = dtype == torch.bfloat16 and runs[dtype] <= 5
            now += 0.02 / runs[dtype] if busy else 0.002

        return run

    monkeypatch.setattr(precision, "prepare_network", prepare)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)
    assert precision.speed_of_bfloat16(nn.Identity(), CPU) > 1 / precision.FAR_SLOWER
    assert 5 < runs[torch.float32] == runs[torch.bfloat16] <= precision.MOST_ROUNDS


# Check of the first batch against float32


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "spoil", [lambda logits: -logits, lambda logits: logits * float("nan"), torch.zeros_like]
)
def test_float32_replaces_bfloat16_if_its_output_is_wrong(spoil, batch):
    photos = [random_photo(20, 24, seed) for seed in range(6)]
    network = WrongInBfloat16(spoil)
    predictor = make_predictor(network, WHOLE, torch.bfloat16, batch=batch, keep_probability=True)
    results = list(predictor.predict(photos))
    assert predictor.limits.dtype == torch.float32
    assert len(predictor.warnings) == 1
    assert "using float32" in predictor.warnings[0]
    assert_red_masks(results, photos)
    exact = make_predictor(Redness(), WHOLE, batch=batch, keep_probability=True)
    for result, expected in zip(results, exact.predict(photos), strict=True):
        np.testing.assert_array_equal(result.probability, expected.probability)


def test_bfloat16_is_kept_if_its_output_is_right():
    photos = [photo_of_reds([50, 200], seed) for seed in range(6)]
    predictor = make_predictor(Redness(), WHOLE, torch.bfloat16, batch=4)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.limits.dtype == torch.bfloat16
    assert predictor.warnings == []


def test_padding_of_a_batch_is_not_checked():
    # bfloat16 is wrong for this photo, but not for the grey that fills the other 63 tiles of the batch.
    network = WrongInBfloat16(lambda logits: -logits, level=0.5)
    photos = [photo_of_reds([250], 0)]
    predictor = make_predictor(network, WHOLE, torch.bfloat16, batch=64)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.limits.dtype == torch.float32


@pytest.mark.parametrize("limits", [{"most_images": 1}, {"most_pixels": 300}])
def test_the_check_is_repeated_if_memory_was_short(limits):
    class LimitedAndWrong(LimitedRedness):
        """Runs out of memory in float32 above the limits, and is wrong in bfloat16."""

        def padded_logits(self, images: Tensor) -> Tensor:
            logits = super().padded_logits(images)
            return -logits if images.dtype == torch.bfloat16 else logits

    photos = [random_photo(32, 32, seed) for seed in range(6)]
    network = LimitedAndWrong(**limits, dtypes=[torch.float32])
    predictor = make_predictor(network, Tiling((32, 32), 0, 4), torch.bfloat16, batch=4)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert predictor.limits.dtype == torch.float32


def test_the_check_runs_one_float32_image_at_a_time():
    network = LimitedRedness(most_images=1, dtypes=[torch.float32])
    photos = [photo_of_reds([50, 200], seed) for seed in range(6)]
    predictor = make_predictor(network, WHOLE, torch.bfloat16, batch=4)
    assert_red_masks(predictor.predict(photos), photos)
    assert (predictor.limits.batch, predictor.warnings) == (4, [])


def test_a_check_that_never_fits_is_skipped_with_a_warning():
    # Because float32 never fits, photos that are not finite in bfloat16 fail; all others are masked.
    class Bfloat16Only(WrongInBfloat16):
        def padded_logits(self, images: Tensor) -> Tensor:
            if images.dtype == torch.float32:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    tiling = Tiling((32, 32), 0, 4)
    photos = [photo_of_reds([50, 200] if seed % 3 else [50, 250], seed) for seed in range(1, 9)]
    predictor = make_predictor(Bfloat16Only(NOT_FINITE["nan"], 0.9), tiling, torch.bfloat16, batch=2)
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
    assert (predictor.limits.batch, predictor.limits.tiling) == (2, tiling)


@pytest.mark.parametrize("batch", [1, 4])
def test_float32_takes_no_more_memory_than_bfloat16(batch):
    most_pixels = 0

    class RecordingNetwork(WrongInBfloat16):
        def padded_logits(self, images: Tensor) -> Tensor:
            nonlocal most_pixels
            if images.dtype == torch.float32:
                most_pixels = max(most_pixels, images[:, 0].numel())
            return super().padded_logits(images)

    photos = [random_photo(48, 40, seed) for seed in range(6)]
    network = RecordingNetwork(lambda logits: -logits)
    predictor = make_predictor(network, Tiling(None, 960, 4), torch.bfloat16, batch=batch)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.limits.dtype == torch.float32
    assert most_pixels <= batch * 960 // 2


# Output that is not finite


@pytest.mark.parametrize("tiling", [WHOLE, Tiling((12, 12), 0, 4)], ids=["whole", "tiles"])
@pytest.mark.parametrize("spoil", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("batch", [1, 3])
def test_output_not_finite_in_bfloat16_is_retried_in_float32(spoil, tiling, batch):
    photos = [photo_of_reds([50, 200] if seed % 3 else [50, 200, 250], seed) for seed in range(1, 8)]
    network = WrongInBfloat16(spoil, level=0.9)
    predictor = make_predictor(network, tiling, torch.bfloat16, batch=batch, keep_probability=True)
    # The first batch is finite, so that float32 does not replace bfloat16 for all photos.
    harmless = [photo_of_reds([50, 200], seed) for seed in range(100, 100 + batch)]
    results = list(predictor.predict(harmless + photos))
    assert predictor.limits.dtype == torch.bfloat16
    assert_red_masks(results, harmless + photos)
    exact = make_predictor(Redness(), tiling, keep_probability=True)
    for result in results:
        expected = predict_one(exact, result.photo).probability
        if (result.photo.pixels[:, :, 0] == 250).any():
            np.testing.assert_array_equal(result.probability, expected)
        else:
            assert np.abs(result.probability - expected).max() < 0.01


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"batch": 3}])
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((12, 12), 0, 4)], ids=["whole", "tiles"])
def test_output_that_is_never_finite_is_a_failure(value, dtype, options, tiling):
    photos = [photo_of_reds([50, 200], seed) for seed in range(6)]
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


@pytest.mark.parametrize("column", [0, -1])
def test_both_passes_of_flip_must_be_finite(column):
    class InfiniteAtCorner(Redness):
        """Not finite where the first pixel has a red of 255: that of the photo or of its mirror image."""

        def padded_logits(self, images: Tensor) -> Tensor:
            logits = super().padded_logits(images)
            spoilt = images[:, 0, 0, 0].reshape(-1, 1, 1, 1) > 0.999
            return torch.where(spoilt, float("inf"), logits)

    photo = photo_of_reds([50, 200], 0)
    photo.pixels[0, column, 0] = 255
    (result,) = make_predictor(InfiniteAtCorner(), flip=True).predict([photo])
    assert isinstance(result, Failure)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("works_ahead")
def test_failures_keep_their_position_in_the_order(dtype, batch):
    photos = [photo_of_reds([50, 200, 255] if seed == 2 else [50, 200], seed) for seed in range(5)]
    network = NeverFinite(float("nan"))
    results = list(make_predictor(network, dtype=dtype, batch=batch).predict(photos))
    assert [isinstance(result, Failure) for result in results] == [seed == 2 for seed in range(5)]
    assert results[2].id == photos[2].ref.key
    assert_red_masks([*results[:2], *results[3:]], [*photos[:2], *photos[3:]])


# Retries in float32 with little memory


@pytest.mark.usefixtures("works_ahead")
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("failing", [1, 2, 3, 10**9])
def test_photos_keep_their_order_if_retries_lack_memory(failing, batch):
    photos = [photo_of_reds([50, 200, 250] if seed in (2, 3) else [50, 200], seed) for seed in range(6)]
    calls = 0

    class NoMemoryForFloat32(Predictor):
        def float32_predictor(self):
            nonlocal calls
            calls += 1
            if calls > 1 and calls <= 1 + failing:  # the first call is for the check of the precision
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().float32_predictor()

    network = WrongInBfloat16(NOT_FINITE["inf"], 0.9)
    predictor = make_predictor(network, dtype=torch.bfloat16, batch=batch, kind=NoMemoryForFloat32)
    tiling = predictor.limits.tiling
    with time_limit(60):
        results = list(predictor.predict(photos))
    keys = [result.id if isinstance(result, Failure) else result.photo.ref.key for result in results]
    assert keys == [photo.ref.key for photo in photos]
    failed = [index for index, result in enumerate(results) if isinstance(result, Failure)]
    assert failed == ([2, 3] if failing > 10 else [])
    assert_red_masks(
        [result for result in results if isinstance(result, Prediction)],
        [photo for index, photo in enumerate(photos) if index not in failed],
    )
    if failed:
        assert predictor.limits.tiling == tiling
        assert GPU_TEXT in results[2].reason


def test_smaller_tiles_of_a_retry_are_for_retries_only():
    class LimitedInFloat32(WrongInBfloat16):
        def padded_logits(self, images: Tensor) -> Tensor:
            if images.dtype == torch.float32 and images[:, 0].numel() > 200:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [photo_of_reds([50, 200] if seed % 3 else [50, 200, 250], seed) for seed in range(1, 9)]
    tiling = Tiling(None, 480, 4)
    predictor = make_predictor(LimitedInFloat32(NOT_FINITE["inf"], 0.9), tiling, torch.bfloat16)
    assert_red_masks(predictor.predict(photos), photos)
    assert (predictor.limits.dtype, predictor.limits.tiling) == (torch.bfloat16, tiling)
    assert [line for line in predictor.warnings if not line.startswith("second try in float32: ")] == []
    assert len(predictor.warnings) == 1


def test_retries_start_with_the_reduced_tiles():
    class LimitedInAll(WrongInBfloat16):
        def padded_logits(self, images: Tensor) -> Tensor:
            if images[:, 0].numel() > 100:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [photo_of_reds([50, 200], 0), photo_of_reds([50, 200, 250], 1)]
    network = LimitedInAll(NOT_FINITE["inf"], 0.9)
    predictor = make_predictor(network, Tiling(None, 480, 4), torch.bfloat16)
    assert_red_masks(predictor.predict(photos), photos)
    assert predictor.limits.tiling.most_pixels <= 120
    assert not any(line.startswith("second try") for line in predictor.warnings)


def test_tiles_of_retries_do_not_depend_on_when_the_batch_shrank():
    tilings = []
    for batches in ((2, 1), (1,)):  # reduced in this run, or in an earlier one
        predictor = make_predictor(Redness(), Tiling(None, 480, 4), torch.bfloat16, batch=batches[0])
        for batch in batches:
            predictor.limits = dataclasses.replace(predictor.limits, batch=batch)
            tiling = predictor.float32_predictor().limits.tiling
        tilings.append(tiling)
    assert tilings[0] == tilings[1]
