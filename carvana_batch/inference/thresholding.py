"""From a probability map to what leaves the device: packed bits and the expected Dice."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

CPU_BAND_PIXELS = 2**17
"""Pixels that are thresholded at a time on a CPU: as many as the cache of a core holds."""

BAND_PIXELS = 2**22
"""The same elsewhere, so that a large photo needs little memory beside its map."""


def threshold_and_pack(probability: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The packed mask, (H, ceil(W / 8)) uint8, of a (H, W) float32 map in [0, 1], and what
    :func:`expected_dice` has to know of the map: (n, 2) float32. Both stay on the device of the map."""
    band_pixels = CPU_BAND_PIXELS if probability.device.type == "cpu" else BAND_PIXELS
    packed, sums = [], []
    for band in probability.split(max(1, band_pixels // probability.shape[1])):
        packed.append(pack_above(band, threshold))
        sums.append(torch.stack([functional.threshold(band, threshold, 0).sum(), band.sum()]))
    return torch.cat(packed), torch.stack(sums)


def expected_dice(mask: NDArray[np.uint8], sums: Tensor) -> float:
    """The Dice that a packed mask may expect if its pixels m are car with the probability p of their map:
    2 sum(mp) / sum(m + p).

    Numerator and denominator of Dice are replaced by their expectations, as in Lipton, Elkan and
    Naryanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", 2014 (arXiv:1402.1892); with
    the hundred thousands of pixels of a car the ratio of expectations is close to the expected ratio.
    It is high where the network is sure, so it warns of doubt, not of confident mistakes. It is in [0, 1],
    and 1 for an empty mask where no pixel has any probability.

    Args:
        mask, sums: those of :func:`threshold_and_pack`, in main memory.
    """
    shared, expected = sums.sum(dim=0, dtype=torch.float64).tolist()
    both = int(np.bitwise_count(mask).sum()) + expected
    return 2 * shared / both if both > 0 else 1.0


def pack_above(values: Tensor, threshold: float) -> Tensor:
    """Which of (H, W) values exceed the threshold, as (H, ceil(W / 8)) uint8 with the leftmost pixel in the
    highest bit; packed on their device."""
    if values.device.type == "cpu":  # numpy takes half the time of torch
        return torch.from_numpy(np.packbits(values.numpy() > threshold, axis=1))
    return pack_bits_on_device(values > threshold)


def pack_bits_on_device(mask: Tensor) -> Tensor:
    """(H, W) bool packed by torch operations alone, so that an eighth of the bytes leaves the device."""
    missing = -mask.shape[1] % 8
    bits = functional.pad(mask.to(torch.uint8), (0, missing)).reshape(mask.shape[0], -1, 8)
    return (bits * _values_of_bits(mask.device)).sum(dim=2, dtype=torch.uint8)


@cache
def _values_of_bits(device: torch.device) -> Tensor:
    """Made once: to bring them there, the device would have to get done with all else."""
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


def enlarge_probability(probability: Tensor, height: int, width: int) -> Tensor:
    """(h, w) to (height, width) float32 in [0, 1], by bilinear interpolation of the logits.

    The logits are nearly linear across an outline, the probabilities are not.
    """
    logits = torch.logit(probability.float(), eps=1e-6)
    enlarged = functional.interpolate(logits[None, None], (height, width), mode="bilinear")
    return torch.sigmoid_(enlarged[0, 0])
