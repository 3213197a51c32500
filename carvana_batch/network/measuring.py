"""What tiles have to know of a network, measured with noise: its stride, its context, its memory."""

from __future__ import annotations

import math
import threading

import psutil
import torch
from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.network.blocks import AnySizeNetwork

TRIAL_SIDE = 128
"""Pixels of the side of the images with which a network is tried."""

STRIDES = (1, 2, 4, 8, 16, 32, 64)
"""Strides that are looked for."""

CANVAS, PATCH = 256, 64
"""Sides in pixels of the image in which a patch of noise is shifted, and of the patch."""

SAME = 1e-3
"""Difference of logits, relative to their range, up to which they count as the same."""

MOST_LEAK = 0.05
"""The same for the largest stride, above which no stride is right."""


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """A normalised image (1, 3, height, width) of noise, coarse and fine, with mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn((1, 3, height, width), generator=generator)
    coarse = torch.randn((1, 3, -(-height // 16), -(-width // 16)), generator=generator)
    spread = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :height, :width]
    return (fine + spread) / math.sqrt(2)


@torch.inference_mode()
def measure_stride(network: AnySizeNetwork) -> int:
    """The smallest power of 2 by which an image can be shifted so that the logits are shifted alike.

    A patch of noise is shifted within a grey image, so that the border of the image changes nothing. The
    network must also take images whose sides are odd multiples of the stride. The network's own stride
    and unit must be 1.

    Raises:
        ModelError: there is none up to 64.
    """
    patch = noise(PATCH, PATCH)
    first = _logits_of_patch(network, patch, 0)
    extent = float(first.max() - first.min())
    if extent == 0:
        return 1

    def difference(shift: int) -> float:
        return float((_logits_of_patch(network, patch, shift) - first).abs().max()) / extent

    leak = difference(STRIDES[-1])  # what the border of the image contributes all the same
    if leak <= MOST_LEAK:
        for stride in STRIDES:
            if _takes_odd_multiples(network, stride) and difference(stride) <= max(SAME, 3 * leak):
                return stride
    raise ModelError(
        f"its logits do not move along with the image, by no power of 2 up to {STRIDES[-1]} pixels, so photos"
        " cannot be cut into tiles at will. Give --stride N if that is wrong, or, for a network of images of"
        ' one size, fixed-size = "WIDTHxHEIGHT" in model.toml'
    )


def _logits_of_patch(network: AnySizeNetwork, patch: Tensor, shift: int) -> Tensor:
    canvas = torch.zeros((1, 3, CANVAS, CANVAS))
    start = (CANVAS - PATCH) // 2 - PATCH // 2 + shift
    inside = (..., slice(start, start + PATCH), slice(start, start + PATCH))
    canvas[inside] = patch
    return network(canvas)[inside].float()


def _takes_odd_multiples(network: AnySizeNetwork, stride: int) -> bool:
    side = stride * (PATCH // stride | 1)
    try:
        network(torch.zeros((1, 3, side, side)))
    except Exception:  # noqa: BLE001 - code of others raises anything; larger strides are tried then
        return False
    return True


@torch.inference_mode()
def measure_context(network: AnySizeNetwork) -> float:
    """How many pixels away from a cut edge logits differ from those of the whole image; inf if all do.

    It is measured at an edge that is cut off an image of 256 pixels, on the stride of the network.
    """
    cut = max(network.stride, PATCH - PATCH % network.stride)
    side = CANVAS + -CANVAS % network.stride
    whole = network(noise(side, side + cut))[..., cut:].float()
    part = network(noise(side, side + cut)[..., cut:].contiguous()).float()
    extent = float(whole.max() - whole.min())
    differing = ((whole - part).abs().amax(dim=(0, 1, 2)) > SAME * extent).nonzero()
    if not len(differing):
        return 0
    context = int(differing[-1]) + 1
    return math.inf if context == side else context


def trial_values_per_pixel(network: AnySizeNetwork) -> float:
    """Memory that a pixel takes while the network runs, as a number of float32 values.

    The memory of the process is watched during a run in main memory, for networks of whose tensors torch
    knows nothing. A pixel of input and of output is the least.
    """
    height, width = network.fixed_size or (2 * CANVAS, 2 * CANVAS)
    process = psutil.Process()
    images = noise(height + -height % network.unit, width + -width % network.unit)
    with torch.inference_mode():
        network(images[..., : network.unit, : network.unit] if network.fixed_size is None else images)
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with torch.inference_mode():
            network(images)
            peak = max(peak, process.memory_info().rss)
    finally:
        done.set()
        watcher.join()
    return max(4.0, (peak - before) / images[0, 0].numel() / 4)
