"""Pictures of a training run: samples as the network sees them, and where predicted masks are wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from carvana_batch.errors import UsageError
from carvana_batch.files import atomic_writer
from carvana_batch.masks.counts import SizeError
from carvana_batch.scoring.mistakes import INVENTED_COLOUR, MISSED_COLOUR, busiest_window
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

GAP = 6
"""Pixels between two pictures."""

BACKGROUND_COLOUR = (255, 255, 255)

TEXT_COLOUR = (30, 30, 30)

OUTLINE_COLOUR = (255, 0, 170)

UNKNOWN_COLOUR = (255, 200, 0)

TINT_STRENGTH = 0.12

FRAME_GREY = 0

ENLARGED_WIDTH = 320
"""About how many pixels of the photo the enlarged column is wide."""

TEXT_SIZE = 16

LINE_HEIGHT = 26

JPEG_QUALITY = 92

JPEG_LONGEST_SIDE = 65500
"""Longest side in pixels that libjpeg writes."""


def draw_samples(
    samples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]],
    columns: int = 4,
    width: int = 400,
) -> Image.Image:
    """Draw a contact sheet of training samples.

    The car is tinted, its outline is drawn where the soft mask crosses one half, and unknown pixels are flat.

    Args:
        samples: (H, W, 3) uint8 photos and their (H, W) uint8 masks: the soft ones, 0 to 255, and
            those of known pixels, 255 or 0. The sizes of samples may differ.
        columns: number of samples side by side.
        width: of each sample in the sheet, in pixels.

    Raises:
        ValueError: there are no samples.
    """
    cells = [_draw_sample(*sample, width) for sample in samples]
    return _stack([_join(cells[first : first + columns]) for first in range(0, len(cells), columns)])


def _draw_sample(
    photo: NDArray[np.uint8], mask: NDArray[np.uint8], known: NDArray[np.uint8], width: int
) -> Image.Image:
    size = _scaled_size(photo, width)
    pixels = _shrink(photo, size).astype(np.float32)
    cover = _shrink(mask, size)[:, :, None] * np.float32(TINT_STRENGTH / 255)
    pixels += (np.array(OUTLINE_COLOUR, np.float32) - pixels) * cover
    drawn = pixels.round().astype(np.uint8)
    drawn[_count_in_cells(_outline(mask >= 128), size) > 0] = OUTLINE_COLOUR
    drawn[_shrink(known, size) < 128] = UNKNOWN_COLOUR
    return Image.fromarray(drawn)


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels inside with a direct neighbour outside, (H, W) bool."""
    around = np.pad(inside, 1, mode="edge")  # no outline where the photo cuts off the car
    surrounded = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside & ~surrounded


@dataclass(frozen=True, slots=True)
class Panel:
    """A photo whose predicted mask is compared with the true one.

    Attributes:
        title: text above the photo.
        photo: (H, W, 3) uint8.
        true: the true mask.
        predicted: the predicted mask.
        dice: their Dice.
    """

    title: str
    photo: NDArray[np.uint8] = field(repr=False)
    true: PackedMask
    predicted: PackedMask
    dice: float


def draw_panels(panels: Sequence[Panel], width: int = 640) -> Image.Image:
    """Draw the wrong pixels of some photos, one row per photo, below a legend.

    A row shows the photo; the photo in grey with wrong pixels in colour, every one of them visible even in a
    reduced picture; and the part with most of them, enlarged without smoothing. That part is framed in the
    second column.

    Args:
        panels: the photos and masks.
        width: of each of the three columns, in pixels.

    Raises:
        ValueError: there are no panels.
        SizeError: a mask does not have the size of its photo.
    """
    return _stack([_draw_legend(width), *(_draw_row(panel, width) for panel in panels)] if panels else [])


