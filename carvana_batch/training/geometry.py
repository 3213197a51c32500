"""Random geometric changes of a sample: one transformation that applies to the image and its masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.training.known import is_all_known, resample_known
from carvana_batch.training.settings import AugmentationLimits

MIRRORED_SHARE = 0.5
"""Part of width and height that is mirrored beyond each edge. Farther away, a flat colour is a plainer
background than ever more mirrored cars."""

SMALLEST_SAMPLED = 0.75
"""Below this zoom, bilinear sampling would skip pixels, so pictures are averaged down first."""


@dataclass(frozen=True)
class Transformation:
    """A random transformation.

    Attributes:
        matrix: (3, 3) float64, homogeneous coordinates of output pixels -> those of input pixels.
        zoom: size of things in the output relative to the input.
    """

    matrix: NDArray[np.float64]
    zoom: float

    def apply(self, picture: Image.Image, fill: int | tuple[int, ...], *, mirrored: bool) -> Image.Image:
        """Transform a picture with bilinear sampling.

        Args:
            picture: L, RGB or F.
            fill: value of pixels that are not in the picture.
            mirrored: first mirror the picture beyond its edges, as far as ``MIRRORED_SHARE``.

        Returns:
            A picture of the same size and mode.
        """
        size, matrix = picture.size, self.matrix
        if self.zoom < SMALLEST_SAMPLED:
            reduced = max(1, round(size[0] * self.zoom)), max(1, round(size[1] * self.zoom))
            matrix = np.diag([reduced[0] / size[0], reduced[1] / size[1], 1.0]) @ matrix
            picture = picture.resize(reduced, Image.Resampling.BOX)
        if mirrored:
            margin = _margin(matrix, size, picture.size)
            margin_x, margin_y = (min(margin, int(side * MIRRORED_SHARE)) for side in picture.size)
            array = np.asarray(picture)
            margins = [(margin_y, margin_y), (margin_x, margin_x)] + [(0, 0)] * (array.ndim - 2)
            picture = Image.fromarray(np.pad(array, margins, mode="reflect"))
            matrix = np.array([[1, 0, margin_x], [0, 1, margin_y], [0, 0, 1]]) @ matrix
        if (matrix[2] == (0, 0, 1)).all():
            method, coefficients = Image.Transform.AFFINE, matrix.flat[:6]
        else:
            method, coefficients = Image.Transform.PERSPECTIVE, (matrix / matrix[2, 2]).flat[:8]
        return picture.transform(
            size, method, tuple(coefficients), resample=Image.Resampling.BILINEAR, fillcolor=fill
        )

    def apply_to_known(self, known: Image.Image, *, mirrored: bool) -> Image.Image:
        """Transform an L mask of known pixels, so that a pixel that is partly unknown becomes unknown."""
        if is_all_known(known):
            return known  # saves time
        return resample_known(known, lambda picture: self.apply(picture, 255, mirrored=mirrored))


def draw_transformation(
    size: tuple[int, int], limits: AugmentationLimits, generator: np.random.Generator
) -> Transformation:
    """Draw a transformation for pictures of ``size`` (width, height)."""
    width, height = size
    spread = generator.uniform(-1, 1)
    zoom = math.exp(spread * math.log1p(limits.scale if spread > 0 else max(limits.scale, limits.zoom_out)))
    angle = math.radians(generator.uniform(-1, 1) * limits.rotation)
    shift_x = generator.uniform(-1, 1) * limits.shift * width
    shift_y = generator.uniform(-1, 1) * limits.shift * height
    a, b = math.cos(angle) / zoom, math.sin(angle) / zoom
    center_x, center_y = width / 2, height / 2
    c = center_x + shift_x - a * center_x - b * center_y
    f = center_y + shift_y + b * center_x - a * center_y
    matrix = np.array([[a, b, c], [-b, a, f], [0.0, 0.0, 1.0]])
    if limits.perspective > 0:
        matrix = matrix @ _draw_perspective(size, limits.perspective, generator)
    return Transformation(matrix, zoom)


def _draw_perspective(
    size: tuple[int, int], limit: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a (3, 3) homography that moves each corner by at most ``limit`` of width and height."""
    corners = _corners(size)
    moved = corners + generator.uniform(-1, 1, (4, 2)) * limit * np.array(size)
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def _margin(matrix: NDArray[np.float64], output: tuple[int, int], size: tuple[int, int]) -> int:
    """Return how many pixels an output of a size reaches beyond the edges of a picture of ``size``."""
    reached = np.c_[_corners(output), np.ones(4)] @ matrix.T
    points = reached[:, :2] / reached[:, 2:]
    beyond = [-points, points - size]
    return math.ceil(max(0.0, float(np.max(beyond)))) + 1


def _corners(size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the four corners, (4, 2) float64."""
    return np.array([(x, y) for x in (0, size[0]) for y in (0, size[1])], np.float64)


def mean_border_colour(image: Image.Image) -> tuple[int, int, int]:
    """Return the mean colour of the outermost pixels of an RGB image."""
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = edges.mean(axis=0).round().astype(int).tolist()
    return red, green, blue
