"""Random changes applied to an image and its mask together."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance

from carvana_batch.training.settings import AugmentationLimits


def augment(
    image: Image.Image,
    mask: Image.Image,
    limits: AugmentationLimits,
    generator: np.random.Generator,
) -> tuple[Image.Image, Image.Image]:
    """Apply the same random affine transformation and flip to an image and its mask.

    Colours change in the image only. A third of the samples are not transformed, so that the network also
    sees outlines that are not blurred by interpolation.

    Args:
        image: RGB.
        mask: L, of the same size.
        limits: how far each change may go.
        generator: source of all random numbers.
    """
    if generator.random() < limits.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if generator.random() < 2 / 3:
        coefficients, margin = _random_affine(image.size, limits, generator)
        image = _transform(image, coefficients, margin)
        mask = _transform(mask, coefficients, margin)
    return _change_colours(image, limits, generator), mask


def _random_affine(
    size: tuple[int, int], limits: AugmentationLimits, generator: np.random.Generator
) -> tuple[tuple[float, ...], int]:
    """Draw output-to-input coefficients for Pillow; also how many pixels they reach beyond the image."""
    width, height = size
    zoom = math.exp(generator.uniform(-1, 1) * math.log1p(limits.scale))
    angle = math.radians(generator.uniform(-1, 1) * limits.rotation)
    shift_x = generator.uniform(-1, 1) * limits.shift * width
    shift_y = generator.uniform(-1, 1) * limits.shift * height
    a, b = math.cos(angle) / zoom, math.sin(angle) / zoom
    center_x, center_y = width / 2, height / 2
    c = center_x + shift_x - a * center_x - b * center_y
    f = center_y + shift_y + b * center_x - a * center_y
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    reach_x = [a * x + b * y + c for x, y in corners]
    reach_y = [-b * x + a * y + f for x, y in corners]
    outside = max(0.0, -min(reach_x), max(reach_x) - width, -min(reach_y), max(reach_y) - height)
    return (a, b, c, -b, a, f), math.ceil(outside) + 1


def _transform(picture: Image.Image, coefficients: tuple[float, ...], margin: int) -> Image.Image:
    """Apply an affine transformation with bilinear sampling; the picture is mirrored beyond its edges."""
    array = np.asarray(picture)
    margins = [(margin, margin), (margin, margin)] + [(0, 0)] * (array.ndim - 2)
    a, b, c, d, e, f = coefficients
    padded = Image.fromarray(np.pad(array, margins, mode="reflect"))
    return padded.transform(
        picture.size,
        Image.Transform.AFFINE,
        (a, b, c + margin, d, e, f + margin),
        resample=Image.Resampling.BILINEAR,
    )


def _change_colours(
    image: Image.Image, limits: AugmentationLimits, generator: np.random.Generator
) -> Image.Image:
    if generator.random() < limits.grey:
        image = image.convert("L").convert("RGB")
    for enhancer, limit in (
        (ImageEnhance.Brightness, limits.brightness),
        (ImageEnhance.Contrast, limits.contrast),
        (ImageEnhance.Color, limits.saturation),
    ):
        factor = 1 + generator.uniform(-1, 1) * limit
        if generator.random() < 0.5:
            image = enhancer(image).enhance(factor)
    return image
