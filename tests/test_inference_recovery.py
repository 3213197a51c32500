import gc
import math
import re
import weakref

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    NOT_FINITE,
    OUT_OF_MEMORY,
    WHOLE,
    LimitedRedness,
    Redness,
    WrongInBfloat16,
    assert_masks_match,
    assert_red_masks,
    make_model,
    make_predictor,
    make_small_network,
    photo_of_reds,
    predict_one,
    probabilities_of_whole_photo,
    random_photo,
    time_limit,
)
from short_memory import GPU_TEXT, ShortMemory
from torch import Tensor

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.canvas import Canvas
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inference.recovery import Limits, Reduction, next_lower_limits
from carvana_batch.inference.runner import NetworkRunner
from carvana_batch.inference.tiles import Tiling
from carvana_batch.values import Failure, Prediction

works_ahead = networks.works_ahead  # a fixture

TILED = Tiling((32, 32), 0, 4)
PHOTO_SIZES = [(64, 64), (64, 64), (30, 70), (64, 64), (9, 9), (64, 60)]


def predict_with(memory: ShortMemory, predictor: Predictor, photos) -> list[Prediction | Failure]:
    with memory:
        return list(predictor.predict(photos))


def predictions_of(results) -> list[Prediction]:
    return [result for result in results if isinstance(result, Prediction)]


# Limits


def test_float32_halves_the_batch():
    assert Limits(8, TILED, torch.bfloat16).in_float32() == Limits(4, TILED, torch.float32)
    assert Limits(3, TILED, torch.float16).in_float32() == Limits(1, TILED, torch.float32)


def test_float32_halves_the_tiles_of_a_batch_of_one():
    automatic = Limits(1, Tiling(None, 1001, 64, 0.1), torch.bfloat16)
    assert automatic.in_float32() == Limits(1, Tiling(None, 500, 64, 0.05), torch.float32)
    fixed = Limits(1, Tiling((32, 48), 1000, 4), torch.bfloat16)
    assert fixed.in_float32() == Limits(1, Tiling((32, 48), 500, 4), torch.float32)


def test_single_tiles_in_float32():
    tiling = Tiling(None, 1000, 64, 0.1)
    for batch in (2, 8):
        limits = Limits(batch, tiling, torch.bfloat16)
        assert limits.single_tiles_in_float32() == Limits(1, tiling, torch.float32)
    half = Limits(1, Tiling(None, 500, 64, 0.05), torch.float32)
    assert Limits(1, tiling, torch.bfloat16).single_tiles_in_float32() == half


# The next lower limits


@pytest.mark.parametrize(("batch", "lower"), [(8, 4), (3, 1), (2, 1)])
@pytest.mark.parametrize("tile_limit", [None, 500])
def test_the_batch_is_halved_first(batch, lower, tile_limit):
    reduction = next_lower_limits(Limits(batch, TILED, torch.bfloat16), tile_limit, 64, 64, 4, 4)
    warning = f"out of memory: going on with batches of {lower}"
    assert reduction == Reduction(Limits(lower, TILED, torch.bfloat16), tile_limit, warning)


def test_a_fixed_tile_becomes_half_its_pixels():
    reduction = next_lower_limits(Limits(1, TILED, torch.float32), None, 64, 64, 4, 4)
    warning = "out of memory: going on with tiles of at most 512 pixels"  # 32 x 32 / 2
    assert reduction == Reduction(Limits(1, Tiling(None, 512, 4), torch.float32), 512, warning)


def test_the_tile_that_failed_is_halved_not_the_limit():
    # The whole photo, 40 x 62 pixels padded to 40 x 64, was one tile.
    reduction = next_lower_limits(Limits(1, Tiling(None, 10_000, 4), torch.float32), None, 40, 62, 4, 4)
    warning = "out of memory: going on with tiles of at most 1280 pixels"
    assert reduction == Reduction(Limits(1, Tiling(None, 1280, 4), torch.float32), 1280, warning)


