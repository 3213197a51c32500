"""Pictures of a training run: what the network is shown, and where it is wrong."""

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
from carvana_batch.scoring.mistakes import INVENTED_COLOUR, MISSED_COLOUR, busiest_window, cell_starts
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

GAP = 6

PAPER = (255, 255, 255)

INK = (30, 30, 30)

OUTLINE_COLOUR = (255, 0, 170)

TINT_STRENGTH = 0.12

FRAME_GREY = 0

ENLARGED_WIDTH = 320
"""About how many pixels of the photo the enlarged column shows side by side."""

TEXT_SIZE = 16

LINE_HEIGHT = 26

JPEG_QUALITY = 92

JPEG_LONGEST_SIDE = 65500


def draw_samples(
    samples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], columns: int = 4, width: int = 400
) -> Image.Image:
    """A contact sheet of training samples, ``columns`` side by side, each ``width`` pixels wide.

    A sample is a photo (H, W, 3) uint8 and its soft mask (H, W) uint8, 0 to 255. The car is tinted, and its
    outline is drawn where the soft mask crosses half. Samples may differ in size and shape.

    Raises ValueError where there are no samples.
    """
    cells = [_draw_sample(photo, mask, width) for photo, mask in samples]
    return _stack([_join(cells[first : first + columns]) for first in range(0, len(cells), columns)])


def _draw_sample(photo: NDArray[np.uint8], mask: NDArray[np.uint8], width: int) -> Image.Image:
    size = _scaled_size(photo, width)
    pixels = _shrink(photo, size).astype(np.float32)
    cover = _shrink(mask, size)[:, :, None] * np.float32(TINT_STRENGTH / 255)
    pixels += (np.array(OUTLINE_COLOUR, np.float32) - pixels) * cover
    drawn = pixels.round().astype(np.uint8)
    drawn[_count_in_cells(_outline(mask >= 128), size) > 0] = OUTLINE_COLOUR
    return Image.fromarray(drawn)


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels inside that have one outside above, below, left or right of them; (H, W) bool."""
    around = np.pad(inside, 1, mode="edge")  # where the photo cuts the car off is no outline
    surrounded = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside & ~surrounded


@dataclass(frozen=True, slots=True)
class Panel:
    """A photo (H, W, 3) uint8 with its true and its predicted mask, and what to write above it."""

    title: str
    photo: NDArray[np.uint8] = field(repr=False)
    true: PackedMask
    predicted: PackedMask
    dice: float


def draw_panels(panels: Sequence[Panel], width: int = 640) -> Image.Image:
    """The mistakes in some photos, a row each, below a legend; every column is ``width`` pixels wide.

    A row shows the photo; the photo in grey with the wrong pixels in colour, none of them lost however
    small the picture is; and the place with the most of them, enlarged without smoothing (it is framed in
    the second column).

    Raises ValueError where there are no panels, SizeError where a mask is not of its photo's size.
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
    pale = 255 - (255 - grey) // 2  # so that both colours stand out from the darkest car
    size = _scaled_size(panel.photo, width)

    factor = max(1, round(width / ENLARGED_WIDTH), width // photo_width)
    window = min(photo_width, -(-size[0] // factor)), min(height, -(-size[1] // factor))
    left, top = busiest_window(missed | invented, window)
    part = np.s_[top : top + window[1], left : left + window[0]]
    near = _mark(pale[part], missed[part], invented[part]).repeat(factor, axis=0).repeat(factor, axis=1)
    enlarged = Image.new("RGB", size, PAPER)
    enlarged.paste(Image.fromarray(near))

    far = Image.fromarray(_shrink(pale, size))
    scale = size[0] / photo_width
    start = left * scale, top * scale
    end = max(start[0], (left + window[0]) * scale - 1), max(start[1], (top + window[1]) * scale - 1)
    ImageDraw.Draw(far).rectangle((start, end), outline=FRAME_GREY, width=2)  # below the marks: it hides none
    marked = _mark(np.asarray(far), _count_in_cells(missed, size), _count_in_cells(invented, size))

    text = (
        f"{shown(panel.title)}    Dice {panel.dice:.4f}    "
        f"missed {np.count_nonzero(missed):,} px, invented {np.count_nonzero(invented):,} px"
    )
    pictures = _join([Image.fromarray(_shrink(panel.photo, size)), Image.fromarray(marked), enlarged])
    caption = Image.new("RGB", (pictures.width, LINE_HEIGHT), PAPER)
    write_text(caption, GAP, text)
    return _stack([caption, pictures], gap=0)


def _mark(grey: NDArray[np.uint8], missed: NDArray[Any], invented: NDArray[Any]) -> NDArray[np.uint8]:
    """A grey picture (H, W) with the colour of the more frequent mistake where there is one: (H, W, 3)."""
    marked = np.repeat(grey[:, :, None], 3, axis=2)
    marked[missed > 0] = MISSED_COLOUR
    marked[invented > missed] = INVENTED_COLOUR
    return marked


def _draw_legend(width: int) -> Image.Image:
    legend = Image.new("RGB", (3 * width + 2 * GAP, LINE_HEIGHT), PAPER)
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
    """Write a line of text ``x`` pixels from the left, halfway down; returns where it ends."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=TEXT_SIZE)
    draw.text((x, image.height // 2), text, fill=INK, font=font, anchor="lm")
    return x + math.ceil(draw.textlength(text, font=font))


def _scaled_size(photo: NDArray[np.uint8], width: int) -> tuple[int, int]:
    """Width and height of a photo (H, W, 3) at another width."""
    return width, max(1, round(photo.shape[0] * width / photo.shape[1]))


def _shrink(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture averaged down to ``size`` (width, height); a small one is enlarged without smoothing."""
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _count_in_cells(flags: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.int32]:
    """How many of ``flags`` (H, W) bool lie below each pixel of a picture of ``size`` (width, height)."""
    rows, columns = cell_starts(flags.shape[0], size[1]), cell_starts(flags.shape[1], size[0])
    counts: NDArray[np.int32] = np.add.reduceat(flags, rows, axis=0, dtype=np.int32)
    return np.add.reduceat(counts, columns, axis=1, dtype=np.int32)


def _join(cells: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, aligned at their tops."""
    width = sum(cell.width for cell in cells) + GAP * (len(cells) - 1)
    joined = Image.new("RGB", (width, max(cell.height for cell in cells)), PAPER)
    x = 0
    for cell in cells:
        joined.paste(cell, (x, 0))
        x += cell.width + GAP
    return joined


def _stack(rows: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures one below the other, aligned at the left; raises ValueError where there are none."""
    if not rows:
        raise ValueError("there is nothing to draw")
    height = sum(row.height for row in rows) + gap * (len(rows) - 1)
    stacked = Image.new("RGB", (max(row.width for row in rows), height), PAPER)
    y = 0
    for row in rows:
        stacked.paste(row, (0, y))
        y += row.height + gap
    return stacked


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a picture as JPEG or PNG, as the suffix of ``path`` says.

    Raises UsageError for another suffix and for a picture too large for a JPEG, and what ``atomic_writer``
    raises.
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
            # Without subsampling: it would wash out lines of one pixel.
            image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
