"""The size in which the network sees a photo, and how photos and probability maps are resized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from carvana_batch.network.model import Model
from carvana_batch.options import NetworkSize

SAME_SCALE = 1.25
"""A photo stays as it is if its long side differs from the training scale by at most this factor."""

MOST_ENLARGEMENT = 3
"""Largest factor by which a small photo is enlarged: a network that was trained on sharp photos loses more by
blur than it gains by scale."""

BAND_PIXELS = 2**22
"""Pixels of a photo that are averaged at once: Pillow copies them, at 4 bytes each."""


@dataclass(frozen=True)
class InputSize:
    """The size in which the network sees photos: a fixed one, or one that depends on the photo.

    Attributes:
        size: (width, height) of all photos, None if it depends on the photo.
        scale: about how long the long side of photos should be, None for photos as they are.
    """

    size: tuple[int, int] | None = None
    scale: int | None = None

    @classmethod
    def choose(cls, model: Model, asked: NetworkSize) -> InputSize:
        """The size that was asked for; for None, the one that the weights were trained for."""
        if asked is None:
            return cls(model.size, model.scale)
        return cls() if asked == "native" else cls(asked)

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in which the network sees an upright photo of ``height`` and ``width``.

        Photos much larger than the scale are reduced to it, and much smaller ones are enlarged to it, but at
        most by a factor of ``MOST_ENLARGEMENT``. Unless the size is fixed, the aspect ratio stays the same to
        within a pixel.
        """
        if self.size is not None:
            return self.size[1], self.size[0]
        if self.scale is None:
            return height, width
        factor = min(self.scale / max(height, width), MOST_ENLARGEMENT)
        if 1 / SAME_SCALE <= factor <= SAME_SCALE:
            return height, width
        return max(1, round(factor * height)), max(1, round(factor * width))


def resize_photo(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to (height, width, 3).

    Reduced photos are averaged by area; enlarged ones, and those enlarged along one side, are interpolated by
    bicubic splines.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if height <= pixels.shape[0] and width <= pixels.shape[1]:
        return _average(pixels, height, width)
    # A copy, because torch wants arrays that are writable and own their memory.
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _average(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Reduce (H, W, 3) uint8 to (height, width, 3), each pixel the mean of what it covers."""
    if pixels.shape[0] * pixels.shape[1] > BAND_PIXELS:
        narrow = np.empty((pixels.shape[0], width, 3), np.uint8)
        band = max(1, BAND_PIXELS // pixels.shape[1])
        for start in range(0, len(pixels), band):
            rows = Image.fromarray(pixels[start : start + band])
            reduced = rows.resize((width, rows.height), Image.Resampling.BOX)
            narrow[start : start + band] = np.asarray(reduced)
        pixels = narrow
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def resize_probability(probability: Tensor, height: int, width: int) -> Tensor:
    """Resize (h, w) to (height, width) float32 in [0, 1] by bilinear interpolation of the logits.

    Across an outline, logits are nearly linear and probabilities are not.
    """
    if probability.shape == (height, width):
        return probability
    logits = torch.logit(probability.float(), eps=1e-6)
    resized = functional.interpolate(logits[None, None], (height, width), mode="bilinear")
    return torch.sigmoid_(resized[0, 0])