# Two columns of 400 x 400 pixels with an overlap of 16 are (400 + 16) / 2 = 208 wide, so the tile that failed
# has 208 x 400 = 83,200 pixels. Half of it is 41,600; the maps count for 160,000 times the share.
@pytest.mark.parametrize(
    ("map_share", "most_pixels"),
    [(0, 41_600), (0.05, 41_600 + 8000), (0.25, 41_600 + 40_000)],
)
def test_other_photos_keep_the_pixels_that_maps_took(map_share, most_pixels):
    tiling = Tiling(None, 90_000, 16, map_share)
    reduction = next_lower_limits(Limits(1, tiling, torch.float32), None, 400, 400, 4, 4)
    lower = Limits(1, Tiling(None, most_pixels, 16, map_share), torch.float32)
    warning = f"out of memory: going on with tiles of at most {most_pixels} pixels"
    assert reduction == Reduction(lower, 41_600, warning)


def test_a_large_photo_alone_may_get_smaller_tiles():
    # 41,600 pixels for the tile and 80,000 for the maps are more than others may have anyway.
    limits = Limits(1, Tiling(None, 90_000, 16, map_share=0.5), torch.float32)
    assert next_lower_limits(limits, None, 400, 400, 4, 4) == Reduction(limits, 41_600, None)
    # Five columns are (400 + 4 x 16) / 5 = 92.8 wide, rounded up to the stride 96.
    assert next_lower_limits(limits, 41_600, 400, 400, 4, 4) == Reduction(limits, 96 * 400 // 2, None)


@pytest.mark.parametrize(
    ("tiling", "tile_limit", "size"),
    [
        (Tiling(None, 1, 4), None, (64, 64)),  # 8 x 8, which is the overlap and one step of the stride
        (Tiling(None, 64, 4), None, (64, 64)),
        (Tiling(None, 10_000, 4), 32, (64, 64)),
        (Tiling((8, 8), 0, 4), None, (64, 64)),
        (Tiling(None, 10_000, 4), None, (4, 4)),  # a photo smaller than that
        (WHOLE, None, (1, 3)),
    ],
)
def test_nothing_is_lower_than_the_smallest_tile(tiling, tile_limit, size):
    assert next_lower_limits(Limits(1, tiling, torch.float32), tile_limit, size[0], size[1], 4, 4) is None
    assert next_lower_limits(Limits(2, tiling, torch.float32), tile_limit, size[0], size[1], 4, 4) is not None


@st.composite
def reduction_requests(draw):
    """(limits, tile_limit, height, width, stride, unit) for which there is a tile plan."""
    stride = draw(st.sampled_from([1, 4, 32]))
    unit = draw(st.sampled_from([1, stride]))
    height, width = (draw(st.integers(1, 20 * stride)) for _ in range(2))
    overlap = draw(st.integers(0, 4 * stride))
    side = st.integers(overlap + stride, overlap + 12 * stride)
    tile = draw(st.none() | st.tuples(side, side))
    pixels = st.integers(1, 2 * height * width)
    tiling = Tiling(tile, draw(pixels), overlap, draw(st.sampled_from([0, 0.1, 2])))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    tile_limit = draw(st.none() | pixels)
    return Limits(draw(st.integers(1, 20)), tiling, dtype), tile_limit, height, width, stride, unit


@settings(deadline=None, max_examples=300)
@given(reduction_requests())
def test_repeated_reduction_ends_with_the_smallest_tile(request):
    limits, tile_limit, height, width, stride, unit = request

    def tile_area(tiling: Tiling, tile_limit: int | None) -> int:
        plan = tiling.plan(height, width, stride, unit, tile_limit)
        return plan.tile_height * plan.tile_width

    area = tile_area(limits.tiling, tile_limit)
    most_steps = math.log2(limits.batch) + math.log2(area) + 1
    steps = 0
    while (reduction := next_lower_limits(limits, tile_limit, height, width, stride, unit)) is not None:
        steps += 1
        assert steps <= most_steps
        lower, lower_area = reduction.limits, tile_area(reduction.limits.tiling, reduction.tile_limit)
        if limits.batch > 1:
            assert (lower.batch, lower.tiling, lower_area) == (limits.batch // 2, limits.tiling, area)
        else:
            assert (lower.batch, lower_area < area) == (1, True)
        assert (lower.dtype, lower.tiling.overlap) == (limits.dtype, limits.tiling.overlap)
        assert lower.tiling.map_share == limits.tiling.map_share
        assert (reduction.warning is None) == (lower == limits)
        limits, tile_limit, area = lower, reduction.tile_limit, lower_area
    assert limits.batch == 1
    assert area == tile_area(Tiling(None, 1, limits.tiling.overlap), None)


# Smaller batches and tiles


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("most_images", [1, 2, 3])
@pytest.mark.usefixtures("works_ahead")
def test_batches_shrink_when_memory_runs_out(most_images, error):
    photos = [random_photo(*size, seed) for seed, size in enumerate(PHOTO_SIZES)]
    predictor = make_predictor(LimitedRedness(most_images, error=error), TILED, batch=8)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert predictor.limits.batch == (2 if most_images == 3 else most_images)
    assert predictor.warnings == [
        f"out of memory: going on with batches of {batch}"
        for batch in (4, 2, 1)
        if batch >= predictor.limits.batch
    ]
    assert predictor.limits.tiling == TILED


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("most_pixels", [1000, 300, 64])
@pytest.mark.parametrize("tiling", [TILED, WHOLE, Tiling(None, 32 * 32, 4)], ids=["size", "whole", "auto"])
def test_tiles_shrink_when_memory_runs_out(tiling, most_pixels, error):
    tiling = Tiling(tiling.tile, tiling.most_pixels, 4)
    photos = [random_photo(*size, seed) for seed, size in enumerate(PHOTO_SIZES)]
    predictor = make_predictor(LimitedRedness(most_pixels=most_pixels, error=error), tiling, batch=2)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert predictor.limits.batch == 1
    assert predictor.warnings[0] == "out of memory: going on with batches of 1"
    assert "going on with tiles of at most" in predictor.warnings[-1]
    # Tiles are halved no more often than needed.
    assert (
        predictor.limits.tiling.most_pixels <= most_pixels
        or predictor.limits.tiling.most_pixels < 2 * most_pixels
    )
    assert predictor.limits.tiling.most_pixels > most_pixels // 4


@pytest.mark.usefixtures("works_ahead")
def test_tiles_that_shrink_for_a_large_photo_suit_small_ones():
    shapes = []

    class RecordingNetwork(LimitedRedness):
        def padded_logits(self, images: Tensor) -> Tensor:
            shapes.append(tuple(images.shape[2:]))
            return super().padded_logits(images)

    small, large = random_photo(60, 60), random_photo(400, 400)
    network = RecordingNetwork(most_pixels=3600)
    predictor = make_predictor(network, Tiling(None, 90_000, 16, map_share=0.5))
    assert_red_masks(predictor.predict([large, small]), [large, small])
    assert shapes[-1] == (60, 60)
    assert 80_000 < predictor.limits.tiling.most_pixels < 90_000
    assert predictor.warnings[-1].endswith(f"tiles of at most {predictor.limits.tiling.most_pixels} pixels")


# Memory that runs out costs no photo


@pytest.mark.parametrize("call", range(12))
@pytest.mark.usefixtures("works_ahead")
def test_out_of_memory_at_one_network_call_costs_no_photo(call):
    calls = []

    class FailingOnce(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            calls.append(images.shape)
            if len(calls) == call + 1:
                raise torch.OutOfMemoryError(GPU_TEXT)
            return super().padded_logits(images)

    photos = [random_photo(*size, seed) for seed, size in enumerate([(40, 40), (40, 40), (20, 50), (40, 40)])]
    predictor = make_predictor(FailingOnce(), TILED, batch=1)
    assert_red_masks(predictor.predict(photos), photos)
    assert len(predictor.warnings) == 1


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.long)], ids=["every fifth", "each"])
@pytest.mark.parametrize("tiling", [WHOLE, Tiling((16, 16), 0, 4)], ids=["whole", "tiles"])
@pytest.mark.usefixtures("works_ahead")
def test_out_of_memory_at_one_operation_costs_no_photo(tiling, step, count_faults):
    # In bfloat16, with the check against float32, and with one photo that is run again in float32.
    photos = [photo_of_reds([50, 200], 0), photo_of_reds([50, 200, 250], 1), photo_of_reds([50, 200], 2)]

    def predict(at):
        network, memory = WrongInBfloat16(NOT_FINITE["inf"], 0.9), ShortMemory(at)
        predictor = make_predictor(network, tiling, torch.bfloat16, batch=2)
        return predict_with(memory, predictor, photos), memory.count, predictor.limits.dtype

    _, operations, dtype = predict(None)
    assert (operations > 150, dtype) == (True, torch.bfloat16)
    tried = range(1, operations + 1, step)
    for at in tried:
        results, _, _ = predict(at)
        assert_red_masks(results, photos)
    count_faults("out of memory at one operation of torch costs no photo", len(tried))


