import copy
import os
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from short_memory import ShortMemory

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference import runner
from carvana_batch.inference.devices import describe_hardware
from carvana_batch.inference.planning import default_workers, describe_choice, make_predictor
from carvana_batch.inference.recovery import Limits
from carvana_batch.inference.runner import MaskOptions
from carvana_batch.inference.tiles import Tiling
from carvana_batch.network.model import Model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.options import Choice, Options

CPU = torch.device("cpu")
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def model() -> Model:
    network = SegUNet((16, 32), center=32, decoder_convolutions=1).eval()
    return Model("test", network, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "digest")


def plan(model, chosen=None, **options):
    """The predictor for the options; ``chosen`` is the stored choice of an earlier run."""
    arguments: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "memory": 500 * MEGABYTE,
        "overlap": 64,
        **options,
    }
    earlier = None if chosen is None else Choice.from_json(chosen)
    return make_predictor(model, Options(**arguments), earlier)[0]


def choice_of(predictor):
    return asdict(describe_choice(predictor.device, predictor.limits))


@pytest.mark.parametrize(("cores", "on_cpu", "on_gpu"), [(1, 1, 1), (2, 1, 2), (16, 4, 8), (None, 1, 1)])
def test_default_workers(monkeypatch, cores, on_cpu, on_gpu):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert default_workers(CPU, 100) == on_cpu
    assert default_workers(torch.device("cuda"), 100) == on_gpu
    assert default_workers(torch.device("cuda"), 3) == 1


# Tiles and memory


def activation_bytes(network, height: int, width: int, dtype: torch.dtype) -> int:
    """The peak size of the tensors inside the network, measured on the meta device without computing them."""
    on_meta = copy.deepcopy(network).to(device="meta", dtype=dtype).eval()
    with torch.no_grad(), ShortMemory() as memory:
        on_meta(torch.empty((1, 3, height, width), device="meta", dtype=dtype))
    return memory.peak


def required_bytes(model: Model, predictor, height: int, width: int) -> int:
    """Bytes for a batch of tiles of a photo of this size: activations, weights and maps.

    The maps are the photo itself and its probabilities, if it is cut into tiles of automatic size.
    """
    network = predictor.model.network
    tiles = predictor.limits.tiling.plan(height, width, network.stride, network.unit)
    activations = activation_bytes(network, tiles.tile_height, tiles.tile_width, predictor.limits.dtype)
    weights = sum(parameter.numel() * 4 for parameter in model.network.parameters())
    maps = height * width * (3 + 4) if tiles.tile_count > 1 and predictor.limits.tiling.tile is None else 0
    return predictor.limits.batch * activations + weights + maps