def _draw_row(panel: Panel, width: int) -> Image.Image:
    height, photo_width = panel.photo.shape[:2]
    for name, mask in (("true", panel.true), ("predicted", panel.predicted)):
        if (mask.width, mask.height) != (photo_width, height):
            raise SizeError(
                f"{shown(panel.title)}: the photo is {photo_width}x{height} pixels, "
                f"its {name} mask {mask.width}x{mask.height}."
            )
    true, predicted = panel.true.to_bool(), panel.predicted.to_bool()
    missed, invented = true & ~predicted, predicted & ~true
    grey = np.asarray(Image.fromarray(panel.photo).convert("L"))
    pale = 255 - (255 - grey) // 2  # so that both colours are visible on a black car
    size = _scaled_size(panel.photo, width)

    factor = max(1, round(width / ENLARGED_WIDTH), width // photo_width)
    window = min(photo_width, -(-size[0] // factor)), min(height, -(-size[1] // factor))
    left, top = busiest_window(missed | invented, window)
    region = np.s_[top : top + window[1], left : left + window[0]]
    near = _mark(pale[region], missed[region], invented[region]).repeat(factor, axis=0).repeat(factor, axis=1)
    enlarged = Image.new("RGB", size, BACKGROUND_COLOUR)
    enlarged.paste(Image.fromarray(near))

    far = Image.fromarray(_shrink(pale, size))
    scale = size[0] / photo_width
    start = left * scale, top * scale
    end = max(start[0], (left + window[0]) * scale - 1), max(start[1], (top + window[1]) * scale - 1)
    # The frame is drawn first, so that it hides no wrong pixel.
    ImageDraw.Draw(far).rectangle((start, end), outline=FRAME_GREY, width=2)
    marked = _mark(np.asarray(far), _count_in_cells(missed, size), _count_in_cells(invented, size))

    text = (
        f"{shown(panel.title)}    Dice {panel.dice:.4f}    "
        f"missed {np.count_nonzero(missed):,} px, invented {np.count_nonzero(invented):,} px"
    )
    pictures = _join([Image.fromarray(_shrink(panel.photo, size)), Image.fromarray(marked), enlarged])
    caption = Image.new("RGB", (pictures.width, LINE_HEIGHT), BACKGROUND_COLOUR)
    write_text(caption, GAP, text)
    return _stack([caption, pictures], gap=0)


def _mark(grey: NDArray[np.uint8], missed: NDArray[Any], invented: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour the wrong pixels of a grey picture.

    Args:
        grey: (H, W) uint8.
        missed: (H, W), true or the number of missed pixels at each position.
        invented: (H, W), the same for invented pixels.

    Returns:
        (H, W, 3) uint8; where both kinds occur, the more frequent one has its colour.
    """
    marked = np.repeat(grey[:, :, None], 3, axis=2)
    marked[missed > 0] = MISSED_COLOUR
    marked[invented > missed] = INVENTED_COLOUR
    return marked


def _draw_legend(width: int) -> Image.Image:
    legend = Image.new("RGB", (3 * width + 2 * GAP, LINE_HEIGHT), BACKGROUND_COLOUR)
    draw = ImageDraw.Draw(legend)
    side, top = LINE_HEIGHT - 12, 6
    x = GAP
    for colour, text in (
        (MISSED_COLOUR, "missed: car that the mask lacks"),
        (INVENTED_COLOUR, "invented: mask where there is no car"),
        (None, "where most mistakes are, enlarged at the right"),
    ):
        box = [x, top, x + side, top + side]
        if colour is None:
            draw.rectangle(box, outline=(FRAME_GREY,) * 3, width=2)
        else:
            draw.rectangle(box, fill=colour)
        x = write_text(legend, x + side + GAP, text) + 4 * GAP
    return legend


def write_text(image: Image.Image, x: int, text: str) -> int:
    """Write a line of text ``x`` pixels from the left, vertically centred, and return the x of its end."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=TEXT_SIZE)
    draw.text((x, image.height // 2), text, fill=TEXT_COLOUR, font=font, anchor="lm")
    return x + math.ceil(draw.textlength(text, font=font))


def _scaled_size(photo: NDArray[np.uint8], width: int) -> tuple[int, int]:
    """Return the (width, height) of a photo (H, W, 3) that is scaled to ``width``."""
    return width, max(1, round(photo.shape[0] * width / photo.shape[1]))


def _shrink(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale a picture to ``size`` (width, height): average areas, or repeat pixels to enlarge it."""
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _count_in_cells(flags: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.int32]:
    """Count the true ``flags``, (H, W), that each pixel of a picture of ``size`` (width, height) covers."""
    rows, columns = _cell_starts(flags.shape[0], size[1]), _cell_starts(flags.shape[1], size[0])
    counts: NDArray[np.int32] = np.add.reduceat(flags, rows, axis=0, dtype=np.int32)
    return np.add.reduceat(counts, columns, axis=1, dtype=np.int32)


def _cell_starts(length: int, cells: int) -> NDArray[np.int64]:
    """Divide ``length`` pixels into ``cells`` and return the first pixel of each cell, (cells,) int64.

    The result is made for ``np.add.reduceat``. If there are more cells than pixels, pixels repeat, and
    ``reduceat`` repeats their values.
    """
    if cells > length:
        return (2 * np.arange(cells) + 1) * length // (2 * cells)
    return -(-np.arange(cells) * length // cells)  # ceiling: pixel x lies in cell x * cells // length


def _join(cells: Sequence[Image.Image]) -> Image.Image:
    """Put pictures side by side, aligned at the top."""
    width = sum(cell.width for cell in cells) + GAP * (len(cells) - 1)
    joined = Image.new("RGB", (width, max(cell.height for cell in cells)), BACKGROUND_COLOUR)
    x = 0
    for cell in cells:
        joined.paste(cell, (x, 0))
        x += cell.width + GAP
    return joined


def _stack(rows: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Put pictures one below the other, aligned at the left.

    Raises:
        ValueError: there are none.
    """
    if not rows:
        raise ValueError("there is nothing to draw")
    height = sum(row.height for row in rows) + gap * (len(rows) - 1)
    stacked = Image.new("RGB", (max(row.width for row in rows), height), BACKGROUND_COLOUR)
    y = 0
    for row in rows:
        stacked.paste(row, (0, y))
        y += row.height + gap
    return stacked


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a picture as JPEG or PNG, depending on the suffix of ``path``.

    Raises:
        UsageError: another suffix, or a picture that is too large for a JPEG.
        CarvanaBatchError: see :func:`~carvana_batch.files.atomic_writer`.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jpg", ".jpeg", ".png"):
        raise UsageError(f"Cannot write {shown(path)}: name a file that ends in .jpg or .png.")
    if suffix != ".png" and max(image.size) > JPEG_LONGEST_SIDE:
        size = f"{image.width}x{image.height}"
        raise UsageError(f"Cannot write {shown(path)}: a JPEG cannot have {size} pixels. Choose .png.")
    with atomic_writer(path) as file:
        if suffix == ".png":
            image.save(file, "PNG")
        else:
            # Chroma subsampling would blur lines that are one pixel wide.
            image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
