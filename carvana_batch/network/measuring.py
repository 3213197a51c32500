"""What tiles have to know of a network, measured with noise: its stride, its context, its memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.main_memory import memory_growth
from carvana_batch.network.blocks import AnySizeNetwork

TRIAL_SIDE = 128
"""Pixels of the side of the images with which a network is tried."""

STRIDES = (1, 2, 4, 8, 16, 32, 64)
"""Strides that are looked for."""

SIDES = (256, 512, 768)
"""Sides in pixels of the images in which a patch of noise is shifted, one after the other until one is large
enough for the context of the network."""

PATCH = 64
"""Side in pixels of that patch."""

SAME = 1e-3
"""Difference of logits, relative to their range, up to which they count as the same."""

MOST_LEAK = 5e-3
"""The same for the largest stride: what the borders of the image contribute."""

LARGEST_CONTEXT = 512
"""A network that looks further than so many pixels counts as one that looks at all of an image."""


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
    for side in SIDES:
        shifted = _Shifted(network, side)
        if shifted.leak > MOST_LEAK:
            continue
        for stride in STRIDES:
            if _takes_odd_multiples(network, stride) and shifted.moves_along(stride):
                return stride
    raise ModelError(
        f"its logits do not move along with the image, by no power of 2 up to {STRIDES[-1]} pixels, as those"
        " of networks that look at all of an image or enlarge with align_corners; give --stride N (a multiple"
        " of the product of its down-sampling factors), or, for a network of images of one size, fixed-size ="
        ' "WIDTHxHEIGHT" in model.toml'
    )


@torch.inference_mode()
def check_stride(network: AnySizeNetwork) -> None:
    """Check the declared stride of a network, as far as that is possible in a small image.

    Raises:
        ModelError: it does not take images of odd multiples of it, or its logits do not move along.
    """
    stride = network.stride
    if not _takes_odd_multiples(network, stride):
        raise ModelError(
            f"fails on images whose sides are odd multiples of its stride {stride}; give a larger one"
        )
    if STRIDES[-1] % stride:
        return
    shifted = _Shifted(network, SIDES[0])
    if shifted.leak <= MOST_LEAK and not shifted.moves_along(stride):
        raise ModelError(
            f"its logits do not move along with an image that is moved by its stride {stride}, but with one"
            f" that is moved by {STRIDES[-1]}; give a larger stride, or leave it out to have it measured"
        )


class _Shifted:
    """How logits of a patch of noise change when it is moved within a grey image.

    Attributes:
        leak: difference for the largest stride: what the border of the image contributes.
    """

    def __init__(self, network: AnySizeNetwork, side: int) -> None:
        self.network, self.side = network, side
        self._first = _logits_of_patch(network, side, 0)
        self._extent = float(self._first.max() - self._first.min())
        self.leak = self._difference(STRIDES[-1])

    def moves_along(self, shift: int) -> bool:
        """Whether the logits are those of the patch where it was, as far as can be told."""
        return self._difference(shift) <= max(SAME, 2 * self.leak)

    def _difference(self, shift: int) -> float:
        """The largest change of a logit, relative to the range of all; 0 for constant ones."""
        change = float((_logits_of_patch(self.network, self.side, shift) - self._first).abs().max())
        return change / self._extent if self._extent else change


def _logits_of_patch(network: AnySizeNetwork, side: int, shift: int) -> Tensor:
    canvas = torch.zeros((1, 3, side, side))
    start = (side - PATCH) // 2 - PATCH // 2 + shift
    inside = (..., slice(start, start + PATCH), slice(start, start + PATCH))
    canvas[inside] = noise(PATCH, PATCH)
    logits: Tensor = network(canvas)[inside]
    return logits.float()


def _takes_odd_multiples(network: AnySizeNetwork, stride: int) -> bool:
    side = stride * (PATCH // stride | 1)
    try:
        network(torch.zeros((1, 3, side, side)))
    except Exception:  # noqa: BLE001 - code of others raises anything; larger strides are tried then
        return False
    return True


def context_of(network: AnySizeNetwork) -> float | None:
    """The context of a network, which is measured once if it is not ours; None if it is not known."""
    if network.context is None and network.is_foreign and network.fixed_size is None:
        network.context = measure_context(network)
    return network.context


@torch.inference_mode()
def measure_context(network: AnySizeNetwork) -> float:
    """How many pixels away from a cut edge logits differ from those of the whole image.

    It is measured at an edge that is cut off, on the stride of the network; inf if it is more than 512.
    """
    cut = max(network.stride, PATCH - PATCH % network.stride)
    for side in (LARGEST_CONTEXT // 2, LARGEST_CONTEXT):
        width = side + -side % network.stride
        images = noise(LARGEST_CONTEXT // 2, width + cut)
        whole = network(images)[..., cut:].float()
        part = network(images[..., cut:].contiguous()).float()
        extent = float(whole.max() - whole.min())
        differing = ((whole - part).abs().amax(dim=(0, 1, 2)) > SAME * extent).nonzero()
        if not len(differing):
            return 0
        context = int(differing[-1]) + 1
        if context < width:
            return context
    return math.inf


def trial_values_per_pixel(network: AnySizeNetwork) -> float:
    """Memory that a pixel takes while the network runs, as a number of float32 values.

    The memory of the process is watched during a run in main memory, for networks of whose tensors torch
    knows nothing. A pixel of input and of output is the least.
    """
    height, width = network.fixed_size or (LARGEST_CONTEXT, LARGEST_CONTEXT)
    images = noise(height + -height % network.unit, width + -width % network.unit)
    with torch.inference_mode():
        network(images[..., : network.unit, : network.unit] if network.fixed_size is None else images)
        grown = memory_growth(lambda: network(images))
    return max(4.0, grown / images[0, 0].numel() / 4)
