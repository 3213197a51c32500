"""Turn a mask to the pixel grid of another: one may be upright, the other as the photo is stored."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from carvana_batch.decode.photo import read_layout
from carvana_batch.masks.read import MASK_PIXEL_LIMIT
from carvana_batch.orientation import UPRIGHT, Layout, inverse, swaps_sides
from carvana_batch.values import PackedMask


class Fit(Enum):
    """What the sizes say about the grid of a mask."""

    SAME = auto()
    """It already is the wanted one, or the mask does not fit at all."""

    TURNED = auto()
    """The mask was turned to it."""

    UNCLEAR = auto()
    """The photo has an EXIF orientation that keeps its size, so that upright and stored masks look alike."""


class FittedMask(NamedTuple):
    """A mask that was turned if necessary."""

    mask: PackedMask
    fit: Fit


def turn_to_fit(mask: PackedMask, size: tuple[int, int], photo: Layout) -> FittedMask:
    """Turn a mask with swapped sides by the EXIF orientation of its photo.

    A mask that does not fit in this way either is returned as it is.

    Args:
        mask: a mask of the photo, either upright or as the photo is stored.
        size: the wanted (width, height), of the photo as it is stored or turned upright.
        photo: how the photo is stored.
    """
    given, stored = (mask.width, mask.height), (photo.width, photo.height)
    if swaps_sides(photo.orientation) and photo.width != photo.height:
        if given == size[::-1] and stored in {given, size}:
            is_stored = given == stored
            turned = mask.turned(photo.orientation if is_stored else inverse(photo.orientation))
            return FittedMask(turned, Fit.TURNED)
    elif photo.orientation != UPRIGHT and given == size == stored:
        return FittedMask(mask, Fit.UNCLEAR)
    return FittedMask(mask, Fit.SAME)


def turn_to_fit_file(mask: PackedMask, size: tuple[int, int], photo: Path) -> FittedMask:
    """The same, for the file of a photo, of which only the header is needed.

    Raises:
        ImageError: it cannot be read.
    """
    return turn_to_fit(mask, size, read_layout(photo, pixel_limit=MASK_PIXEL_LIMIT))
