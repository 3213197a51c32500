"""Random changes applied to an image and its masks together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageEnhance

from carvana_batch.training.backgrounds import Backgrounds, put_over
from carvana_batch.training.degradation import CHANGES, degrade
from carvana_batch.training.geometry import Transformation, draw_transformation, mean_border_colour
from carvana_batch.training.settings import AugmentationLimits


def augment(
    image: Image.Image,
    mask: Image.Image,
    known: Image.Image,
    limits: AugmentationLimits,
    generator: np.random.Generator,
    backgrounds: Backgrounds | None = None,
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Apply the same random transformation and flip to an image and its masks.

    Backgrounds, colours and degradation change the image only. A third of the samples are not transformed, so
    that the network also sees outlines that are not blurred by interpolation.

    Args:
        image: RGB.
        mask: L, of the same size.
        known: L, of the same size, 255 where the mask is known, else 0.
        limits: how far each change may go.
        generator: source of all random numbers.
        backgrounds: photos over which cars may be put.

    Raises:
        ImageError: a background cannot be read.
    """
    flip, transformation = draw_geometry(image.size, limits, generator)
    if flip:
        image, mask, known = (
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in (image, mask, known)
        )
    # Mirrored cars would be cut off where the mirrored part ends.
    cut_out = backgrounds is not None and generator.random() < limits.background_share
    if transformation is not None:
        image = transformation.apply(image, mean_border_colour(image), mirrored=not cut_out)
        mask = transformation.apply(mask, 0, mirrored=not cut_out)
        known = transformation.apply_to_known(known, mirrored=not cut_out)
    if cut_out and backgrounds is not None:
        # What is unknown may be a part of the car, such as its roof.
        cover = ImageChops.lighter(mask, ImageChops.invert(known))
        image = put_over(backgrounds.draw(image.size, generator), image, cover, generator)
    image = _change_colours(image, limits, generator)
    return degrade(image, limits, generator, CHANGES), mask, known


def draw_geometry(
    size: tuple[int, int], limits: AugmentationLimits, generator: np.random.Generator
) -> tuple[bool, Transformation | None]:
    """Draw whether to flip pictures of ``size`` (width, height), and how to transform them, if at all."""
    flip = generator.random() < limits.flip
    transformed = generator.random() < 2 / 3
    return flip, draw_transformation(size, limits, generator) if transformed else None


@dataclass(frozen=True)
class Colours:
    """A random change of colours: first grey, then the factors in their order, of which 1 changes nothing."""

    grey: bool
    brightness: float
    contrast: float
    saturation: float


def draw_colours(limits: AugmentationLimits, generator: np.random.Generator) -> Colours:
    """Draw a change of colours."""
    grey = generator.random() < limits.grey
    factors = []
    for limit in (limits.brightness, limits.contrast, limits.saturation):
        factor = 1 + generator.uniform(-1, 1) * limit
        factors.append(factor if generator.random() < 0.5 else 1.0)
    return Colours(grey, *factors)


def _change_colours(
    image: Image.Image, limits: AugmentationLimits, generator: np.random.Generator
) -> Image.Image:
    colours = draw_colours(limits, generator)
    if colours.grey:
        image = image.convert("L").convert("RGB")
    for enhancer, factor in (
        (ImageEnhance.Brightness, colours.brightness),
        (ImageEnhance.Contrast, colours.contrast),
        (ImageEnhance.Color, colours.saturation),
    ):
        if factor != 1:
            image = enhancer(image).enhance(factor)
    return image
