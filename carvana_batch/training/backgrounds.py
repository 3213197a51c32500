"""Other backgrounds for the cars of training photos."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from carvana_batch.decode.photo import read_image
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.find import find_images
from carvana_batch.parallel import map_in_order
from carvana_batch.text import list_lines

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

    def check(self) -> None:
        """Decode every photo.

        Raises:
            UsageError: some cannot be read. The message lists all of them with the reasons.
        """
        with contextlib.closing(map_in_order(_fault_of, self.paths)) as results:
            faults = [fault for fault in results if fault]
        if faults:
            raise UsageError(
                f"--backgrounds: {len(faults)} of {len(self.paths)} photos cannot be used. Repair or remove"
                " them:" + list_lines(faults)
            )

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
    background: Image.Image, image: Image.Image, cover: Image.Image, generator: np.random.Generator
) -> Image.Image:
    """Put a part of an image over a background of the same size; its edge is feathered at random.

    Args:
        background: RGB.
        image: RGB.
        cover: L, how much of the background each pixel covers, 0 to 255.
        generator: source of all random numbers.
    """
    feather = generator.random() * WIDEST_FEATHER
    return Image.composite(image, background, cover.filter(ImageFilter.GaussianBlur(feather)))


def _fault_of(path: Path) -> str:
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return ""
