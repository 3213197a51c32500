"""Other backgrounds for the cars of training photos."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from carvana_batch.decode.photo import read_image
from carvana_batch.errors import UsageError
from carvana_batch.inputs.find import find_images

WIDEST_FEATHER = 1.5
"""Largest radius in pixels by which the edge of a cut-out is blurred."""

MOST_ENLARGED = 2.0
"""How much smaller a crop of a background may be than the one that covers the sample."""


class Backgrounds:
    """Photos without cars.

    Args:
        folder: the folder of the photos.

    Raises:
        UsageError: there are none, or the folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.paths = [ref.path for ref in find_images(folder, follow_links=True).refs]
        except UsageError as error:
            raise UsageError(f"--backgrounds: {error}") from error

    def draw(self, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
        """Draw a random crop of a random photo, scaled to ``size`` (width, height); half are mirror images.

        Raises:
            ImageError: the photo cannot be read.
        """
        photo = Image.fromarray(read_image(self.paths[int(generator.integers(len(self.paths)))]))
        scale = min(photo.width / size[0], photo.height / size[1])
        scale *= math.exp(-generator.random() * math.log(MOST_ENLARGED))
        width, height = size[0] * scale, size[1] * scale
        left, top = generator.random() * (photo.width - width), generator.random() * (photo.height - height)
        if generator.random() < 0.5:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return photo.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))


def put_over(
    background: Image.Image, image: Image.Image, mask: Image.Image, generator: np.random.Generator
) -> Image.Image:
    """Put the car of an image over a background of the same size; the edge is feathered at random.

    Args:
        background: RGB.
        image: RGB.
        mask: L, the soft mask of the car.
        generator: source of all random numbers.
    """
    feather = generator.random() * WIDEST_FEATHER
    return Image.composite(image, background, mask.filter(ImageFilter.GaussianBlur(feather)))


def mean_border_colour(image: Image.Image) -> tuple[int, int, int]:
    """Return the mean colour of the outermost pixels of an RGB image."""
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = edges.mean(axis=0).round().astype(int).tolist()
    return red, green, blue
