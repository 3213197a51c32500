"""The pictures of the page: photos with their two masks, as data URIs within a limit of size."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.errors import ImageError
from carvana_batch.inputs.masks import find_photos
from carvana_batch.masks.counts import SizeError
from carvana_batch.scoring.compare import read_photo
from carvana_batch.scoring.mistakes import INVENTED_COLOUR, MISSED_COLOUR, busiest_window
from carvana_batch.scoring.scores import Scores
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

MASK_COLOURS = [0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 255, 0]
"""Of pixels in neither mask, the true one, the predicted one, and both."""

THUMBNAIL_WIDTH = 640

THUMBNAIL_QUALITY = 85

PHOTO_STEPS = ((88, 1), (75, 1), (75, 2), (75, 4))
"""JPEG quality and divisor of the size that all photos have; the first with which they fit the limit."""

SPOT = 240, 160
"""Width and height in pixels of the window that is shown around the worst spot."""

AGREED_GREY, EMPTY_GREY = 205, 245
"""Where there is no photo: pixels in both masks, pixels in neither."""


@dataclass(frozen=True, slots=True)
class WorstImage:
    """An image to be looked at: its masks, and its photo (H, W, 3) uint8 RGB, or None and why."""

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
    """A WorstImage as the page has it, in data URIs; lengths and counts are in pixels.

    ``masks`` is a PNG at full size, red where the true mask is and green where the predicted one is (so
    yellow where they agree). ``photo`` is a JPEG, "" if there is none; ``note`` then says why, or that it is
    smaller than the original. ``ground`` and ``marks`` are small: a JPEG, and a PNG of the mistakes to be
    laid on it. ``spot`` is left, top, width and height of the window with the most mistakes.
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
    ground: str
    marks: str
    note: str


def read_worst(scores: Scores, number: int, photos: Path | None = None) -> Iterator[WorstImage]:
    """The ``number`` images with the lowest Dice, the lowest first; ``photos`` is the folder of all photos.

    Masks are read where they were scored from. A photo that is missing, damaged or of another size than its
    masks is left out, with the reason.

    Raises:
        UsageError: the folder cannot be used.
        ImageError, SizeError: masks have changed since they were scored.
        ValueError: ``scores`` did not come from masks.
    """
    files = None if photos is None else find_photos(photos)
    for row in scores.find_worst(number):
        predicted, true = scores.read_masks(row.image)
        photo, reason = None, ""
        if files is not None:
            try:
                photo = read_photo(files, row.image, true)
            except ImageError as error:
                reason = str(error)
        yield WorstImage(row.image, row.dice, true, predicted, photo, reason)


def encode_pictures(worst: Iterable[WorstImage], limit: int, overhead: int = 0) -> tuple[list[Picture], bool]:
    """Encode images in at most ``limit`` bytes in all, and say whether there is room for all of them.

    A picture takes the length of its data URIs and ``overhead``.

    Photos are given up before masks: first their quality, then their size, then they themselves. If the masks
    alone do not fit, the images that come last are left out.
    """
    pictures: list[Picture] = []
    step = 0
    for image in worst:
        pictures.append(_encode(image, step))
        while _total_bytes(pictures, overhead) > limit and step < len(PHOTO_STEPS):
            step += 1
            pictures = [_reduce(picture, step) for picture in pictures]
        if _total_bytes(pictures, overhead) > limit:
            return pictures[:-1], False
    return pictures, True


def _total_bytes(pictures: Iterable[Picture], overhead: int) -> int:
    return sum(
        len(one.masks) + len(one.photo) + len(one.ground) + len(one.marks) + overhead for one in pictures
    )


