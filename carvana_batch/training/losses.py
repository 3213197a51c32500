"""Losses of logits against soft targets, in the pixels whose target is known.

All take logits, targets in [0, 1], and known, which is 1 where the target is known and 0 elsewhere; each of
them is (N, 1, H, W) float.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

BAND_CELL = 4
"""Side in pixels of the square cells in which the band along the outline is computed."""


def bce(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Return the mean binary cross-entropy; 0 if nothing is known."""
    total = functional.binary_cross_entropy_with_logits(logits, targets, weight=known, reduction="sum")
    return total / known.sum().clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Return the mean over the images of 1 - Dice of the probabilities.

    1 is added to numerator and denominator, so that an image without a car has a gradient.
    """
    probability = torch.sigmoid(logits) * known
    targets = targets * known
    shared = (probability * targets).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + targets.sum(dim=(1, 2, 3))
    return (1 - (2 * shared + 1) / (total + 1)).mean()


def outline_band(targets: Tensor, known: Tensor) -> Tensor:
    """Return 1 within about two cells (5 to 11 pixels) of the known outline, else 0; (N, 1, H, W)."""
    height, width = targets.shape[-2:]
    shares, covers = (
        functional.avg_pool2d(values, BAND_CELL, ceil_mode=True, count_include_pad=False)
        for values in (known, targets * known)
    )
    cells = covers / shares.clamp(min=1e-6)
    # A cell of which nothing is known is neither the highest nor the lowest.
    highest = functional.max_pool2d(cells, kernel_size=5, stride=1, padding=2)
    lowest = -functional.max_pool2d(-torch.where(shares > 0, cells, 1), kernel_size=5, stride=1, padding=2)
    band = (highest - lowest > 0.25).to(targets.dtype)
    return functional.interpolate(band, scale_factor=BAND_CELL, mode="nearest")[..., :height, :width]


def boundary_loss(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Return BCE + (1 - Dice) + 0.1 times the mean BCE in the band along the outline."""
    in_band = bce(logits, targets, outline_band(targets, known) * known)
    return bce_and_dice(logits, targets, known) + 0.1 * in_band


def bce_and_dice(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Return BCE + (1 - Dice)."""
    return bce(logits, targets, known) + dice_loss(logits, targets, known)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bce+dice": bce_and_dice,
    "bce": bce,
    "dice": dice_loss,
    "boundary": boundary_loss,
}
