"""From a probability map to what leaves the device: packed bits and the expected Dice."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


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
    sums = torch.stack([(probability * mask).sum(), mask.sum(), probability.sum()]).tolist()
    shared, masked, expected = sums
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