def _encode(image: WorstImage, step: int) -> Picture:
    true, predicted = image.true.to_bool(), image.predicted.to_bool()
    missed, invented = true & ~predicted, predicted & ~true
    photo, note = "", image.without_photo and f"Without photo. {image.without_photo}"
    if image.photo is not None:
        photo, note = _fit_photo(Image.fromarray(image.photo), image.photo.shape[1::-1], step)
    shrink = -(-image.true.width // THUMBNAIL_WIDTH)
    window = min(SPOT[0], image.true.width), min(SPOT[1], image.true.height)
    return Picture(
        image=image.image,
        dice=image.dice,
        width=image.true.width,
        height=image.true.height,
        missed=int(np.count_nonzero(missed)),
        invented=int(np.count_nonzero(invented)),
        spot=(*busiest_window(missed | invented, window), *window),
        masks=_data_uri(
            "png", _encode_palette(true.view(np.uint8) + 2 * predicted.view(np.uint8), MASK_COLOURS)
        ),
        photo=photo,
        ground=_data_uri("jpeg", _draw_ground(image.photo, true & predicted, shrink)),
        marks=_data_uri("png", _draw_marks(missed, invented, shrink)),
        note=note,
    )


def _reduce(picture: Picture, step: int) -> Picture:
    """The same with its photo, if it has one, as at another of PHOTO_STEPS, or without it after the last."""
    if not picture.photo:
        return picture
    with Image.open(io.BytesIO(base64.b64decode(picture.photo.partition(",")[2]))) as image:
        photo, note = _fit_photo(image, (picture.width, picture.height), step)
    return replace(picture, photo=photo, note=note)


def _fit_photo(image: Image.Image, size: tuple[int, int], step: int) -> tuple[str, str]:
    """A photo of ``size`` (width, height), or a reduced one, at ``step`` of PHOTO_STEPS; and what to note."""
    if step == len(PHOTO_STEPS):
        return "", "The photo was left out to keep this page small."
    quality, divisor = PHOTO_STEPS[step]
    reduced = max(1, size[0] // divisor), max(1, size[1] // divisor)
    if image.size != reduced:
        image = image.resize(reduced, Image.Resampling.BOX)
    note = f"The photo was reduced to {reduced[0]}x{reduced[1]} to keep this page small."
    return _data_uri("jpeg", _encode_jpeg(image, quality)), note if divisor > 1 else ""


def _encode_palette(indices: NDArray[np.uint8], colours: list[int], transparent: int | None = None) -> bytes:
    """A PNG of (H, W) places in a list of at most four colours, three channels each."""
    image = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    image.putpalette(colours)
    file = io.BytesIO()
    image.save(file, "PNG", bits=2, transparency=transparent)
    return file.getvalue()


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _draw_ground(photo: NDArray[np.uint8] | None, agreed: NDArray[np.bool_], step: int) -> bytes:
    """The photo, or else what both masks have, in pale grey and ``step`` times smaller, as JPEG."""
    if photo is None:
        grey = np.where(agreed, AGREED_GREY, EMPTY_GREY).astype(np.uint8)
    else:
        grey = 255 - (255 - np.asarray(Image.fromarray(photo).convert("L"))) // 2
    size = -(-grey.shape[1] // step), -(-grey.shape[0] // step)
    return _encode_jpeg(Image.fromarray(grey).resize(size, Image.Resampling.BOX), THUMBNAIL_QUALITY)


def _draw_marks(missed: NDArray[np.bool_], invented: NDArray[np.bool_], step: int) -> bytes:
    """The mistakes, ``step`` times smaller, as PNG that is transparent elsewhere.

    A pixel has the colour of the more frequent mistake in it, so that none is lost, however small it is.
    """
    wrong, too_much = _count_in_cells(missed, step), _count_in_cells(invented, step)
    marks = (wrong > 0).astype(np.uint8)
    marks[too_much > wrong] = 2
    return _encode_palette(marks, [0, 0, 0, *MISSED_COLOUR, *INVENTED_COLOUR], transparent=0)


def _count_in_cells(flags: NDArray[np.bool_], step: int) -> NDArray[np.int64]:
    """How many of ``flags`` (H, W) are in each cell of ``step`` by ``step`` pixels."""
    height, width = -(-flags.shape[0] // step), -(-flags.shape[1] // step)
    rows, columns = np.nonzero(flags)  # few, which is faster than adding up all cells
    cells = rows // step * width + columns // step
    counts: NDArray[np.int64] = np.bincount(cells, minlength=height * width).reshape(height, width)
    return counts


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
