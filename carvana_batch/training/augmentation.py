"""Random changes applied to an image and its masks together."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageEnhance

from carvana_batch.training.backgrounds import Backgrounds, put_over
from carvana_batch.training.degradation import degrade
from carvana_batch.training.geometry import draw_transformation, mean_border_colour
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
    if generator.random() < limits.flip:
        image, mask, known = (
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in (image, mask, known)
        )
    transformed = generator.random() < 2 / 3
    transformation = draw_transformation(image.size, limits, generator) if transformed else None
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
    return degrade(image, limits, generator), mask, known


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
