"""Points, colours, and the curved surfaces that a car is made of.

Lengths are in metres: x points to the front of the car, y to its left, z up from the floor. Colours are 0 to
255. A ``side`` is 1 (left) or -1 (right), an ``end`` is 1 (nose) or -1 (tail).
"""

from __future__ import annotations

from dataclasses import dataclass
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Pair = tuple[float, float]

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """A curved surface, ``grid`` (rows, columns, 3), visible only from the side away from ``inside``."""

    grid: Floats
    colour: Triple
    gloss: float
    inside: Triple = (0.0, 0.0, 0.5)


def ring(centre: Triple, radii: Pair, angles: Floats) -> Floats:
    """Return the grid (2, len(angles), 3) of a ring perpendicular to y; an inner radius of 0 gives a disc."""
    r = np.array(radii)[:, None]
    x, z = centre[0] + r * np.cos(angles), centre[2] + r * np.sin(angles)
    return np.stack([x, np.full_like(x, centre[1]), z], -1)


def box(centre: Triple, radii: Triple, colour: Triple) -> Part:
    """Make a box with rounded edges."""
    a, b = np.linspace(0, 2 * np.pi, 33)[:, None], np.linspace(-np.pi / 2, np.pi / 2, 17)[None, :]
    ball = np.stack(np.broadcast_arrays(np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b)), -1)
    ball = np.sign(ball) * np.abs(ball) ** 0.6
    return Part(ball * radii + centre, colour, 0.7, centre)


def darker(colour: Triple, factor: float) -> Triple:
    """Multiply the channels of a colour by ``factor``."""
    red, green, blue = colour
    return red * factor, green * factor, blue * factor
