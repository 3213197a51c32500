"""From options to a predictor: device, precision, and tiles and batches that fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference.checked import CheckedPredictor
from carvana_batch.inference.devices import (
    describe_hardware,
    device_name,
    pick_device,
    single_thread_on_small_cpus,
)
from carvana_batch.inference.memory import OutOfMemoryGuard, memory_budget
from carvana_batch.inference.precision import PRECISIONS, choose_precision, precision_name, why_not
from carvana_batch.inference.predictor import AnyPredictor, Predictor
from carvana_batch.inference.recovery import Limits
from carvana_batch.inference.runner import MaskOptions
from carvana_batch.inference.tiles import Tiling, plan_tiles, round_up
from carvana_batch.network.activations import activations_per_pixel
from carvana_batch.network.blocks import Convolution
from carvana_batch.network.model import Model
from carvana_batch.options import PROBABILITY_EXTRAS, Choice, Options, damaged_choice, describe_size

WORKSPACE = 1.3
"""Memory of a tile relative to that of its tensors: convolution libraries need work space in addition."""


FLOAT32_MAPS = 7
"""float32 values per pixel in addition to the activations: input, logits, probabilities, accumulator."""

PHOTO_BYTES = 3 + 4
"""Bytes per pixel of a photo that is cut into tiles: its uint8 RGB, and the float32 map of its tiles."""

TYPICAL_PIXELS = 1920 * 1280

LARGEST_GPU_BATCH = 8


def make_predictor(
    model: Model,
    options: Options,
    earlier: Choice | None = None,
    on_change: Callable[[Choice], object] = lambda _: None,
) -> tuple[AnyPredictor, str]:
    """The predictor for the options, and one line that says how it runs.

    Args:
        model: what masks the photos.
        options: what was asked for.
        earlier: what an earlier run of the same job chose; its choices are made again.
        on_change: called with the new choice when the predictor has reduced its limits.

    Raises:
        UsageError: a device that is not there, or tiles that the memory does not allow.
        CarvanaBatchError: the memory does not even suffice for the weights.
    """
    with OutOfMemoryGuard() as guard:
        return _make_predictor(model, options, earlier, on_change)
    raise CarvanaBatchError(
        f"not enough memory for the weights of {model.name}; close other programs or use --device cpu"
        f" ({guard.error})"
    )


def _make_predictor(
    model: Model, options: Options, earlier: Choice | None, on_change: Callable[[Choice], object]
) -> tuple[AnyPredictor, str]:
    options = _with_fixed_tile(options, model.network.fixed_size)
    device = _choose_device(options, earlier)
    if earlier is not None and earlier.threads and device.type == "cpu":
        torch.set_num_threads(earlier.threads)
    budget = memory_budget(device, options.memory)
    # In small steps, in which several threads would wait for each other if the machine is busy otherwise.
    with single_thread_on_small_cpus(device):
        dtype, why = _choose_dtype(model, options, earlier, device)
        pixel_bytes = _bytes_of_a_pixel(model, dtype)
    affordable = _affordable_pixels(model, pixel_bytes, budget)
    _refuse_too_large(options, model.network.stride, affordable, budget)
    if earlier is not None:
        tile = options.tile if earlier.tile else None
        tiling = Tiling(tile, earlier.most_pixels, options.overlap, earlier.map_share)
        limits = Limits(earlier.batch, tiling, dtype)
    else:
        tile_pixels = TYPICAL_PIXELS if options.tile is None else options.tile[0] * options.tile[1]
        most = 1 if device.type == "cpu" else LARGEST_GPU_BATCH
        batch = options.batch or max(1, min(most, affordable // tile_pixels))
        map_share = PHOTO_BYTES / pixel_bytes / batch
        limits = Limits(batch, Tiling(options.tile, affordable // batch, options.overlap, map_share), dtype)
    keep_probability = not PROBABILITY_EXTRAS.isdisjoint(options.extras)
    mask_options = MaskOptions(options.threshold, options.flip, keep_probability, options.size)
    predictor: AnyPredictor
    predictor = first = Predictor(
        model,
        device,
        limits,
        mask_options,
        on_change=lambda limits: on_change(describe_choice(device, limits, earlier)),
    )
    if earlier is not None:
        predictor.warnings += _describe_differences(device, earlier)
    if model.second is not None:
        tiling = replace(limits.tiling, tile=None)
        second_options = replace(mask_options, keep_probability=True, size="native")
        second = Predictor(model.second, device, Limits(1, tiling, dtype), second_options)
        predictor = CheckedPredictor(first, second, options.threshold, keep_probability)
    return predictor, f"{device_name(device)}, {why}, network may use up to {budget / 1e9:.1f} GB"


def _with_fixed_tile(options: Options, fixed: tuple[int, int] | None) -> Options:
    """The options for a network that takes tiles of one size only, which then overlap by half at most."""
    if fixed is None:
        return options
    tile = fixed[1], fixed[0]
    if options.tile not in (None, tile):
        raise UsageError(
            f"--tile {describe_size(options.tile)}: this network takes images of {describe_size(tile)} only."
            " Leave out --tile."
        )
    return replace(options, tile=tile, overlap=min(options.overlap, min(tile) // 2))


def _choose_device(options: Options, earlier: Choice | None) -> torch.device:
    if earlier is None:
        return pick_device(options.device)
    device = pick_device(earlier.device if options.device == "auto" else options.device)
    if device.type != earlier.device:
        raise UsageError(
            f"this job began on {earlier.device}, and its masks would not come out quite the same on"
            f" {device.type}; go on with --device {earlier.device}, --overwrite all masks, or use another OUT"
        )
    return device


def _choose_dtype(
    model: Model, options: Options, earlier: Choice | None, device: torch.device
) -> tuple[torch.dtype, str]:
    """The number format of the network, and why."""
    if earlier is not None:
        if earlier.precision not in PRECISIONS:
            raise damaged_choice("precision", earlier.precision)
        return PRECISIONS[earlier.precision], f"{earlier.precision} (chosen by the first run of this job)"
    if options.precision == "auto":
        return choose_precision(model.network, device)
    dtype = PRECISIONS[options.precision]
    if reason := why_not(model.network, device, dtype):
        raise UsageError(f"--precision {options.precision}: {reason}. Give --precision fp32 or auto.")
    return dtype, f"{options.precision} (as asked)"


def _describe_differences(device: torch.device, earlier: Choice) -> list[str]:
    """A line for each thing that may change masks, and differs from the first run of the job."""
    now = {"hardware": describe_hardware(device), "torch": str(torch.__version__)}
    before = {"hardware": earlier.hardware, "torch": earlier.torch}
    return [
        f"this job began with {name} {before[name]}, and goes on with {now[name]}: masks may differ in some"
        " pixels from those of the first run"
        for name in now
        if before[name] and before[name] != now[name]
    ]


def describe_choice(device: torch.device, limits: Limits, earlier: Choice | None = None) -> Choice:
    """What a later run of the same job has to choose again so that its masks come out the same.

    Args:
        device: where the network runs.
        limits: how much it is given at a time, and in which number format.
        earlier: what the first run of the job chose, whose hardware and version of torch are kept.
    """
    tiling = limits.tiling
    if earlier is not None:
        threads, hardware, version = earlier.threads, earlier.hardware, earlier.torch
    else:
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        hardware, version = describe_hardware(device), str(torch.__version__)
    return Choice(
        device=device.type,
        precision=precision_name(limits.dtype),
        batch=limits.batch,
        tile=tiling.tile is not None,
        most_pixels=tiling.most_pixels,
        map_share=tiling.map_share,
        threads=threads,
        hardware=hardware,
        torch=version,
    )


def default_workers(device: torch.device, photos: int, cores: int | None = None) -> int:
    """Number of worker processes that decode, on ``cores`` cores or on all of the machine.

    One for every two cores if the network runs on the CPU, more if it runs on a GPU, one for few photos.
    Never 0, because a photo that crashes the decoder would then end the run.
    """
    cores = cores or os.cpu_count() or 1
    if photos < 4:
        return 1
    return max(1, min(cores // 2, 4)) if device.type == "cpu" else min(cores, 8)


def _bytes_of_a_pixel(model: Model, dtype: torch.dtype) -> float:
    """Memory that each pixel of a tile takes while it is in the network."""
    return activations_per_pixel(model.network) * dtype.itemsize * WORKSPACE + FLOAT32_MAPS * 4


def _affordable_pixels(model: Model, pixel_bytes: float, budget: int) -> int:
    """Pixels of all tiles of one batch that fit the budget beside the weights; at least one smallest tile."""
    networks = [model.network] if model.second is None else [model.network, model.second.network]
    weights = 0
    for network in networks:
        weights += 2 * sum(parameter.numel() for parameter in network.parameters())
        for module in network.modules():
            if isinstance(module, Convolution):  # a transposed convolution has weights of its own
                weights += 16 * module.coarse * module.out_channels
    return max(model.network.stride**2, int((budget - 4 * weights) / pixel_bytes))


def _refuse_too_large(options: Options, stride: int, affordable: int, budget: int) -> None:
    """Raise UsageError if tile, batch and memory cannot be combined, whatever the photos are like."""
    batch = options.batch or 1
    if options.tile is not None:
        width, height = (round_up(side, stride) for side in options.tile)
        # Raises if the overlap is too large for the tile, before the first photo that has to be cut does.
        plan_tiles(height + stride, width + stride, height, width, options.overlap, stride)
        if batch * height * width > affordable:
            tiles = "one such tile does" if batch == 1 else f"{batch} such tiles at a time (--batch) do"
            raise UsageError(
                f"--tile {options.tile[0]}x{options.tile[1]}: {tiles} not fit into"
                f" {budget / 1e9:.2f} GB (--memory); use smaller tiles or --tile auto"
            )
    elif options.memory is not None and batch * round_up(options.overlap + stride, stride) ** 2 > affordable:
        tiles = "one tile" if batch == 1 else f"{batch} tiles at a time (--batch)"
        raise UsageError(
            f"--memory: {budget / 1e9:.3f} GB are not enough for {tiles} of the smallest size that"
            f" --overlap {options.overlap} allows; give more memory or a smaller overlap"
        )
