"""Losses of logits against soft targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

BAND_CELL = 4
"""Side in pixels of the square cells in which the band along the outline is computed."""


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy; logits and targets (N, 1, H, W) float, targets in [0, 1]."""
    return functional.binary_cross_entropy_with_logits(logits, targets)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the images of 1 - Dice of the probabilities.

    1 is added to numerator and denominator, so that an image without a car has a gradient.
    """
    probability = torch.sigmoid(logits)
    shared = (probability * targets).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + targets.sum(dim=(1, 2, 3))
    return (1 - (2 * shared + 1) / (total + 1)).mean()


def outline_band(targets: Tensor) -> Tensor:
    """Return 1 within about two cells (5 to 11 pixels) of the outline, else 0; same shape as the targets."""
    height, width = targets.shape[-2:]
    cells = functional.avg_pool2d(targets, BAND_CELL, ceil_mode=True, count_include_pad=False)
    highest = functional.max_pool2d(cells, kernel_size=5, stride=1, padding=2)
    lowest = -functional.max_pool2d(-cells, kernel_size=5, stride=1, padding=2)
    band = (highest - lowest > 0.25).to(targets.dtype)
    return functional.interpolate(band, scale_factor=BAND_CELL, mode="nearest")[..., :height, :width]


def boundary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return BCE + (1 - Dice) + 0.1 times the mean BCE in the band along the outline."""
    band = outline_band(targets)
    in_band = functional.binary_cross_entropy_with_logits(logits, targets, weight=band, reduction="sum")
    return bce(logits, targets) + dice_loss(logits, targets) + 0.1 * in_band / band.sum().clamp(min=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce+dice": lambda logits, targets: bce(logits, targets) + dice_loss(logits, targets),
    "bce": bce,
    "dice": dice_loss,
    "boundary": boundary_loss,
}
