"""Random degradation of an image: light, shadow, blur, noise and compression. Masks do not change."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

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


def degrade(image: Image.Image, limits: AugmentationLimits, generator: np.random.Generator) -> Image.Image:
    """Change an RGB image at random, in the order in which light, lens, sensor and file change a photo."""
    active = [
        (change, getattr(limits, name)) for name, change in CHANGES.items() if getattr(limits, name) > 0
    ]
    if not active or generator.random() >= limits.degrade_share:
        return image
    for change, limit in active:
        if generator.random() < CHANCE:
            image = change(image, limit, generator)
    return image


def add_shadow(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Darken a random polygon with soft edges by at most ``limit``, 0 to 1."""
    size = max(1, image.width // SHADOW_REDUCTION), max(1, image.height // SHADOW_REDUCTION)
    depth, softness = generator.random() * limit, 1 + generator.random() * 0.05 * max(size)
    centre = generator.random(2)
    angles = np.sort(generator.random(int(generator.integers(3, 7)))) * 2 * math.pi
    distances = generator.uniform(0.1, 1.2, len(angles))  # many corners lie outside, as those of a half-plane
    corners = centre + distances[:, None] * np.c_[np.cos(angles), np.sin(angles)]
    light = Image.new("L", size, 255)
    ImageDraw.Draw(light).polygon([tuple(corner) for corner in (corners * size).tolist()], fill=0)
    light = light.filter(ImageFilter.GaussianBlur(softness)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image, image.point(lambda level: round(level * (1 - depth))), light)


def darken(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Multiply by a factor from 1 - ``limit`` to 1."""
    factor = math.exp(generator.random() * math.log(1 - limit))
    return image.point(lambda level: round(level * factor))


def bend_tones(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Apply a gamma from 1 / (1 + ``limit``) to 1 + ``limit``."""
    gamma = math.exp(generator.uniform(-1, 1) * math.log1p(limit))
    return image.point(lambda level: round(255 * (level / 255) ** gamma))


def tint(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Multiply each channel by its own factor from 1 / (1 + ``limit``) to 1 + ``limit``."""
    factors = np.exp(generator.uniform(-1, 1, 3) * math.log1p(limit))
    table = (np.arange(256) * factors[:, None]).round().clip(0, 255)
    return image.point(table.astype(int).ravel().tolist())


def defocus(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Blur with a radius of at most ``limit`` pixels: half of the images as a disc, half as a Gaussian."""
    radius = generator.random() * limit
    if generator.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(radius))
    reach = math.ceil(radius)
    grid = range(-reach, reach + 1)
    return _average_of_shifts(image, [(x, y) for y in grid for x in grid if x * x + y * y <= radius * radius])


def blur_motion(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Blur along a line of a random direction, at most ``limit`` pixels long."""
    length, angle = generator.random() * limit, generator.random() * math.pi
    steps = np.linspace(-length / 2, length / 2, math.ceil(length) + 1)
    shifts = {(round(step * math.cos(angle)), round(step * math.sin(angle))) for step in steps.tolist()}
    return _average_of_shifts(image, sorted(shifts))


def lose_resolution(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Reduce by a factor of at most 1 + ``limit``, and enlarge again."""
    factor = math.exp(generator.random() * math.log1p(limit))
    small = max(1, round(image.width / factor)), max(1, round(image.height / factor))
    filters = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    enlarging = filters[int(generator.integers(len(filters)))]
    return image.resize(small, Image.Resampling.BOX).resize(image.size, enlarging)


def add_noise(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with a standard deviation of at most ``limit`` levels.

    The share of coloured noise and the size of its grains are random; half of the images have grains of a
    single pixel.
    """
    deviation, coloured = generator.random() * limit, generator.random()
    grain = 1.0 if generator.random() < 0.5 else generator.uniform(1, COARSEST_GRAIN)
    size = max(1, round(image.width / grain)), max(1, round(image.height / grain))
    noise = generator.standard_normal((size[1], size[0], 3), np.float32)
    noise *= np.float32(deviation * math.sqrt(coloured))
    grey = generator.standard_normal((size[1], size[0], 1), np.float32)
    noise += grey * np.float32(deviation * math.sqrt(1 - coloured))
    if size != image.size:
        noise = _enlarge(noise, image.size)
    noise += np.asarray(image)
    return Image.fromarray(np.rint(noise, out=noise).clip(0, 255, out=noise).astype(np.uint8))


def compress(image: Image.Image, limit: float, generator: np.random.Generator) -> Image.Image:
    """Compress as JPEG with a quality from 100 - ``limit`` to 100."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=round(100 - generator.random() * limit))
    return Image.open(file).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "shadow": add_shadow,
    "darken": darken,
    "gamma": bend_tones,
    "tint": tint,
    "blur": defocus,
    "motion": blur_motion,
    "resample": lose_resolution,
    "noise": add_noise,
    "jpeg": compress,
}
"""The name of each limit -> the change, called as ``change(image, limit, generator)``."""


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
