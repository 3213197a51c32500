"""The pictures of the page: photos with their two masks, as data URIs of limited total size."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.errors import ImageError
from carvana_batch.inputs.keys import match_ids
from carvana_batch.inputs.masks import find_photos
from carvana_batch.masks.counts import SizeError, clear_ignored
from carvana_batch.pages.rendering import data_uri
from carvana_batch.scoring.compare import read_photo
from carvana_batch.scoring.mistakes import INVENTED_COLOUR, MISSED_COLOUR, busiest_window
from carvana_batch.scoring.scores import Score, Scores
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

MASK_PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 255, 0]
"""RGB of pixels in neither mask, in the true one, in the predicted one, and in both."""

THUMBNAIL_WIDTH = 640

THUMBNAIL_QUALITY = 85

PHOTO_LEVELS = ((88, 1), (75, 1), (75, 2), (75, 4))
"""JPEG quality, and divisor of width and height; all photos get the first level that fits the limit."""

PICTURE_LEVEL = 1
"""The level of photos that have a page of their own, of which there may be thousands."""

SPOT_SIZE = 240, 160
"""Width and height, in pixels, of the window shown around the worst spot."""

AGREED_GREY, EMPTY_GREY = 205, 245
"""Grey levels, if there is no photo, of pixels in both masks and of all others."""


@dataclass(frozen=True, slots=True)
class WorstImage:
    """An image to show on the page.

    Attributes:
        image: the id.
        dice: the Dice of the two masks.
        true: the true mask.
        predicted: the predicted mask.
        photo: (H, W, 3) uint8, RGB; None if there is none.
        without_photo: why there is no photo; "" if there is one, or if none was requested.

    Raises:
        SizeError: masks and photo differ in size.
    """

    image: str
    dice: float
    true: PackedMask
    predicted: PackedMask
    photo: NDArray[np.uint8] | None = field(default=None, repr=False)
    without_photo: str = ""

    def __post_init__(self) -> None:
        size = self.true.height, self.true.width
        if (self.predicted.height, self.predicted.width) != size:
            raise SizeError(f"{shown(self.image)}: the two masks differ in size.")
        if self.photo is not None and self.photo.shape[:2] != size:
            raise SizeError(f"{shown(self.image)}: the photo has not the size of its masks.")


@dataclass(frozen=True, slots=True)
class Picture:
    """A WorstImage encoded for the page; images are data URIs, lengths and counts are in pixels.

    Attributes:
        image: the id.
        dice: the Dice of the two masks.
        width: width of the masks.
        height: height of the masks.
        missed: number of false negatives.
        invented: number of false positives.
        spot: left, top, width and height of the window with the most mistakes.
        masks: PNG at full size, red where the true mask is and green where the predicted one is (so yellow
            where they agree).
        photo: JPEG; "" if there is none.
        background: JPEG of thumbnail size.
        marks: PNG of thumbnail size with the mistakes, to be laid over ``background``.
        note: why there is no photo, or that it was reduced; "" otherwise.
    """

    image: str
    dice: float
    width: int
    height: int
    missed: int
    invented: int
    spot: tuple[int, int, int, int]
    masks: str
    photo: str
    background: str
    marks: str
    note: str


def read_worst(scores: Scores, number: int, photos: Path | None = None) -> Iterator[WorstImage]:
    """Read the ``number`` images with the lowest Dice, lowest first.

    Raises:
        CarvanaBatchError: see :func:`open_images`, and the function that it returns.
    """
    worst = scores.find_worst(number)
    yield from map(open_images(scores, worst, photos), worst)


def open_images(
    scores: Scores, rows: Sequence[Score], photos: Path | None = None
) -> Callable[[Score], WorstImage]:
    """Return a function that reads an image again.

    Masks are read again from where they were scored. A photo that is missing, damaged or of another size
    than its masks is left out, with the reason.

    Args:
        scores: the scores of all images.
        rows: those that will be read.
        photos: the folder of the photos.

    Raises:
        UsageError: the folder of the photos cannot be used.

    The function raises:
        ImageError: a mask can no longer be read.
        SizeError: masks have changed their size since they were scored.
        ValueError: ``scores`` were not computed from mask files.
    """
    files = None
    if photos is not None:
        found = find_photos(photos)
        matched = match_ids((row.image for row in rows), found)
        files = {image: found[photo] for image, photo in matched.items()}

    def read(row: Score) -> WorstImage:
        predicted, true = scores.read_masks(row.image)
        photo, reason = None, ""
        if files is not None:
            try:
                photo = read_photo(files, row.image, true)
            except ImageError as error:
                reason = str(error)
        return WorstImage(row.image, row.dice, true, clear_ignored(predicted, true), photo, reason)

    return read


def encode_picture(image: WorstImage) -> Picture:
    """Encode an image for a page of its own."""
    return _encode(image, PICTURE_LEVEL)


def encode_pictures(worst: Iterable[WorstImage], limit: int, overhead: int = 0) -> tuple[list[Picture], bool]:
    """Encode images within a total size.

    If they do not fit, all photos are reduced alike: first in quality, then in size; then they are left out.
    If the masks alone do not fit, the last images are left out.

    Args:
        worst: the images.
        limit: bytes for all pictures together.
        overhead: bytes that each picture needs in addition to its data URIs.

    Returns:
        The pictures, and whether they include all images.
    """
    pictures: list[Picture] = []
    level = 0
    for image in worst:
        pictures.append(_encode(image, level))
        while _total_bytes(pictures, overhead) > limit and level < len(PHOTO_LEVELS):
            level += 1
            pictures = [_reduce(picture, level) for picture in pictures]
        if _total_bytes(pictures, overhead) > limit:
            return pictures[:-1], False
    return pictures, True


def _total_bytes(pictures: Iterable[Picture], overhead: int) -> int:
    return sum(
        len(picture.masks) + len(picture.photo) + len(picture.background) + len(picture.marks) + overhead
        for picture in pictures
    )


def _encode(image: WorstImage, level: int) -> Picture:
    """Encode an image with its photo at ``level`` of PHOTO_LEVELS."""
    true, predicted = image.true.to_bool(), image.predicted.to_bool()
    missed, invented = true & ~predicted, predicted & ~true
    photo, note = "", image.without_photo and f"Without photo. {image.without_photo}"
    if image.photo is not None:
        photo, note = _fit_photo(Image.fromarray(image.photo), image.photo.shape[1::-1], level)
    divisor = -(-image.true.width // THUMBNAIL_WIDTH)
    window = min(SPOT_SIZE[0], image.true.width), min(SPOT_SIZE[1], image.true.height)
    return Picture(
        image=image.image,
        dice=image.dice,
        width=image.true.width,
        height=image.true.height,
        missed=int(np.count_nonzero(missed)),
        invented=int(np.count_nonzero(invented)),
        spot=(*busiest_window(missed | invented, window), *window),
        masks=data_uri(
            "png", _encode_palette(true.view(np.uint8) + 2 * predicted.view(np.uint8), MASK_PALETTE)
        ),
        photo=photo,
        background=data_uri("jpeg", _draw_background(image.photo, true & predicted, divisor)),
        marks=data_uri("png", _draw_marks(missed, invented, divisor)),
        note=note,
    )


def _reduce(picture: Picture, level: int) -> Picture:
    """Encode the photo of a picture, if any, again at ``level`` of PHOTO_LEVELS; see ``_fit_photo``."""
    if not picture.photo:
        return picture
    with Image.open(io.BytesIO(base64.b64decode(picture.photo.partition(",")[2]))) as image:
        photo, note = _fit_photo(image, (picture.width, picture.height), level)
    return replace(picture, photo=photo, note=note)


def _fit_photo(image: Image.Image, size: tuple[int, int], level: int) -> tuple[str, str]:
    """Encode a photo at ``level`` of PHOTO_LEVELS.

    Args:
        image: the photo; its own size may be reduced already.
        size: (width, height) of the original.
        level: index into PHOTO_LEVELS; their number, to leave the photo out.

    Returns:
        The data URI, "" if the photo is left out, and a note for the user or "".
    """
    if level == len(PHOTO_LEVELS):
        return "", "The photo was left out to keep this page small."
    quality, divisor = PHOTO_LEVELS[level]
    reduced = max(1, size[0] // divisor), max(1, size[1] // divisor)
    if image.size != reduced:
        image = image.resize(reduced, Image.Resampling.BOX)
    note = f"The photo was reduced to {reduced[0]}x{reduced[1]} to keep this page small."
    return data_uri("jpeg", _encode_jpeg(image, quality)), note if divisor > 1 else ""


def _encode_palette(indices: NDArray[np.uint8], colours: list[int], transparent: int | None = None) -> bytes:
    """Encode a PNG from (H, W) indices into at most four colours, given as a flat list of RGB values."""
    image = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    image.putpalette(colours)
    file = io.BytesIO()
    image.save(file, "PNG", bits=2, transparency=transparent)
    return file.getvalue()


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _draw_background(photo: NDArray[np.uint8] | None, agreed: NDArray[np.bool_], divisor: int) -> bytes:
    """Draw a JPEG in pale grey, ``divisor`` times smaller: the photo, or if None what both masks contain."""
    if photo is None:
        grey = np.where(agreed, AGREED_GREY, EMPTY_GREY).astype(np.uint8)
    else:
        grey = 255 - (255 - np.asarray(Image.fromarray(photo).convert("L"))) // 2
    size = -(-grey.shape[1] // divisor), -(-grey.shape[0] // divisor)
    return _encode_jpeg(Image.fromarray(grey).resize(size, Image.Resampling.BOX), THUMBNAIL_QUALITY)


def _draw_marks(missed: NDArray[np.bool_], invented: NDArray[np.bool_], divisor: int) -> bytes:
    """Draw the mistakes as a PNG that is ``divisor`` times smaller and transparent elsewhere.

    A pixel gets the colour of the more frequent mistake in its cell, so that even a single wrong pixel shows.
    """
    missed_counts, invented_counts = _count_in_cells(missed, divisor), _count_in_cells(invented, divisor)
    marks = (missed_counts > 0).astype(np.uint8)
    marks[invented_counts > missed_counts] = 2
    return _encode_palette(marks, [0, 0, 0, *MISSED_COLOUR, *INVENTED_COLOUR], transparent=0)


def _count_in_cells(flags: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Count the flags, (H, W) bool, in each cell of ``side`` by ``side`` pixels."""
    height, width = -(-flags.shape[0] // side), -(-flags.shape[1] // side)
    rows, columns = np.nonzero(flags)  # faster than summing all cells, because few flags are set
    cells = rows // side * width + columns // side
    counts: NDArray[np.int64] = np.bincount(cells, minlength=height * width).reshape(height, width)
    return counts
