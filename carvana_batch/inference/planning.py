"""From options to a predictor: device, precision, and tiles and batches that fit the memory."""

from __future__ import annotations

import os
from typing import Any

import torch

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference.devices import _device_name, pick_device
from carvana_batch.inference.memory import OutOfMemoryGuard, memory_budget
from carvana_batch.inference.precision import PRECISIONS, choose_precision
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inference.tiles import Tiling, plan_tiles, round_up
from carvana_batch.network.activations import activations_per_pixel
from carvana_batch.network.blocks import Convolution
from carvana_batch.network.checkpoints import Model
from carvana_batch.options import Options

WORKSPACE = 1.3
"""Memory of a tile relative to its tensors: convolution libraries keep work space beside them."""


FLOAT32_MAPS = 7
"""float32 numbers a pixel beside the activations: normalised input, logits, probabilities, accumulator."""

PHOTO_BYTES = 3 + 4
"""Bytes a pixel of a photo that is cut into tiles: uint8 pixels, and the float32 map that tiles add up to."""

CHOSEN = {
    "device": str,
    "precision": str,
    "batch": int,
    "tile": bool,
    "most_pixels": int,
    "map_share": float,
}
"""What :func:`describe_choice` tells."""

TYPICAL_PIXELS = 1920 * 1280

LARGEST_GPU_BATCH = 8


def make_predictor(model: Model, options: Options, chosen: dict[str, Any]) -> tuple[Predictor, str]:
    """The predictor for the options, and one line that says how it runs.

    Args:
        chosen: what an earlier run of the same job came to (see :func:`describe_choice`), or empty.

    Raises:
        UsageError: a device that is not there, or tiles that the memory does not allow.
        CarvanaBatchError: the memory does not even suffice for the weights.
    """
    with OutOfMemoryGuard() as guard:
        return _make_predictor(model, options, chosen)
    raise CarvanaBatchError(
        f"not enough memory for the weights of {model.name}; close other programs or use --device cpu"
        f" ({guard.error})"
    )


def _make_predictor(model: Model, options: Options, chosen: dict[str, Any]) -> tuple[Predictor, str]:
    for name, value in chosen.items():
        if type(value) is not CHOSEN.get(name) or (name == "precision" and value not in PRECISIONS):
            raise UsageError(
                f"the settings of the earlier run are damaged ({name}: {value!r}); use --overwrite to start"
                " afresh, or another OUT"
            )
    began_on_auto = options.device == "auto" and "device" in chosen
    device = pick_device(chosen["device"] if began_on_auto else options.device)
    if chosen.get("device", device.type) != device.type:
        raise UsageError(
            f"this job began on {chosen['device']}, and its masks would not come out quite the same on"
            f" {device.type}; go on with --device {chosen['device']}, or use --overwrite or another OUT"
        )
    precision = chosen.get("precision", options.precision)
    if precision == "auto":
        dtype, why = choose_precision(model.network, device)
    else:
        dtype = PRECISIONS[precision]
        why = f"{precision} ({'chosen by the first run of this job' if chosen else 'as asked'})"
    budget = memory_budget(device, options.memory)
    pixel_bytes = _bytes_of_a_pixel(model, dtype)
    affordable = _affordable_pixels(model, pixel_bytes, budget)
    _refuse_too_large(options, model.network.stride, affordable, budget)
    tile_pixels = TYPICAL_PIXELS if options.tile is None else options.tile[0] * options.tile[1]
    most = 1 if device.type == "cpu" else LARGEST_GPU_BATCH
    batch = chosen.get("batch") or options.batch or max(1, min(most, affordable // tile_pixels))
    tile = options.tile if chosen.get("tile", True) else None
    tiling = Tiling(
        tile,
        chosen.get("most_pixels") or affordable // batch,
        options.overlap,
        chosen.get("map_share", 0.0 if chosen else PHOTO_BYTES / pixel_bytes / batch),
    )
    predictor = Predictor(
        model,
        device,
        dtype,
        tiling,
        batch=batch,
        threshold=options.threshold,
        flip=options.flip,
        keep_probability="prob" in options.extras,
    )
    return predictor, f"{_device_name(device)}, {why}, up to {budget / 1e9:.1f} GB"


def describe_choice(predictor: Predictor) -> dict[str, Any]:
    """What a later run of the same job has to reuse so that its masks come out the same.

    ``tile`` says whether tiles have the size that was asked for: they give way when memory runs out.
    """
    precision = next(name for name, dtype in PRECISIONS.items() if dtype == predictor.dtype)
    return {
        "device": predictor.device.type,
        "precision": precision,
        "batch": predictor.batch,
        "tile": predictor.tiling.tile is not None,
        "most_pixels": predictor.tiling.most_pixels,
        "map_share": predictor.tiling.map_share,
    }


def default_workers(device: torch.device, photos: int) -> int:
    """Processes that decode: one for two cores beside a CPU's network, more beside a GPU, one for few photos.

    Never none: a photo that crashes the decoder would take the run along.
    """
    cores = os.cpu_count() or 1
    if photos < 4:
        return 1
    return max(1, min(cores // 2, 4)) if device.type == "cpu" else min(cores, 8)


def _bytes_of_a_pixel(model: Model, dtype: torch.dtype) -> float:
    """What each pixel of a tile takes while it is in the network."""
    return activations_per_pixel(model.network) * dtype.itemsize * WORKSPACE + FLOAT32_MAPS * 4


def _affordable_pixels(model: Model, pixel_bytes: float, budget: int) -> int:
    """Pixels of the tiles of one batch that fit the budget beside the weights, at least one smallest tile."""
    weights = 2 * sum(parameter.numel() for parameter in model.network.parameters())
    for module in model.network.modules():
        if isinstance(module, Convolution):  # those of a transposed convolution beside its own
            weights += 16 * module.coarse * module.out_channels
    return max(model.network.stride**2, int((budget - 4 * weights) / pixel_bytes))


def _refuse_too_large(options: Options, stride: int, affordable: int, budget: int) -> None:
    """Raise UsageError where what was asked for can never be kept to, whatever the photos are like."""
    batch = options.batch or 1
    if options.tile is not None:
        width, height = (round_up(side, stride) for side in options.tile)
        # Raises where the overlap is too much, before the first photo that is larger than the tile does.
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