STEPS = {
    "load": (NetworkRunner, "load"),
    "run": (NetworkRunner, "run"),
    "blend": (Canvas, "blend"),
    "download": (NetworkRunner, "download"),
    "read": (NetworkRunner, "read"),
}


@pytest.mark.usefixtures("works_ahead")
@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("most_images", "most_pixels"), [(3, 10**9), (1, 10**9), (8, 300), (1, 64)])
@pytest.mark.parametrize("step", STEPS)
def test_too_little_memory_at_any_step_costs_no_photo(
    step, most_images, most_pixels, dtype, error, monkeypatch, count_faults
):
    owner, name = STEPS[step]
    method, run = getattr(owner, name), NetworkRunner.run
    faults, plan, batch = 0, None, 8

    def recording_run(runner, windows, its_batch):
        nonlocal plan, batch
        plan, batch = windows[0].canvas.plan, its_batch
        return run(runner, windows, its_batch)

    def limited(self, *arguments):
        nonlocal faults, plan, batch
        if step == "load":
            plan, batch = arguments[1], predictor.limits.batch
        elif step == "run":
            plan, batch = arguments[0][0].canvas.plan, arguments[1]
        if batch > most_images or plan.tile_height * plan.tile_width > most_pixels:
            faults += 1
            raise error
        return method(self, *arguments)

    monkeypatch.setattr(NetworkRunner, "run", recording_run)
    monkeypatch.setattr(owner, name, limited)
    photos = [photo_of_reds([50, 200] if seed % 3 else [50, 200, 250], seed) for seed in range(7)]
    # Photos with 250 are not finite in bfloat16 and are run again in float32.
    network = WrongInBfloat16(NOT_FINITE["inf"], 0.9)
    predictor = make_predictor(network, TILED, dtype, batch=8)
    with time_limit(60):
        assert_red_masks(predictor.predict(photos), photos)
    assert 0 < faults < 40
    assert predictor.limits.batch == (1 if most_pixels < 10**9 else 2 if most_images == 3 else most_images)
    assert len(set(predictor.warnings)) == len(predictor.warnings) > 0
    count_faults("out of memory above a batch or tile costs no photo", faults)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("megabytes", [4, 2, 1])
