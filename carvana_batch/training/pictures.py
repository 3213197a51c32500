"""Pictures of a training run: what the network is shown, where it is wrong, and how it learns.

matplotlib, which belongs to the extra ``train``, draws the learning curves; the rest needs Pillow alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from carvana_batch.atomic import atomic_writer
from carvana_batch.inputs import shown
from carvana_batch.metrics import SizeError
from carvana_batch.records import PackedMask, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 6
PAPER = (255, 255, 255)
INK = (30, 30, 30)

OUTLINE_COLOUR = (255, 0, 170)
TINT_STRENGTH = 0.12

# Of the palette of Okabe and Ito, which colour-blind readers can tell apart.
MISSED_COLOUR = (0, 114, 178)
INVENTED_COLOUR = (230, 159, 0)
FRAME_GREY = 0

ENLARGED_WIDTH = 320
"""About how many pixels of the photo the enlarged column shows side by side."""

TEXT_SIZE = 16
LINE_HEIGHT = 26
JPEG_QUALITY = 92
JPEG_LONGEST_SIDE = 65500

DOTS_PER_INCH = 100
MOST_MARKERS = 60
LOSS_COLOUR = "#0072b2"
DICE_COLOUR = "#009e73"
BEST_COLOUR = "#d55e00"

FINEST_ERROR = 1e-4
"""Added to 1 - Dice before its logarithm is taken: a Dice of 1 has a place on the axis, too."""

LEAST_EXTENT = 0.5
"""The least powers of ten of the error that the Dice axis covers."""

DICE_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1)


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
    _write(caption, GAP, text)
    return _stack([caption, pictures], gap=0)


def _mark(grey: NDArray[np.uint8], missed: NDArray[Any], invented: NDArray[Any]) -> NDArray[np.uint8]:
    """A grey picture (H, W) with the colour of the more frequent mistake where there is one: (H, W, 3)."""
    marked = np.repeat(grey[:, :, None], 3, axis=2)
    marked[missed > 0] = MISSED_COLOUR
    marked[invented > missed] = INVENTED_COLOUR
    return marked


def busiest_window(flags: NDArray[np.bool_], size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the window of ``size`` (width, height) around the spot with the most of ``flags``.

    ``flags`` is (H, W) bool, a spot half as wide and half as high as the window; so what is worst lies in
    the middle, as far as the border lets it. Without any flags it is the middle of the picture.
    """
    width, height = max(1, size[0] // 2), max(1, size[1] // 2)
    sums = np.zeros((flags.shape[0] + 1, flags.shape[1] + 1), np.int32)
    sums[1:, 1:] = flags.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    rows, columns = np.nonzero(flags[top : top + height, left : left + width])
    if rows.size:
        middle_x = left + (columns.min() + columns.max() + 1) // 2
        middle_y = top + (rows.min() + rows.max() + 1) // 2
    else:
        middle_x, middle_y = flags.shape[1] // 2, flags.shape[0] // 2
    farthest_left, farthest_top = flags.shape[1] - size[0], flags.shape[0] - size[1]
    return (
        int(min(max(middle_x - size[0] // 2, 0), farthest_left)),
        int(min(max(middle_y - size[1] // 2, 0), farthest_top)),
    )


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
        x = _write(legend, x + side + GAP, text) + 4 * GAP
    return legend


def _write(image: Image.Image, x: int, text: str) -> int:
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
    rows, columns = _cell_starts(flags.shape[0], size[1]), _cell_starts(flags.shape[1], size[0])
    counts: NDArray[np.int32] = np.add.reduceat(flags, rows, axis=0, dtype=np.int32)
    return np.add.reduceat(counts, columns, axis=1, dtype=np.int32)


def _cell_starts(length: int, cells: int) -> NDArray[np.int64]:
    """The first of ``length`` pixels that belongs to each of ``cells``.

    Where there are more cells than pixels, pixels repeat, and ``reduceat`` then repeats their values.
    """
    if cells > length:
        return (2 * np.arange(cells) + 1) * length // (2 * cells)
    return -(-np.arange(cells) * length // cells)  # rounded up: pixel x lies in cell x * cells // length


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


def plot_curves(
    lines: Sequence[Mapping[str, Any]], path: Path, size: tuple[float, float] = (11.0, 4.2)
) -> None:
    """Write the learning curves of ``draw_curves`` as a PNG, 100 pixels an inch of ``size``.

    Raises UsageError where matplotlib is missing, and what ``atomic_writer`` raises.
    """
    with _matplotlib_defaults():
        figure = draw_curves(lines, size)
        with atomic_writer(path) as file:
            figure.savefig(file, format="png")


def draw_curves(lines: Sequence[Mapping[str, Any]], size: tuple[float, float] = (11.0, 4.2)) -> Figure:
    """Loss and learning rate, and beside them the Dice of the validation, by epoch.

    ``lines`` are those of a run's log.jsonl, in its order. Those without an epoch are passed over; of what
    an interrupted run wrote twice, the later counts. ``size`` is (width, height) in inches. Where there is
    nothing to draw, the picture says so.

    Raises UsageError where matplotlib is missing.
    """
    with _matplotlib_defaults():
        from matplotlib.figure import Figure

        figure = Figure(size, DOTS_PER_INCH, layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        kept = _without_repeats(lines)
        _plot_loss(left, [line for line in kept if "loss" in line])
        _plot_dice(right, [{**line["val"], "epoch": line["epoch"]} for line in kept if "val" in line])
        return figure


@contextmanager
def _matplotlib_defaults() -> Iterator[None]:
    """A block in which matplotlib draws as it does for everyone, whatever the user's matplotlibrc says."""
    try:
        from matplotlib import style
    except ImportError as error:
        raise UsageError(
            "Learning curves need the package matplotlib: pip install 'carvana-batch[train]'"
        ) from error
    with style.context("default"):
        yield


def _without_repeats(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Lines with an epoch, less those that a run wrote after its last checkpoint and then once more."""
    kept: dict[tuple[float, bool], Mapping[str, Any]] = {}
    for line in lines:
        if "epoch" not in line:
            continue
        while kept and next(reversed(kept))[0] > line["epoch"]:
            kept.popitem()
        kept[line["epoch"], "val" in line] = line
    return list(kept.values())


def _plot_loss(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    _prepare(axes, "training", "loss")
    if not lines:
        _note(axes, "no step logged yet")
        return
    from matplotlib.ticker import LogLocator

    epochs, losses, rates = (_column(lines, name) for name in ("epoch", "loss", "learning_rate"))
    rate_axes = axes.twinx()
    rate_axes.plot(epochs, rates, color="0.75", marker=_marker(epochs), label="learning rate")
    rate_axes.set_ylabel("learning rate", color="0.5")
    rate_axes.tick_params(colors="0.5")
    rate_axes.yaxis.set_major_formatter("{x:g}")
    rate_axes.set_ylim(bottom=0)
    axes.set_zorder(rate_axes.get_zorder() + 1)  # the loss in front
    axes.patch.set_visible(False)
    if (losses > 0).any():
        axes.set_yscale("log", subs=())  # a loss of 0 leads out of the picture at its bottom
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.plot(epochs, losses, color=LOSS_COLOUR, linewidth=1.2, marker=_marker(epochs), label="loss")
    axes.yaxis.label.set_color(LOSS_COLOUR)


def _plot_dice(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    _prepare(axes, "validation", "Dice")
    epochs, dice, low, high = (_column(lines, name) for name in ("epoch", "dice", "dice_05", "dice_95"))
    if not np.isfinite(dice).any():
        _note(axes, "not validated yet")
        return
    _scale_by_error(axes, np.concatenate((dice, low, high)))
    axes.fill_between(
        epochs, low, high, color=DICE_COLOUR, alpha=0.2, linewidth=1, label="5 to 95 % of photos"
    )
    axes.plot(epochs, dice, color=DICE_COLOUR, marker=_marker(epochs), label="mean")
    best = int(np.nanargmax(dice))
    label = f"best: {dice[best]:.4f} at epoch {epochs[best]:g}"
    axes.plot(epochs[[best]], dice[[best]], "*", color=BEST_COLOUR, markersize=14, label=label)
    axes.legend()


def _prepare(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _note(axes: Axes, text: str) -> None:
    axes.grid(False)
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """A value of every line; NaN, which leaves a gap, where a line lacks it."""
    values = (line.get(name) for line in lines)
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _marker(points: NDArray[np.float64]) -> str:
    """A marker where there are few points: a line through a single one would not be seen."""
    return "." if len(points) <= MOST_MARKERS else ""


def _scale_by_error(axes: Axes, dice: NDArray[np.float64]) -> None:
    """Make equal ratios of the error, 1 - Dice, equally high: 0.99 to 0.995 is as much as 0.9 to 0.95."""

    def forward(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return -np.log10(np.maximum(1 + FINEST_ERROR - value, FINEST_ERROR / 100))

    def inverse(height: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 + FINEST_ERROR - 10**-height

    axes.set_yscale("function", functions=(forward, inverse))
    heights = forward(dice[np.isfinite(dice)])
    extent = float(np.ptp(heights))
    margin = max(0.05 * extent, (LEAST_EXTENT - extent) / 2)
    bottom, top = inverse(np.array([heights.min() - margin, heights.max() + margin]))
    axes.set_ylim(bottom, top)
    ticks = [tick for tick in DICE_TICKS if bottom <= tick <= top]
    if len(ticks) > 2:  # otherwise the range is so narrow that matplotlib's own ticks do
        axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter("{x:g}")
