"""Random degradation of an image: light, shadow, blur, noise and compression. Masks do not change.

Functions that draw a change are apart from those that apply it, because other ones apply it to
images on a device: those of ``device_degradation``, which draw in the same way.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from carvana_batch.training.settings import AugmentationLimits

CHANCE = 1 / 3
"""Probability of each change, in samples that are degraded at all."""

COARSEST_GRAIN = 3.0
"""Largest size in pixels of a grain of noise."""

SHADOW_REDUCTION = 4
"""Shadows are soft, so they are drawn this many times smaller."""


Picture = TypeVar("Picture")

Change = Callable[[Picture, float, np.random.Generator], Picture]
"""Called as ``change(image, limit, generator)``."""

Levels = list[int]
"""The new level of each level of the R, G and B channel, 3 * 256 of them."""

Shifts = list[tuple[int, int]]
"""Whole numbers of pixels (x, y), at most 256 of them; the mean of so shifted images is a blurred one."""


def degrade(
    image: Picture,
    limits: AugmentationLimits,
    generator: np.random.Generator,
    changes: Mapping[str, Change[Picture]],
) -> Picture:
    """Change an image at random, in the order in which light, lens, sensor and file change a photo.

    Args:
        image: what ``changes`` take.
        limits: how far each change may go.
        generator: source of all random numbers.
        changes: :data:`CHANGES`, or the same for images of another kind.
    """
    active = [
        (change, getattr(limits, name)) for name, change in changes.items() if getattr(limits, name) > 0
    ]
    if not active or generator.random() >= limits.degrade_share:
        return image
    for change, limit in active:
        if generator.random() < CHANCE:
            image = change(image, limit, generator)
    return image


def draw_shadow(
    size: tuple[int, int], limit: float, generator: np.random.Generator
) -> tuple[float, Image.Image]:
    """Draw a random polygon with soft edges that darkens by at most ``limit``, 0 to 1.

    Returns:
        By how much it darkens, and an L image of less than ``size`` (width, height): 0 in the shadow, 255
        outside.
    """
    size = max(1, size[0] // SHADOW_REDUCTION), max(1, size[1] // SHADOW_REDUCTION)
    depth, softness = generator.random() * limit, 1 + generator.random() * 0.05 * max(size)
    centre = generator.random(2)
    angles = np.sort(generator.random(int(generator.integers(3, 7)))) * 2 * math.pi
    distances = generator.uniform(0.1, 1.2, len(angles))  # many corners lie outside, as those of a half-plane
    corners = centre + distances[:, None] * np.c_[np.cos(angles), np.sin(angles)]
    light = Image.new("L", size, 255)
    ImageDraw.Draw(light).polygon([tuple(corner) for corner in (corners * size).tolist()], fill=0)
    return depth, light.filter(ImageFilter.GaussianBlur(softness))


def add_shadow(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Darken a random polygon with soft edges by at most ``limit``, 0 to 1."""
    depth, light = draw_shadow(image.size, limit, generator)
    light = light.resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image, image.point(lambda level: round(level * (1 - depth))), light)


def draw_darker(limit: float, generator: np.random.Generator) -> Levels:
    """Draw a factor from 1 - ``limit`` to 1."""
    factor = math.exp(generator.random() * math.log(1 - limit))
    return [round(level * factor) for level in range(256)] * 3


def draw_gamma(limit: float, generator: np.random.Generator) -> Levels:
    """Draw a gamma from 1 / (1 + ``limit``) to 1 + ``limit``."""
    gamma = math.exp(generator.uniform(-1, 1) * math.log1p(limit))
    return [round(255 * (level / 255) ** gamma) for level in range(256)] * 3


def draw_tint(limit: float, generator: np.random.Generator) -> Levels:
    """Draw a factor for each channel from 1 / (1 + ``limit``) to 1 + ``limit``."""
    factors = np.exp(generator.uniform(-1, 1, 3) * math.log1p(limit))
    table = (np.arange(256) * factors[:, None]).round().clip(0, 255)
    levels: Levels = table.astype(int).ravel().tolist()
    return levels


def draw_defocus(limit: float, generator: np.random.Generator) -> tuple[float, Shifts | None]:
    """Draw a radius of at most ``limit`` pixels, and the shifts of half of the images: those within a disc.

    The other half has None, for a Gaussian blur.
    """
    radius = generator.random() * limit
    if generator.random() < 0.5:
        return radius, None
    reach = math.ceil(radius)
    grid = range(-reach, reach + 1)
    return radius, [(x, y) for y in grid for x in grid if x * x + y * y <= radius * radius]


