"""From the pixels of a photo to the input of the network: checking and normalising."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carvana_batch.inference.canvas import Window

NORMALISED_PIXELS = 2**16
"""Number of pixels that a CPU normalises at a time: at 12 bytes each they fit into the cache of a core."""


def as_rgb_pixels(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A (H, W, 3) uint8 array in a form that torch accepts; copied only if needed.

    Raises:
        ValueError: another shape or dtype, or no pixels.
    """
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(f"expected (H, W, 3) uint8, got {array.shape} {array.dtype}")
    # torch takes neither the negative strides of a BGR image's [..., ::-1] nor Pillow's read-only memory.
    return np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"])


class NetworkInput:
    """Normalises windows of photos to (value / 255 - mean) / deviation.

    Args:
        mean: of the red, green and blue channel, scaled to [0, 1].
        deviation: the same.
        device: where the photos are and the network runs.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], device: torch.device) -> None:
        self.device = device
        self._scale = 1 / (255 * torch.tensor(deviation, device=device))
        self._shift = -torch.tensor(mean, device=device) * 255 * self._scale

    def normalise(self, windows: Sequence[Window], batch: int, dtype: torch.dtype) -> Tensor:
        """A batch (batch, 3, h, w) of windows of one tile size.

        A window that reaches beyond its photo repeats the photo's last row and column. Unused places of the
        batch are zero.
        """
        plan = windows[0].canvas.plan
        images = torch.empty((batch, plan.tile_height, plan.tile_width, 3), dtype=dtype, device=self.device)
        images[len(windows) :] = 0
        for image, (canvas, top, left) in zip(images, windows, strict=False):
            pixels = canvas.pixels[top : top + plan.tile_height, left : left + plan.tile_width]
            height, width = pixels.shape[:2]
            self._write_normalised(pixels, image[:height, :width])
            image[:height, width:] = image[:height, width - 1 : width]
            image[height:] = image[height - 1 : height]
        return images.permute(0, 3, 1, 2)

    def _write_normalised(self, pixels: Tensor, target: Tensor) -> None:
        """Normalise (h, w, 3) uint8 into ``target``, which has the same shape.

        A CPU does this in bands that fit into its cache. Channels are flattened into the rows, because
        operating on the innermost dimension of three values takes four times as long.
        """
        height, width = pixels.shape[:2]
        rows = max(1, NORMALISED_PIXELS // width) if self.device.type == "cpu" else height
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)
        values = torch.empty((min(rows, height), 3 * width), device=self.device)
        for source, band in zip(pixels.split(rows), target.split(rows), strict=True):
            part = values[: len(source)].copy_(source.flatten(1))
            band.copy_(torch.addcmul(shift, part, scale, out=part).view(band.shape))
