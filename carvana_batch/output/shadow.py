"""The shadow that a car casts on the ground right below it, made up from the mask alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DEPTH = 0.012
"""How far the ground is dark below the line on which the car stands, as a share of the width of the car."""

REACH = 0.12
"""Highest gap between car and ground that is filled, such as that below the doors; a share of the width."""

STEEPEST = 2.0
"""Lines that rise more, as from a wheel to the mirror above it, are not on the ground."""

NEAR, FAR = (0.006, 0.55), (0.03, 0.35)
"""Two shadows that are laid over each other: how soft, as a share of the width, and how dark, in [0, 1]."""


def contact_shadow(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return by how much the ground is darker, (H, W) float32 in [0, 1); the car hides part of it.

    The car stands on the lower part of the convex hull of its mask: on straight lines from wheel to wheel.
    The shadow lies between these lines and the car, and a little below. No light is known, so it falls in no
    direction; and what stands out in front of the wheels is taken to touch the ground.

    Args:
        mask: the car, (H, W) bool.
    """
    shadow = np.zeros(mask.shape, np.float32)
    columns = np.flatnonzero(mask.any(axis=0))
    if not columns.size:
        return shadow
    height = mask.shape[0]
    lower = height - 1 - np.argmax(mask[::-1, columns], axis=0)  # the lowest pixel of each column
    hull = _on_the_ground(_hull_below(columns, lower))
    on_ground = (columns >= hull[0][0]) & (columns <= hull[-1][0])
    columns, lower = columns[on_ground], lower[on_ground]
    ground = np.interp(columns, [x for x, _ in hull], [y for _, y in hull])
    width = int(columns[-1] - columns[0]) + 1
    top = np.maximum(lower, ground - REACH * width)
    margin = int(4 * FAR[0] * width) + 1
    first = max(int(top.min()) - margin, 0)
    last = min(int(ground.max() + DEPTH * width) + margin, height)
    left, right = max(columns[0] - margin, 0), min(columns[-1] + margin + 1, mask.shape[1])
    rows = np.arange(first, last)[:, None]
    dark = np.zeros((last - first, right - left), np.float32)
    dark[:, columns - left] = (rows > top) & (rows <= ground + DEPTH * width)
    light = np.ones_like(dark)
    for softness, strength in (NEAR, FAR):
        light *= 1 - strength * ndimage.gaussian_filter(dark, (softness * width / 2, softness * width))
    shadow[first:last, left:right] = 1 - light
    return shadow


def _hull_below(columns: NDArray[np.int_], lower: NDArray[np.int_]) -> list[tuple[int, int]]:
    """The corners (column, row) of the lower side of the convex hull of points; rows count downwards."""
    hull: list[tuple[int, int]] = []
    for x, y in zip(columns.tolist(), lower.tolist(), strict=True):
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) > (y - y0) * (x1 - x0):  # the last point lies below the line past it
                break
            hull.pop()
        hull.append((x, y))
    return hull


def _on_the_ground(hull: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The corners between the lines at the left and right ends that are too steep."""
    lowest = max(range(len(hull)), key=lambda index: hull[index][1])
    first = last = lowest
    while first > 0 and _rise(hull[first], hull[first - 1]) <= STEEPEST:
        first -= 1
    while last < len(hull) - 1 and _rise(hull[last], hull[last + 1]) <= STEEPEST:
        last += 1
    return hull[first : last + 1]


def _rise(lower: tuple[int, int], upper: tuple[int, int]) -> float:
    return (lower[1] - upper[1]) / abs(lower[0] - upper[0])
