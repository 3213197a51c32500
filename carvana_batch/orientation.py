"""EXIF orientations: the eight ways in which a file may store a photo, and how it is turned upright.

1 stands for upright, 6 and 8 for a quarter turn, which 8 and 6 undo; each of the others undoes itself.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Pixel = TypeVar("Pixel", bound=np.generic)

UPRIGHT = 1

ORIENTATIONS = range(1, 9)

FLIPPED_AXES = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
"""For each orientation, the axes to flip, after rows and columns were swapped where :func:`swaps_sides`."""


class Layout(NamedTuple):
    """How a file stores a photo: its size in pixels, and its EXIF orientation."""

    width: int
    height: int
    orientation: int = UPRIGHT

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) of the photo turned upright."""
        return (self.height, self.width) if swaps_sides(self.orientation) else (self.width, self.height)


def swaps_sides(orientation: int) -> bool:
    """Whether turning upright makes rows of columns."""
    return orientation >= 5


def inverse(orientation: int) -> int:
    """The orientation that turns what is upright back to how this one is stored."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def turn(pixels: NDArray[Pixel], orientation: int) -> NDArray[Pixel]:
    """A view of pixels (H, W, ...), stored with an orientation, that is upright."""
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    return np.flip(pixels, FLIPPED_AXES[orientation])
