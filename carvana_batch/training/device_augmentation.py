"""The same augmentation on a device: what is drawn for a sample is what ``augmentation`` draws for it.

Pixels are not quite the same: those between others are rounded in another way. Images are (3, h, w) uint8,
masks (h, w) uint8. Nothing here waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from carvana_batch.training.augmentation import draw_colours, draw_geometry
from carvana_batch.training.degradation import degrade
from carvana_batch.training.device_degradation import DEVICE_CHANGES, LUMA, as_levels, average_down
from carvana_batch.training.geometry import MIRRORED_SHARE, SMALLEST_SAMPLED, Transformation
from carvana_batch.training.known import ALL_KNOWN
from carvana_batch.training.settings import AugmentationLimits


def augment_on_device(
    image: Tensor,
    mask: Tensor,
    known: Tensor | None,
    limits: AugmentationLimits,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply random changes; see :func:`~carvana_batch.training.augmentation.augment`.

    There are no other backgrounds.

    Args:
        image: (3, h, w) uint8.
        mask: (h, w) uint8, 0 to 255.
        known: (h, w) uint8, 255 where the mask is known, else 0; None if all of it is.
        limits: how far each change may go.
        generator: source of all random numbers.
    """
    flip, transformation = draw_geometry((image.shape[2], image.shape[1]), limits, generator)
    if flip:
        image, mask = image.flip(2), mask.flip(1)
        known = None if known is None else known.flip(1)
    if transformation is not None:
        image = as_levels(transform(image, transformation, mean_border_colour(image)))
        nothing = torch.zeros(1, device=mask.device)
        mask = as_levels(transform(mask[None], transformation, nothing))[0]
        if known is not None:
            shares = transform(known[None].float(), transformation, nothing + 255)[0]
            known = (shares > ALL_KNOWN).to(torch.uint8) * 255
    image = change_colours(image, limits, generator)
    return degrade(image, limits, generator, DEVICE_CHANGES), mask, known


def transform(pictures: Tensor, transformation: Transformation, fill: Tensor) -> Tensor:
    """Transform with bilinear sampling, mirrored beyond the edges as far as ``MIRRORED_SHARE``.

    Args:
        pictures: (n, h, w) uint8 or float32; if they are averaged down first, uint8 is rounded.
        transformation: what to do.
        fill: (n,) float32, the values farther away.

    Returns:
        (n, h, w) float32.
    """
    height, width = pictures.shape[1:]
    matrix, sampled = transformation.matrix, pictures
    if transformation.zoom < SMALLEST_SAMPLED:
        reduced = [max(1, round(side * transformation.zoom)) for side in (height, width)]
        matrix = np.diag([reduced[1] / width, reduced[0] / height, 1.0]) @ matrix
        sampled = average_down(pictures, *reduced)
    device = pictures.device
    x = torch.arange(width, device=device) + 0.5
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    rows: list[list[float]] = matrix.tolist()
    across, down, scale = (x * a + (y * b + c) for a, b, c in rows)
    if (matrix[2] != (0, 0, 1)).any():
        across, down = across / scale, down / scale
    outside = torch.zeros((height, width), dtype=torch.bool, device=device)
    grid = []
    for places, side in ((across, sampled.shape[2]), (down, sampled.shape[1])):
        margin = int(side * MIRRORED_SHARE)
        outside |= (places < -margin) | (places >= side + margin)
        grid.append((places - 0.5) * (2 / max(1, side - 1)) - 1)
    values = functional.grid_sample(
        sampled.float()[None], torch.stack(grid, dim=2)[None], padding_mode="reflection", align_corners=True
    )[0]
    return torch.where(outside, fill[:, None, None], values)


def mean_border_colour(image: Tensor) -> Tensor:
    """The mean colour of the outermost pixels of an image, (3,) float32, of whole numbers."""
    edges = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    return edges.float().mean(dim=1).round()


def change_colours(image: Tensor, limits: AugmentationLimits, generator: np.random.Generator) -> Tensor:
    """Change the colours of a (3, h, w) uint8 image."""
    colours = draw_colours(limits, generator)
    if colours.grey:
        image = _grey(image).to(torch.uint8).expand_as(image)
    if colours.brightness != 1:
        image = _blend(torch.zeros(1, device=image.device), image, colours.brightness)
    if colours.contrast != 1:
        image = _blend(_grey(image).mean().round(), image, colours.contrast)
    if colours.saturation != 1:
        image = _blend(_grey(image), image, colours.saturation)
    return image


def _grey(image: Tensor) -> Tensor:
    """(1, h, w) float32 of whole numbers."""
    red, green, blue = image.float()
    grey: Tensor = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return grey.round()[None]


def _blend(start: Tensor, image: Tensor, factor: float) -> Tensor:
    """``start`` for a factor of 0, the image for 1, and more than it for larger ones."""
    return (start + (image - start) * factor).clamp(0, 255).to(torch.uint8)
