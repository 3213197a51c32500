"""Turn a mask to the pixel grid of another: one may be upright, the other as the photo is stored."""

from __future__ import annotations

from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from carvana_batch.decode.photo import read_layout
from carvana_batch.masks import rle
from carvana_batch.masks.layout import find_clear_line, fits_swapped
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


def turn_otherwise(mask: PackedMask, orientation: int) -> tuple[PackedMask, PackedMask]:
    """Turn a mask that may be upright, or as its photo is stored, from either of the two to the other."""
    return mask.turned(orientation), mask.turned(inverse(orientation))


def turn_otherwise_by_file(mask: PackedMask, photo: Path) -> tuple[PackedMask, PackedMask]:
    """The same, for the file of a photo.

    Raises:
        ImageError: it cannot be read.
    """
    return turn_otherwise(mask, read_layout(photo, pixel_limit=MASK_PIXEL_LIMIT).orientation)


def read_row(text: str, photo: Layout) -> FittedMask:
    """Read a run-length row on the grid on which its photo is stored.

    A row does not contain its size, but its runs tell whether it is upright, if the photo lies on its side.

    Raises:
        RunLengthError: the row does not describe a mask of the photo's size.
    """
    width, height = photo.width, photo.height
    runs = rle.parse(text, height, width)
    fit = Fit.SAME if photo.orientation == UPRIGHT else Fit.UNCLEAR
    if swaps_sides(photo.orientation):
        if fits_swapped(runs, width, height):
            upright = PackedMask.from_bool(rle.draw(runs, width, height))
            return turn_to_fit(upright, (width, height), photo)
        if fits_swapped(runs, height, width):
            fit = Fit.SAME
    return FittedMask(PackedMask.from_bool(rle.draw(runs, height, width)), fit)


def find_other_line(text: str, photo: Layout) -> int:
    """The pixels from a line to the next of a valid row that clearly is not of its photo; 0 if it may be."""
    width, height = photo.upright_size
    line = find_clear_line(rle.parse(text, height, width), width, height)
    is_turned = line == height and swaps_sides(photo.orientation)
    return 0 if line == width or is_turned else line
