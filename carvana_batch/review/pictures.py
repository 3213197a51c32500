"""The pictures of the page: photos with what their masks consist of."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from carvana_batch.decode.photo import decode_image
from carvana_batch.errors import ImageError
from carvana_batch.masks.read import read_mask
from carvana_batch.options import DEFAULT_PIXEL_LIMIT
from carvana_batch.orientation import UPRIGHT, turn
from carvana_batch.output.extras import OVERLAY_COLOUR, OVERLAY_STRENGTH
from carvana_batch.output.journal import Entry
from carvana_batch.output.ownership import Stamp
from carvana_batch.output.paths import OutPaths
from carvana_batch.text import shown

OUTSIDE, LARGEST, PART, HOLE = range(4)
"""Kinds of pixels: outside the mask, in its largest part, in another one, and in a hole."""

PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]
"""RGB of these kinds in the PNG, from which the page reads them."""

LONGEST_SIDE = 2560
"""Larger pictures are reduced: a browser holds several copies of one without compression."""

MOST_SPOTS = 60
"""Parts and holes of a mask that are marked; the smaller ones are left out."""

THUMBNAIL_WIDTH = 400

PHOTO_QUALITY, THUMBNAIL_QUALITY = 80, 78

WITHOUT_PHOTO_GREY = 205
"""Grey level of the car in thumbnails without a photo."""

Labels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Spot:
    """A part of a mask other than the largest one, or a hole in it.

    Attributes:
        kind: ``PART`` or ``HOLE``.
        pixels: its area.
        box: left, top, width and height of the pixels around it.
    """

    kind: int
    pixels: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """A mask encoded for the page, upright if the EXIF orientation of its photo tells how it stands.

    Attributes:
        entry: what the journal says of it.
        stamp: size and checksum of the file of the mask, as text.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        labels: PNG of the kinds of pixels in the colours of ``PALETTE``; b"" if there is no mask.
        photo: JPEG of the same size; b"" if there is none.
        thumbnail: JPEG of the photo with the car tinted.
        parts: number of parts of the mask.
        holes: number of holes in it.
        spots: the largest of the further parts and the holes, by decreasing area.
        note: what the user should know about the picture; "" if nothing.
    """

    entry: Entry
    stamp: str
    width: int
    height: int
    labels: bytes = field(repr=False)
    photo: bytes = field(repr=False)
    thumbnail: bytes = field(repr=False)
    parts: int = 0
    holes: int = 0
    spots: tuple[Spot, ...] = ()
    note: str = ""


def make_picture(entry: Entry, paths: OutPaths, photo: Path | None, upright: bool) -> Picture:
    """Make the picture of a mask; what is missing is left out, and said in its note.

    Args:
        entry: what the journal says of the mask.
        paths: the out folder.
        photo: the file of the photo; None if it was not found.
        upright: whether the mask was turned upright by the EXIF orientation.

    Raises:
        CarvanaBatchError: the file of the mask cannot be read.
    """
    notes = []
    try:
        path = paths.mask(entry.key)
        stamp = Stamp.read(path)
        mask = read_mask(path).to_bool()
    except (ImageError, OSError) as error:
        reason = error if isinstance(error, ImageError) else error.strerror
        empty = np.zeros((2, 3), np.bool_)
        thumbnail = _encode_jpeg(_draw_thumbnail(None, empty), THUMBNAIL_QUALITY)
        return Picture(entry, "", 3, 2, b"", b"", thumbnail, note=f"The mask cannot be read: {reason}.")
    if entry.mask_checksum not in (None, stamp.checksum):
        notes.append("The mask has been changed since the run; the doubt is that of the earlier one.")
    pixels, orientation = None, UPRIGHT
    try:
        pixels, orientation = _read_photo(entry, photo, mask.shape, upright)
        if photo is not None and photo.stat().st_size != entry.source_bytes:
            notes.append("The photo has been changed since it was masked.")
    except (ImageError, OSError) as error:
        notes.append(f"Without photo: {error}")
    mask = np.ascontiguousarray(turn(mask, orientation))
    labels, spots = label_parts(mask)
    parts = int(mask.any()) + sum(spot.kind == PART for spot in spots)
    holes = sum(spot.kind == HOLE for spot in spots)
    if not parts:
        notes.append("The mask is empty.")
    thumbnail = _encode_jpeg(_draw_thumbnail(pixels, mask), THUMBNAIL_QUALITY)
    divisor = -(-max(labels.shape) // LONGEST_SIDE)
    if divisor > 1:
        notes.append(f"Reduced to one {divisor}th of the width and height.")
        labels = _reduce_labels(labels, divisor)
        spots = [_reduce_spot(spot, divisor) for spot in spots]
    jpeg = b""
    if pixels is not None:
        image = Image.fromarray(pixels)
        jpeg = _encode_jpeg(image.reduce(divisor) if divisor > 1 else image, PHOTO_QUALITY)
    height, width = labels.shape
    return Picture(
        entry,
        f"{stamp.size}-{stamp.checksum:08x}",
        width,
        height,
        _encode_labels(labels),
        jpeg,
        thumbnail,
        parts,
        holes,
        tuple(spots[:MOST_SPOTS]),
        " ".join(notes),
    )


def label_parts(mask: NDArray[np.bool_]) -> tuple[Labels, list[Spot]]:
    """Find the parts of a mask and the holes in it.

    Pixels of a part are connected at sides or corners, those of a hole at sides. Background that touches the
    border is no hole.

    Args:
        mask: (H, W) bool.

    Returns:
        The kind of each pixel, (H, W) uint8; and all parts but the largest, and all holes, by decreasing
        area.
    """
    labels = np.zeros(mask.shape, np.uint8)
    spots = []
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(regions.ravel())[1:]
    largest = int(areas.argmax()) + 1 if areas.size else 0
    labels[mask] = PART
    labels[(regions == largest) & mask] = LARGEST
    spots += _find_spots(regions, areas, PART, leave_out=largest)
    background, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    outside = int(background[0, 0])
    inside = background[1:-1, 1:-1]
    labels[~mask & (inside != outside)] = HOLE
    areas = np.bincount(inside.ravel(), minlength=outside + 1)[1:]
    spots += _find_spots(inside, areas, HOLE, leave_out=outside)
    return labels, sorted(spots, key=lambda spot: -spot.pixels)


def _find_spots(
    regions: NDArray[np.int32], areas: NDArray[np.int64], kind: int, leave_out: int
) -> list[Spot]:
    spots = []
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        if number != leave_out and box is not None:
            rows, columns = box
            size = columns.stop - columns.start, rows.stop - rows.start
            spots.append(Spot(kind, int(areas[number - 1]), (columns.start, rows.start, *size)))
    return spots


def _read_photo(
    entry: Entry, photo: Path | None, shape: tuple[int, ...], upright: bool
) -> tuple[NDArray[np.uint8], int]:
    """Read a photo, (H, W, 3) uint8, turned upright, and the orientation in which its mask is stored.

    Raises:
        ImageError: there is none, it cannot be decoded, or its size is not that of the mask.
        OSError: it cannot be read.
    """
    if photo is None:
        raise ImageError(
            f"{shown(entry.source or entry.key)} was not found. --images names the folder that was given to"
            " predict."
        )
    limit = max(DEFAULT_PIXEL_LIMIT, entry.width * entry.height)
    decoded = decode_image(photo, pixel_limit=limit, apply_exif=upright, accept_damage=True)
    if decoded.pixels.shape[:2] != shape:
        height, width = decoded.pixels.shape[:2]
        raise ImageError(
            f"{shown(photo)} is {width}x{height} pixels, the mask {shape[1]}x{shape[0]}, so they do not"
            " belong together."
        )
    return np.ascontiguousarray(turn(decoded.pixels, decoded.orientation)), decoded.orientation


def _draw_thumbnail(pixels: NDArray[np.uint8] | None, mask: NDArray[np.bool_]) -> Image.Image:
    """The photo with the car tinted, reduced; without a photo, the car in grey on white."""
    height, width = mask.shape
    size = min(width, THUMBNAIL_WIDTH), max(1, round(height * min(width, THUMBNAIL_WIDTH) / width))
    share = Image.fromarray(mask.view(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    if pixels is None:
        photo, colour, strength = Image.new("RGB", size, "white"), (WITHOUT_PHOTO_GREY,) * 3, 1.0
    else:
        photo = Image.fromarray(pixels).resize(size, Image.Resampling.BOX, reducing_gap=2.0)
        colour, strength = OVERLAY_COLOUR, OVERLAY_STRENGTH
    return Image.composite(Image.new("RGB", size, colour), photo, share.point(lambda value: value * strength))


def _reduce_labels(labels: Labels, divisor: int) -> Labels:
    """Reduce the kinds of pixels; further parts and holes keep at least one pixel."""
    height, width = (-(-length // divisor) for length in labels.shape)
    padding = [
        (0, target * divisor - length) for target, length in zip((height, width), labels.shape, strict=True)
    ]
    cells = np.pad(labels, padding).reshape(height, divisor, width, divisor)
    reduced = np.where((cells == LARGEST).mean((1, 3)) >= 0.5, LARGEST, OUTSIDE).astype(np.uint8)
    reduced[(cells == HOLE).any((1, 3))] = HOLE
    reduced[(cells == PART).any((1, 3))] = PART
    return reduced


def _reduce_spot(spot: Spot, divisor: int) -> Spot:
    left, top, width, height = spot.box
    right, bottom = (-(-end // divisor) for end in (left + width, top + height))
    left, top = left // divisor, top // divisor
    return Spot(spot.kind, spot.pixels, (left, top, right - left, bottom - top))


def _encode_labels(labels: Labels) -> bytes:
    image = Image.frombytes("P", (labels.shape[1], labels.shape[0]), labels.tobytes())
    image.putpalette(PALETTE)
    file = io.BytesIO()
    image.save(file, "PNG", bits=2)
    return file.getvalue()


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