@pytest.mark.parametrize("size", [(1280, 1918), (2000, 2500), (200, 25_000), (25_000, 200)])
@pytest.mark.parametrize(("precision", "batch"), [("fp32", None), ("bf16", None), ("fp32", 4)])
def test_tiles_shrink_with_the_memory_and_fit_into_it(model, size, precision, batch):
    tile_pixels, tile_counts = [], []
    for megabytes in (10_000, 2000, 600, 400, 200):
        predictor = plan(model, memory=megabytes * MEGABYTE, precision=precision, batch=batch)
        assert predictor.limits.batch == (batch or 1)
        assert required_bytes(model, predictor, *size) <= megabytes * MEGABYTE
        network = predictor.model.network
        tiles = predictor.limits.tiling.plan(*size, network.stride, network.unit)
        tile_pixels.append(tiles.tile_height * tiles.tile_width)
        tile_counts.append(tiles.tile_count)
    assert tile_counts == sorted(tile_counts)
    assert tile_pixels == sorted(tile_pixels, reverse=True)
    assert tile_counts[0] == 1 or size != (1280, 1918)
    assert tile_counts[-1] > 4


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("megapixels", [5, 25, 50, 100, 200])
def test_the_maps_of_large_photos_fit_into_the_memory(model, megapixels, precision, batch):
    width = round((megapixels * MEGABYTE * 1.5) ** 0.5)
    predictor = plan(model, memory=2000 * MEGABYTE, precision=precision, batch=batch)
    assert required_bytes(model, predictor, width * 2 // 3, width) <= 2000 * MEGABYTE


def test_tiles_stay_sensible_if_maps_exceed_the_memory(model):
    predictor = plan(model, memory=200 * MEGABYTE)
    tiles = predictor.limits.tiling.plan(10_000, 10_000, 4, 1)  # the maps take 700 MB
    assert 400**2 < tiles.tile_height * tiles.tile_width <= 512**2
    assert required_bytes(model, predictor, 10_000, 10_000) < 900 * MEGABYTE


def test_weights_that_do_not_fit_are_an_error_with_advice(model, monkeypatch):
    def run_out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(runner, "prepare_network", run_out_of_memory)
    with pytest.raises(CarvanaBatchError, match=r"weights of test; .*--device cpu \(CUDA out of memory"):
        plan(model)


def test_the_weights_of_a_second_network_count_as_those_of_the_first(model):
    once, more = (plan(model, memory=size).limits.tiling.most_pixels for size in (10**9, 2 * 10**9))
    pixels_per_weights = more - 2 * once
    assert pixels_per_weights > 0
    pair = replace(model, second=model)
    both = plan(pair, memory=10**9).limits.tiling.most_pixels
    assert both == pytest.approx(once - pixels_per_weights, abs=3)


def test_half_precision_allows_larger_tiles(model):
    in_half = plan(model, precision="bf16").limits.tiling.most_pixels
    assert 1.3 * plan(model, precision="fp32").limits.tiling.most_pixels < in_half


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_tiles_too_large_for_the_memory_are_rejected(model, batch):
    def fits(side: int) -> bool:
        try:
            predictor = plan(model, memory=300 * MEGABYTE, tile=(side, 512), batch=batch)
        except UsageError as error:
            assert f"--tile {side}x512" in str(error)
            assert "0.30 GB (--memory)" in str(error)
            return False
        assert required_bytes(model, predictor, 5000, 5000) <= 300 * MEGABYTE
        return True

    answers = [fits(side) for side in range(256, 2400, 256)]
    assert answers[0]
    assert not answers[-1]
    assert answers == sorted(answers, reverse=True)
    # Tiles are not rejected long before memory would run out.
    largest = 256 * sum(answers)
    activations = activation_bytes(model.network, 512, largest, torch.float32)
    assert (batch or 1) * activations > 100 * MEGABYTE


def test_tiles_count_with_their_padding(model):
    # 1 x 1 is padded to 4 x 4, and a thousand of these do not fit.
    with pytest.raises(UsageError, match="1000 such tiles"):
        plan(model, memory=5 * MEGABYTE, tile=(1, 1), batch=1000, overlap=0)


@pytest.mark.parametrize(("options", "words"), [({}, "one tile"), ({"batch": 50}, "50 tiles at a time")])
def test_too_little_memory_for_the_smallest_tile_is_rejected(model, options, words):
    with pytest.raises(UsageError, match=f"--memory: 0.002 GB .*{words}.* --overlap 64 "):
        plan(model, memory=2 * MEGABYTE, **options)
    plan(model, memory=2 * MEGABYTE, overlap=0)


def test_an_overlap_without_room_for_a_step_is_rejected(model):
    for tile in ((64, 128), (128, 64)):
        with pytest.raises(
            UsageError, match=r"--overlap 64 is too much for tiles of 64 .* Give --tile \d+ at least"
        ):
            plan(model, tile=tile, overlap=64)
        plan(model, tile=tile, overlap=56)


# Options and choices


def test_options_reach_the_predictor(model):
    predictor = plan(model, threshold=0.3, flip=True, extras=("prob", "overlay"), tile=(128, 64), overlap=16)
    assert predictor.options == MaskOptions(0.3, True, True)
    assert (predictor.limits.tiling.tile, predictor.limits.tiling.overlap) == ((128, 64), 16)
    assert (predictor.device, predictor.limits.dtype) == (CPU, torch.float32)
    assert not plan(model, extras=("overlay",)).options.keep_probability


def test_the_choice_of_the_first_run_is_used_again(model):
    # No option would choose fp16 with a batch of 3 on a CPU.
    chosen = {"device": "cpu", "precision": "fp16", "batch": 3, "tile": False, "most_pixels": 123_456}
    chosen["map_share"] = 0.0123
    for memory in (60 * MEGABYTE, 6000 * MEGABYTE):
        predictor = plan(model, chosen, precision="auto", memory=memory)
        assert predictor.limits.dtype == torch.float16
        assert predictor.limits.batch == 3
        assert predictor.limits.tiling == Tiling(None, 123_456, 64, 0.0123)
        assert choice_of(predictor).items() >= chosen.items()


def test_the_choice_contains_the_reduced_limits(model):
    predictor = plan(model, batch=4)
    assert choice_of(predictor)["precision"] == "fp32"
    assert choice_of(predictor)["batch"] == 4
    predictor.limits = Limits(2, Tiling(None, 777, 64, 0.1), torch.float16)
    assert choice_of(predictor) == {
        "device": "cpu",
        "precision": "fp16",
        "batch": 2,
        "tile": False,
        "most_pixels": 777,
        "map_share": 0.1,
        "threads": torch.get_num_threads(),
        "hardware": describe_hardware(CPU),
        "torch": str(torch.__version__),
    }


def test_a_fixed_tile_given_up_earlier_is_not_used_again(model):
    chosen = {"device": "cpu", "precision": "fp32", "batch": 1, "tile": False, "most_pixels": 64**2}
    assert plan(model, chosen, tile=(128, 128)).limits.tiling.tile is None
    assert plan(model, chosen | {"tile": True}, tile=(128, 128)).limits.tiling.tile == (128, 128)


def test_an_automatic_device_is_that_of_the_first_run(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = {"device": "cpu", "precision": "fp32", "batch": 1, "tile": False, "most_pixels": 64**2}
    assert plan(model, chosen, device="auto").device.type == "cpu"


def test_a_run_is_resumed_on_its_kind_of_device_only(model):
    with pytest.raises(UsageError, match=r"began on cuda.*--device cuda"):
        plan(model, {"device": "cuda", "precision": "fp16", "batch": 8, "most_pixels": 10**6})


@pytest.mark.parametrize(
    "wrong", [{"precision": "fp12"}, {"batch": "2"}, {"most_pixels": None}, {"other": 1}]
)
def test_damaged_choices_of_an_earlier_run_are_rejected(model, wrong):
    with pytest.raises(UsageError, match=f"are damaged .{next(iter(wrong))}: .*--overwrite"):
        plan(model, choice_of(plan(model, precision="fp32")) | wrong)


def test_a_job_keeps_its_number_of_threads(model):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        chosen = choice_of(plan(model))
        torch.set_num_threads(1)
        predictor = plan(model, chosen)
        assert (chosen["threads"], torch.get_num_threads(), predictor.warnings) == (2, 2, [])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["hardware", "torch"])
def test_other_hardware_or_torch_is_reported_on_resume(model, name):
    chosen = choice_of(plan(model)) | {name: "another"}
    predictor = plan(model, chosen)
    (warning,) = predictor.warnings
    assert f"began with {name} another, and goes on with " in warning
    earlier = Choice.from_json(chosen)
    assert describe_choice(predictor.device, predictor.limits, earlier) == earlier


def test_choices_without_a_map_share_give_the_same_tiles(model):
    # Runs of early versions, in which maps did not count, did not store it.
    chosen = choice_of(plan(model, precision="fp32"))
    del chosen["map_share"]
    assert plan(model, chosen).limits.tiling.map_share == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_line_about_the_run_contains_the_choice(model, precision):
    options = Options(device="cpu", precision=precision, memory=1500 * MEGABYTE)
    predictor, line = make_predictor(model, options)
    assert f"{torch.get_num_threads()} CPU thread" in line
    assert f"{precision} (as asked)" in line
    assert "1.5 GB" in line
    earlier = describe_choice(predictor.device, predictor.limits)
    assert "first run" in make_predictor(model, options, earlier)[1]