def test_devices_with_little_memory_give_the_same_masks(megabytes, batch, count_faults):
    network = make_small_network()
    photos = [random_photo(*size, seed) for seed, size in enumerate([(120, 160), (160, 121), (120, 160)] * 2)]
    probabilities = {photo.ref.key: probabilities_of_whole_photo(network, photo) for photo in photos}
    predictor = make_predictor(network, Tiling(None, 10**9, 44), batch=batch)
    memory = ShortMemory(most_bytes=megabytes * 10**6)
    results = predict_with(memory, predictor, photos)
    assert_masks_match(results, probabilities)
    assert (predictor.warnings != []) == (batch == 4 or megabytes < 2)
    # The reduced limits suffice for all later photos.
    before = list(predictor.warnings)
    assert_masks_match(predict_with(memory, predictor, photos), probabilities)
    assert predictor.warnings == before
    count_faults("out of memory on a device with few bytes costs no photo", memory.faults)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_of_memory_while_a_mask_is_enlarged(dtype):
    photo = random_photo(90, 140)
    model = make_model(make_small_network(), size=(96, 64))
    expected = predict_one(make_predictor(model, WHOLE, dtype), photo).mask.to_bool()
    faults = 0
    for at in range(1, 200, 3):
        predictor, memory = make_predictor(model, Tiling(None, 10**6, 44), dtype), ShortMemory(at)
        (result,) = predict_with(memory, predictor, [photo])
        assert (result.mask.to_bool() != expected).mean() < 0.02
        faults += memory.faults
    assert faults > 20


