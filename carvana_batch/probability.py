"""From a probability map to what leaves the device: packed bits and the expected Dice."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BAND_PIXELS = 2**22
"""Pixels that are thresholded at a time, so that a large photo needs little memory beside its map."""


def threshold_and_pack(probability: Tensor, threshold: float) -> tuple[NDArray[np.uint8], float]:
    """The packed mask, (H, ceil(W / 8)) uint8, of a (H, W) float32 map, and its :func:`expected_dice`."""
    rows = max(1, BAND_PIXELS // probability.shape[1])
    packed, sums = [], []
    for band in probability.split(rows):
        mask = band > threshold
        packed.append(pack_bits(mask))
        sums.append(_dice_sums(band, mask))
    return packed[0] if len(packed) == 1 else np.concatenate(packed), _dice_of_sums(sums)


def expected_dice(probability: Tensor, mask: Tensor) -> float:
    """The Dice that a mask may expect if its pixels are car with their probability: 2 sum(mp) / sum(m + p).

    Numerator and denominator of Dice are replaced by their expectations, as in Lipton, Elkan and
    Naryanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", 2014 (arXiv:1402.1892); with
    the hundred thousands of pixels of a car the ratio of expectations is close to the expected ratio.
    It is high where the network is sure, so it warns of doubt, not of confident mistakes.

    Args:
        probability: (H, W) float32 in [0, 1].
        mask: (H, W) bool.

    Returns:
        a number in [0, 1]; 1 for an empty mask where no pixel has any probability.
    """
    return _dice_of_sums([_dice_sums(probability, mask)])


def _dice_sums(probability: Tensor, mask: Tensor) -> list[float]:
    """sum(mp), sum(m) and sum(p)."""
    sums: list[float] = torch.stack([(probability * mask).sum(), mask.sum(), probability.sum()]).tolist()
    return sums


def _dice_of_sums(parts: list[list[float]]) -> float:
    shared, masked, expected = (sum(values) for values in zip(*parts, strict=True))
    return 2 * shared / (masked + expected) if masked + expected > 0 else 1.0


def pack_bits(mask: Tensor) -> NDArray[np.uint8]:
    """(H, W) bool to (H, ceil(W / 8)) uint8, leftmost pixel in the highest bit; packed on its device."""
    if mask.device.type == "cpu":
        return np.packbits(mask.numpy(), axis=1)
    return pack_bits_on_device(mask).cpu().numpy()


def pack_bits_on_device(mask: Tensor) -> Tensor:
    """The same as :func:`pack_bits` with torch operations alone, so that an eighth of the bytes is copied."""
    missing = -mask.shape[1] % 8
    bits = nn.functional.pad(mask.to(torch.uint8), (0, missing)).reshape(mask.shape[0], -1, 8)
    values = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=mask.device)
    return (bits * values).sum(dim=2, dtype=torch.uint8)


def enlarge_probability(probability: Tensor, height: int, width: int) -> Tensor:
    """(h, w) to (height, width) float32 in [0, 1], by bilinear interpolation of the logits.

    The logits are nearly linear across an outline, the probabilities are not.
    """
    logits = torch.logit(probability.float(), eps=1e-6)
    enlarged = nn.functional.interpolate(logits[None, None], (height, width), mode="bilinear")
    return torch.sigmoid_(enlarged[0, 0])
