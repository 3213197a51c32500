"""Putting a car on another ground, with the soft edge that the probability map has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from carvana_batch.colours import RGB
from carvana_batch.output.shadow import contact_shadow

EDGE_SHARE = 1 / 640
"""Half the width of the soft edge, as a share of the long side of the photo: 3 of 1918 pixels."""

LEAST_EDGE = 2

SURE = 0.45
"""Distance of a probability from the threshold from which on a pixel of the edge is all car, or none."""

INSIDE = 2
"""Pixels of the car so far from its outline have no colour of the old ground in them."""

Background = RGB | NDArray[np.uint8]
"""A colour, or a picture (H, W, 3) uint8, which is scaled and cropped to cover the photo."""


def put_on_background(
    pixels: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    probability: NDArray[np.float32],
    threshold: float,
    background: Background,
    shadow: bool = False,
) -> NDArray[np.uint8]:
    """Put a car on another ground.

    At the outline of the mask the car becomes transparent as the probability decreases. There, the colours
    of a photo are a mixture of car and old ground, which would be seen as a halo; so they are taken from the
    nearest pixel inside the car, except in parts that are too thin to have an inside.

    Args:
        pixels: the photo, (H, W, 3) uint8, RGB.
        mask: the car, (H, W) bool.
        probability: (H, W) float32 in [0, 1].
        threshold: probability above which a pixel of the mask is car.
        background: the new ground.
        shadow: whether the ground is darker below the car; see :func:`contact_shadow`.

    Returns:
        The picture, (H, W, 3) uint8.
    """
    height, width = mask.shape
    ground = _fit_background(background, (width, height))
    if not mask.any():
        return ground
    if shadow:
        ground = np.rint(ground * (1 - contact_shadow(mask))[..., None]).astype(np.uint8)
    edge = max(LEAST_EDGE, round(EDGE_SHARE * max(height, width)))
    rows, columns = _box_around(mask, 2 * edge + 1)
    car, part = pixels[rows, columns].astype(np.float32), mask[rows, columns]
    alpha = soften(part, probability[rows, columns], threshold, edge)
    colours = _without_old_ground(car, part, alpha, 2 * edge)
    new = ground[rows, columns]
    mixed = alpha[..., None] * colours + (1 - alpha[..., None]) * new
    ground[rows, columns] = np.rint(mixed).astype(np.uint8)
    return ground


def soften(
    mask: NDArray[np.bool_], probability: NDArray[np.float32], threshold: float, edge: int
) -> NDArray[np.float32]:
    """Return the opacity of each pixel, (H, W) float32 in [0, 1].

    It is 1 in the mask and 0 outside, except at most ``edge`` pixels from its outline, where it follows the
    probability and is 0.5 at the threshold.
    """
    soft = np.clip(0.5 + (probability - threshold) / (2 * SURE), 0, 1).astype(np.float32)
    near = (_distance(mask) <= edge) & (_distance(~mask) <= edge)
    return np.where(near, soft, mask.astype(np.float32))


def _without_old_ground(
    car: NDArray[np.float32], mask: NDArray[np.bool_], alpha: NDArray[np.float32], reach: int
) -> NDArray[np.float32]:
    """The colours of the photo, at the edge of the car from the nearest pixel inside it within ``reach``."""
    from scipy.ndimage import distance_transform_edt  # which takes long, and few runs need it

    inside = (_distance(mask) > INSIDE) & (alpha >= 1)
    if not inside.any():
        return car
    distance, nearest = distance_transform_edt(~inside, return_indices=True)
    mixed = ~inside & (alpha > 0) & (distance <= reach)
    colours = car.copy()
    colours[mixed] = car[nearest[0][mixed], nearest[1][mixed]]
    return colours


def _distance(flags: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The distance of each pixel from the nearest one that is not set; inf if all are."""
    from scipy.ndimage import distance_transform_edt

    if flags.all():
        return np.full(flags.shape, np.inf)
    return np.asarray(distance_transform_edt(flags))


def _fit_background(background: Background, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The ground in this size, (width, height)."""
    if isinstance(background, tuple):
        return np.full((size[1], size[0], 3), background, np.uint8)
    return np.array(ImageOps.fit(Image.fromarray(background), size, Image.Resampling.LANCZOS))


def _box_around(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """The rows and columns of the mask, and so many around it."""
    found = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(max(int(ends[0]) - margin, 0), int(ends[-1]) + margin + 1) for ends in found)
    return rows, columns