@pytest.mark.usefixtures("works_ahead")
def test_the_smallest_tiles_are_tried_twice():
    # Memory may have been short for a moment only.
    photos = [random_photo(9, 9, seed) for seed in range(3)]
    for at in range(1, 60):
        predictor = make_predictor(Redness(), Tiling(None, 10**6, 16))
        assert_red_masks(predict_with(ShortMemory(at), predictor, photos), photos)
        assert predictor.warnings == []


def test_out_of_memory_does_not_skip_the_precision_check():
    photos = [random_photo(9, 9, seed) for seed in range(3)]
    for at in range(1, 20):
        network = WrongInBfloat16(lambda logits: -logits)
        predictor = make_predictor(network, Tiling(None, 10**6, 16), torch.bfloat16)
        assert_red_masks(predict_with(ShortMemory(at), predictor, photos), photos)
        assert predictor.limits.dtype == torch.float32


# Memory that is freed


def test_failed_attempts_are_freed_before_the_next():
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


def test_masks_are_freed_on_the_device_before_they_are_written():
    photo = random_photo(300, 300)
    with ShortMemory() as memory:
        for _ in make_predictor(Redness(), Tiling(None, 5000, 8)).predict([photo]):
            assert memory.live < 3 * 300 * 300 + 2 * 4 * 5000 + 1000  # the photo and a tile or two


# Photos that do not fit


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.usefixtures("works_ahead")
def test_a_photo_too_large_for_memory_is_the_only_failure(batch, count_faults):
    photos = [random_photo(60, 60, seed) for seed in range(6)]
    oversized = [random_photo(600, 500, seed) for seed in range(2)]
    predictor = make_predictor(Redness(), Tiling(None, 3600, 16), batch=batch)
    tiling = predictor.limits.tiling
    # The pixels and maps of an oversized photo alone take 2.1 MB.
    stream = [*photos[:2], oversized[0], *photos[2:5], oversized[1], photos[5]]
    memory = ShortMemory(most_bytes=10**6)
    with time_limit(60):
        results = predict_with(memory, predictor, stream)
    failures = [result for result in results if isinstance(result, Failure)]
    assert [failure.id for failure in failures] == [photo.ref.key for photo in oversized]
    for failure in failures:
        assert failure.stage == "predict"
        assert "500x600 pixels do not fit into the memory of cpu" in failure.reason
        assert "make the photo smaller" in failure.reason
        assert GPU_TEXT in failure.reason
    assert_red_masks(predictions_of(results), photos)
    assert (predictor.limits.batch, predictor.limits.tiling, predictor.warnings) == (batch, tiling, [])
    with ShortMemory(most_bytes=10**6), pytest.raises(CarvanaBatchError, match="do not fit into the memory"):
        predictor.mask(oversized[0].pixels)
    count_faults("out of memory for the maps of a photo costs no other", memory.faults)


def test_only_the_reductions_for_a_failed_photo_are_undone():
    photos, oversized = [random_photo(60, 60, seed) for seed in range(2)], random_photo(600, 500)
    predictor = make_predictor(LimitedRedness(most_pixels=2000), Tiling(None, 3600, 16))
    stream = [photos[0], oversized, photos[1]]
    results = predict_with(ShortMemory(most_bytes=10**6), predictor, stream)
    assert_red_masks(predictions_of(results), photos)
    assert predictor.limits.tiling == Tiling(None, 1800, 16)
    assert predictor.warnings == ["out of memory: going on with tiles of at most 1800 pixels"]


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("tiling", [TILED, WHOLE, Tiling(None, 32 * 32, 256)], ids=["size", "whole", "auto"])
def test_memory_that_never_suffices_is_an_error_with_advice(tiling, batch, error):
    photos = [random_photo(*size, seed) for seed, size in enumerate(PHOTO_SIZES)]
    predictor = make_predictor(LimitedRedness(most_pixels=0, error=error), tiling, batch=batch)
    with time_limit(60), pytest.raises(CarvanaBatchError) as caught:
        list(predictor.predict(photos))
    assert re.match(r".*64x64_0.jpg: not enough memory on cpu .* --overlap", str(caught.value))
    assert (str(error) or "MemoryError") in str(caught.value)  # in case the cause was another


