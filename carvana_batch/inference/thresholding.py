"""Where the threshold acts: a probability map becomes a packed mask and its expected Dice."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

CPU_BAND_PIXELS = 2**17
"""Pixels that a CPU thresholds at a time, so that they stay in the cache of a core."""

BAND_PIXELS = 2**22
"""The same on other devices, so that a large photo needs little memory in addition to its map."""


def threshold_and_pack(probability: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Threshold a (H, W) float32 map in [0, 1].

    Returns:
        The packed mask, (H, ceil(W / 8)) uint8, and the sums that :func:`expected_dice` needs, (n, 2)
        float32. Both stay on the device of the map.
    """
    band_pixels = CPU_BAND_PIXELS if probability.device.type == "cpu" else BAND_PIXELS
    packed, sums = [], []
    for band in probability.split(max(1, band_pixels // probability.shape[1])):
        packed.append(pack_above(band, threshold))
        sums.append(torch.stack([functional.threshold(band, threshold, 0).sum(), band.sum()]))
    return torch.cat(packed), torch.stack(sums)


def expected_dice(mask: NDArray[np.uint8], sums: Tensor) -> float:
    """The expected Dice of a mask m if each pixel is car with its probability p: 2 sum(mp) / sum(m + p).

    Numerator and denominator of Dice are replaced by their expectations, as in Lipton, Elkan and
    Naryanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", 2014 (arXiv:1402.1892). With
    the hundreds of thousands of pixels of a car, the ratio of expectations is close to the expected ratio.
    It is high if the network is confident, so it reveals doubt but not confident mistakes.

    Args:
        mask: packed mask from :func:`threshold_and_pack`, in main memory.
        sums: sums from the same call, in main memory.

    Returns:
        A number in [0, 1]; 1 for an empty mask if all probabilities are 0.
    """
    shared, expected = sums.sum(dim=0, dtype=torch.float64).tolist()
    both = int(np.bitwise_count(mask).sum()) + expected
    return 2 * shared / both if both > 0 else 1.0


def pack_above(values: Tensor, threshold: float) -> Tensor:
    """Pack which of (H, W) values exceed the threshold, on their device.

    Returns:
        (H, ceil(W / 8)) uint8, the leftmost pixel in the highest bit.
    """
    if values.device.type == "cpu":  # NumPy takes half as long as torch
        return torch.from_numpy(np.packbits(values.numpy() > threshold, axis=1))
    return pack_bits_on_device(values > threshold)


def pack_bits_on_device(mask: Tensor) -> Tensor:
    """Pack (H, W) bool with torch operations, so that only an eighth of the bytes leaves the device."""
    missing = -mask.shape[1] % 8
    bits = functional.pad(mask.to(torch.uint8), (0, missing)).reshape(mask.shape[0], -1, 8)
    return (bits * _values_of_bits(mask.device)).sum(dim=2, dtype=torch.uint8)


@cache
def _values_of_bits(device: torch.device) -> Tensor:
    """Cached, because copying them to the device would wait for all its pending work."""
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)