def defocus(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Blur with a radius of at most ``limit`` pixels: half of the images as a disc, half as a Gaussian."""
    radius, shifts = draw_defocus(limit, generator)
    if shifts is None:
        return image.filter(ImageFilter.GaussianBlur(radius))
    return _average_of_shifts(image, shifts)


def draw_motion(limit: float, generator: np.random.Generator) -> Shifts:
    """Draw the shifts along a line of a random direction, at most ``limit`` pixels long."""
    length, angle = generator.random() * limit, generator.random() * math.pi
    steps = np.linspace(-length / 2, length / 2, math.ceil(length) + 1)
    return sorted({(round(step * math.cos(angle)), round(step * math.sin(angle))) for step in steps.tolist()})


def blur_motion(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Blur along a line of a random direction, at most ``limit`` pixels long."""
    return _average_of_shifts(image, draw_motion(limit, generator))


def draw_resolution(
    size: tuple[int, int], limit: float, generator: np.random.Generator
) -> tuple[tuple[int, int], Image.Resampling]:
    """Draw a size reduced by a factor of at most 1 + ``limit``, and how it is enlarged again."""
    factor = math.exp(generator.random() * math.log1p(limit))
    small = max(1, round(size[0] / factor)), max(1, round(size[1] / factor))
    filters = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    return small, filters[int(generator.integers(len(filters)))]


def lose_resolution(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Reduce by a factor of at most 1 + ``limit``, and enlarge again."""
    small, enlarging = draw_resolution(image.size, limit, generator)
    return image.resize(small, Image.Resampling.BOX).resize(image.size, enlarging)


def draw_noise(
    size: tuple[int, int], limit: float, generator: np.random.Generator
) -> tuple[float, float, tuple[int, int]]:
    """Draw Gaussian noise.

    The size of its grains is random; half of the images have grains of a single pixel.

    Returns:
        The standard deviation of its coloured part and of its grey part, in levels, which together have one
        of at most ``limit``; and the size (width, height) in grains of an image of ``size``.
    """
    deviation, coloured = generator.random() * limit, generator.random()
    grain = 1.0 if generator.random() < 0.5 else generator.uniform(1, COARSEST_GRAIN)
    grains = max(1, round(size[0] / grain)), max(1, round(size[1] / grain))
    return deviation * math.sqrt(coloured), deviation * math.sqrt(1 - coloured), grains


def add_noise(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with a standard deviation of at most ``limit`` levels."""
    coloured, grey, (width, height) = draw_noise(image.size, limit, generator)
    noise = generator.standard_normal((height, width, 3), np.float32)
    noise *= np.float32(coloured)
    noise += generator.standard_normal((height, width, 1), np.float32) * np.float32(grey)
    if (width, height) != image.size:
        noise = _enlarge(noise, image.size)
    noise += np.asarray(image)
    return Image.fromarray(np.rint(noise, out=noise).clip(0, 255, out=noise).astype(np.uint8))


def draw_quality(limit: float, generator: np.random.Generator) -> int:
    """Draw the quality of a JPEG file from 100 - ``limit`` to 100."""
    return round(100 - generator.random() * limit)


def compress(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Compress as JPEG with a quality from 100 - ``limit`` to 100."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=draw_quality(limit, generator))
    return Image.open(file).convert("RGB")


def _point(draw: Callable[[float, np.random.Generator], Levels]) -> Change[Image.Image]:
    """The change that gives each level the new one that ``draw`` has drawn."""
    return lambda image, limit, generator: image.point(draw(limit, generator))


CHANGES: dict[str, Change[Image.Image]] = {
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
"""The name of each limit -> the change of an RGB image."""


def _average_of_shifts(image: Image.Image, shifts: list[tuple[int, int]]) -> Image.Image:
    """Return the mean of an image shifted by several whole numbers of pixels (x, y), at most 256 of them."""
    reach = max(max(abs(x), abs(y)) for x, y in shifts)
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, [(reach, reach), (reach, reach), (0, 0)], mode="edge").astype(np.uint16)
    total = np.full(pixels.shape, len(shifts) // 2, np.uint16)
    for x, y in shifts:
        total += padded[reach + y : reach + y + height, reach + x : reach + x + width]
    return Image.fromarray((total // len(shifts)).astype(np.uint8))


def _enlarge(noise: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge (h, w, 3) noise to ``size`` (width, height)."""
    channels = [
        Image.fromarray(noise[:, :, index]).resize(size, Image.Resampling.BILINEAR) for index in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)