@pytest.mark.parametrize("error", [RuntimeError("another shape"), ValueError("x"), KeyError("out of memory")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    predictor = make_predictor(LimitedRedness(most_images=0, error=error), TILED, batch=4)
    with pytest.raises(type(error)) as caught:
        list(predictor.predict([random_photo(64, 64)]))
    assert str(caught.value) == str(error)
    assert predictor.warnings == []


# Reports of changed limits


class Recorder:
    """Records the limits that a predictor reports, and its results, in the order in which they come."""

    def __init__(self, network, tiling: Tiling, dtype=torch.float32, batch: int = 1) -> None:
        self.events: list[Limits | Prediction | Failure] = []
        self.predictor = make_predictor(network, tiling, dtype, batch=batch, on_change=self.record_change)

    def record_change(self, limits: Limits) -> None:
        assert limits == self.predictor.limits
        self.events.append(limits)

    def predict(self, photos, memory: ShortMemory | None = None) -> None:
        with memory or ShortMemory():
            for result in self.predictor.predict(photos):
                self.events.append(result)

    @property
    def changes(self) -> list[Limits]:
        return [event for event in self.events if isinstance(event, Limits)]


@pytest.mark.usefixtures("works_ahead")
def test_unchanged_limits_are_not_reported():
    photos = [random_photo(64, 64, seed) for seed in range(3)]
    recorder = Recorder(Redness(), TILED, torch.bfloat16, batch=4)
    recorder.predict(photos)
    assert recorder.changes == []
    assert_red_masks(recorder.events, photos)


@pytest.mark.usefixtures("works_ahead")
def test_a_smaller_batch_is_reported_once_before_a_result():
    photos = [random_photo(64, 64, seed) for seed in range(5)]
    recorder = Recorder(LimitedRedness(most_images=2), TILED, batch=8)
    recorder.predict(photos)
    assert recorder.events[0] == Limits(2, TILED, torch.float32)  # not the 4 that were tried before
    assert recorder.changes == recorder.events[:1]
    assert_red_masks(recorder.events[1:], photos)
    recorder.predict(photos)
    assert len(recorder.changes) == 1


@pytest.mark.usefixtures("works_ahead")
def test_smaller_tiles_are_reported_with_the_photo_needing_them():
    small, large = random_photo(40, 40), random_photo(60, 60)
    recorder = Recorder(LimitedRedness(most_pixels=2000), Tiling(None, 3600, 16))
    recorder.predict([small, large, small])
    first, change, *rest = recorder.events
    assert first.photo is small
    assert change == Limits(1, Tiling(None, 1800, 16), torch.float32)
    assert [result.photo for result in rest] == [large, small]


def test_a_change_to_float32_is_reported():
    photos = [random_photo(20, 24, seed) for seed in range(3)]
    recorder = Recorder(WrongInBfloat16(lambda logits: -logits), TILED, torch.bfloat16, batch=4)
    recorder.predict(photos)
    assert recorder.events[0] == Limits(2, TILED, torch.float32)
    assert_red_masks(recorder.events[1:], photos)


@pytest.mark.usefixtures("works_ahead")
def test_reductions_that_are_undone_are_not_reported():
    used = set()

    class RecordingNetwork(Redness):
        def padded_logits(self, images: Tensor) -> Tensor:
            used.add(recorder.predictor.limits.tiling.most_pixels)
            return super().padded_logits(images)

    tiling = Tiling(None, 3600, 16)
    photos, oversized = [random_photo(60, 60, seed) for seed in range(2)], random_photo(600, 500)
    recorder = Recorder(RecordingNetwork(), tiling)
    recorder.predict([photos[0], oversized, photos[1]], ShortMemory(most_bytes=10**6))
    assert [isinstance(event, Failure) for event in recorder.events] == [False, True, False]
    assert recorder.changes == []
    assert recorder.predictor.limits.tiling == tiling
    assert min(used) < 3600  # lower limits were tried for the oversized photo
