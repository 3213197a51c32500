"""Degradation of images on a device, (3, h, w) uint8; see :mod:`carvana_batch.training.degradation`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from carvana_batch.inference.transfer import upload
from carvana_batch.training.degradation import (
    Change,
    Levels,
    Shifts,
    draw_darker,
    draw_defocus,
    draw_gamma,
    draw_motion,
    draw_noise,
    draw_quality,
    draw_resolution,
    draw_shadow,
    draw_tint,
)

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""

ENLARGING: dict[Image.Resampling, dict[str, Any]] = {
    Image.Resampling.NEAREST: {"mode": "nearest-exact"},
    Image.Resampling.BILINEAR: {"mode": "bilinear"},
    # With antialias, torch takes the same spline as Pillow; otherwise a stiffer one.
    Image.Resampling.BICUBIC: {"mode": "bicubic", "antialias": True},
}

BLOCK = 8
"""Side in pixels of the blocks of a JPEG file."""

# Steps of quality 50, which encoders scale: ITU-T T.81 (1992), annex K, tables K.1 and K.2.
LUMINANCE_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * BLOCK,) * 4),
)


def as_levels(values: Tensor) -> Tensor:
    """Round to uint8."""
    return values.round().clamp(0, 255).to(torch.uint8)


def average_down(pictures: Tensor, height: int, width: int) -> Tensor:
    """Reduce (n, H, W) to (n, height, width) float32: the mean of those pixels whose centres each covers.

    As with Pillow's box filter, columns come first, and of uint8 both steps are rounded.
    """
    rounded = not pictures.is_floating_point()
    means = pictures.double()  # in which sums of a row are exact
    for dim, length in ((2, width), (1, height)):
        edges = torch.arange(length + 1, device=pictures.device, dtype=torch.double)
        edges = (edges * (means.shape[dim] / length) + 0.5).long()
        sums = functional.pad(means.cumsum(dim), (1, 0) if dim == 2 else (0, 0, 1, 0))
        counts = edges.diff() if dim == 2 else edges.diff()[:, None]
        means = sums.index_select(dim, edges).diff(dim=dim) / counts
        means = means.round() if rounded else means
    return means.float()


def add_shadow(image: Tensor, limit: float, generator: np.random.Generator) -> Tensor:
    size = image.shape[2], image.shape[1]
    depth, small = draw_shadow(size, limit, generator)
    light = upload(np.array(small), image.device).float()[None, None]
    light = functional.interpolate(light, image.shape[1:], mode="bilinear")[0].round() / 255
    lit = image.float()
    return as_levels(lit * light + (lit * (1 - depth)).round() * (1 - light))


def _point(draw: Callable[[float, np.random.Generator], Levels]) -> Change[Tensor]:
    def change(image: Tensor, limit: float, generator: np.random.Generator) -> Tensor:
        levels = upload(np.array(draw(limit, generator), np.uint8).reshape(3, 256), image.device)
        return levels.gather(1, image.reshape(3, -1).long()).reshape(image.shape)

    return change


def defocus(image: Tensor, limit: float, generator: np.random.Generator) -> Tensor:
    radius, shifts = draw_defocus(limit, generator)
    return blur(image, radius) if shifts is None else average_of_shifts(image, shifts)


def blur(image: Tensor, radius: float) -> Tensor:
    """Blur by a Gaussian with this standard deviation in pixels; edges are repeated."""
    reach = min(math.ceil(3 * radius), *(side - 1 for side in image.shape[1:]))
    if reach < 1:
        return image
    distances = torch.arange(-reach, reach + 1, device=image.device) / radius
    weights = torch.exp(-(distances**2) / 2)
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    padded = functional.pad(image.float()[:, None], (reach, reach, reach, reach), mode="replicate")
    return as_levels(functional.conv2d(functional.conv2d(padded, weights), weights.transpose(2, 3))[:, 0])


def blur_motion(image: Tensor, limit: float, generator: np.random.Generator) -> Tensor:
    return average_of_shifts(image, draw_motion(limit, generator))


def average_of_shifts(image: Tensor, shifts: Shifts) -> Tensor:
    """The mean of an image shifted by several whole numbers of pixels (x, y); edges are repeated."""
    reach = max(max(abs(x), abs(y)) for x, y in shifts)
    height, width = image.shape[1:]
    padded = functional.pad(image.float()[None], (reach, reach, reach, reach), mode="replicate")[0]
    total = torch.zeros_like(image, dtype=torch.float32)
    for x, y in shifts:
        total += padded[:, reach + y : reach + y + height, reach + x : reach + x + width]
    return as_levels(total / len(shifts))


def lose_resolution(image: Tensor, limit: float, generator: np.random.Generator) -> Tensor:
    (width, height), enlarging = draw_resolution((image.shape[2], image.shape[1]), limit, generator)
    small = average_down(image, height, width)[None]
    return as_levels(functional.interpolate(small, image.shape[1:], **ENLARGING[enlarging])[0])


def add_noise(image: Tensor, limit: float, generator: np.random.Generator) -> Tensor:
    coloured, grey, (width, height) = draw_noise((image.shape[2], image.shape[1]), limit, generator)
    on_device = torch.Generator(image.device).manual_seed(int(generator.integers(2**62)))
    noise = torch.randn((4, height, width), generator=on_device, device=image.device)
    noise = noise[:3] * coloured + noise[3:] * grey
    if (height, width) != image.shape[1:]:
        noise = functional.interpolate(noise[None], image.shape[1:], mode="bilinear")[0]
    return as_levels(image + noise)


def compress(image: Tensor, limit: float, generator: np.random.Generator) -> Tensor:
    return as_if_compressed(image, draw_quality(limit, generator))


def as_if_compressed(image: Tensor, quality: int) -> Tensor:
    """What a JPEG file of a quality from 0 to 100 makes of an image; its colours have half the resolution."""
    height, width = image.shape[1:]
    red, green, blue = image.float()
    luminance = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    chrominance = torch.stack([(blue - luminance) / (2 - 2 * LUMA[2]), (red - luminance) / (2 - 2 * LUMA[0])])
    missing = -width % 2, -height % 2
    even = functional.pad(chrominance[None], (0, missing[0], 0, missing[1]), mode="replicate")
    coarse = functional.avg_pool2d(even, 2)[0]
    luminance = _quantise(luminance[None] - 128, LUMINANCE_STEPS, quality)[0] + 128
    coarse = _quantise(coarse, CHROMINANCE_STEPS, quality)
    fine = functional.interpolate(coarse[None], scale_factor=2, mode="bilinear")[0, :, :height, :width]
    red, blue = luminance + fine[1] * (2 - 2 * LUMA[0]), luminance + fine[0] * (2 - 2 * LUMA[2])
    green = (luminance - red * LUMA[0] - blue * LUMA[2]) / LUMA[1]
    return as_levels(torch.stack([red, green, blue]))


def _quantise(planes: Tensor, steps: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Round the cosine transforms of the blocks of (n, h, w) values from -128 to 127."""
    height, width = planes.shape[1:]
    scale = 5000 / max(1, quality) if quality < 50 else 200 - 2 * quality
    scaled = ((np.array(steps) * scale + 50) // 100).clip(1, 255).astype(np.float32)
    table = upload(scaled, planes.device)
    missing = -width % BLOCK, -height % BLOCK
    padded = functional.pad(planes[None], (0, missing[0], 0, missing[1]), mode="replicate")[0]
    blocks = padded.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)
    cosines = upload(_cosines(), planes.device)
    rounded = (cosines @ blocks @ cosines.T / table).round() * table
    whole: Tensor = (cosines.T @ rounded @ cosines).transpose(2, 3).flatten(3).flatten(1, 2)
    return whole[:, :height, :width].round().clamp(-128, 127)


def _cosines() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The matrix of the discrete cosine transform, (8, 8), whose inverse is its transpose."""
    places = np.arange(BLOCK)
    matrix = np.cos(math.pi / BLOCK * places[:, None] * (places + 0.5)) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)


DEVICE_CHANGES: dict[str, Change[Tensor]] = {
    "shadow": add_shadow,
    "darken": _point(draw_darker),
    "gamma": _point(draw_gamma),
    "tint": _point(draw_tint),
    "blur": defocus,
    "motion": blur_motion,
    "resample": lose_resolution,
    "noise": add_noise,
    "jpeg": compress,
}
"""As ``degradation.CHANGES``, in the same order."""
