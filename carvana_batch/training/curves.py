"""Learning curves, drawn with matplotlib, which the extra ``train`` installs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import UsageError
from carvana_batch.files import atomic_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 100
MAX_MARKERS = 60
"""A curve of more points than this has no markers."""

LOSS_COLOUR = "#0072b2"
DICE_COLOUR = "#009e73"
BEST_COLOUR = "#d55e00"

ERROR_OFFSET = 1e-4
"""Added to 1 - Dice before its logarithm is taken, so that a Dice of 1 is on the axis."""

MIN_DICE_DECADES = 0.5
"""Smallest range of the Dice axis, in powers of ten of the error."""

DICE_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1)


def plot_curves(
    lines: Sequence[Mapping[str, Any]], path: Path, size: tuple[float, float] = (11.0, 4.2)
) -> None:
    """Write the learning curves as a PNG with 100 pixels per inch.

    Args:
        lines: see :func:`draw_curves`.
        path: the file to write.
        size: (width, height) in inches.

    Raises:
        UsageError: matplotlib is not installed.
        CarvanaBatchError: see :func:`~carvana_batch.files.atomic_writer`.
    """
    with _matplotlib_defaults():
        figure = draw_curves(lines, size)
        with atomic_writer(path) as file:
            figure.savefig(file, format="png")


def draw_curves(lines: Sequence[Mapping[str, Any]], size: tuple[float, float] = (11.0, 4.2)) -> Figure:
    """Draw loss and learning rate by epoch, and beside them the validation Dice.

    If there is nothing to draw, the picture says so.

    Args:
        lines: the lines of a run's log.jsonl, in their order. Lines without an epoch are ignored.
        size: (width, height) in inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    with _matplotlib_defaults():
        from matplotlib.figure import Figure

        figure = Figure(size, DOTS_PER_INCH, layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        kept = [line for line in lines if "epoch" in line]
        _plot_loss(left, [line for line in kept if "loss" in line])
        _plot_dice(right, [{**line["val"], "epoch": line["epoch"]} for line in kept if "val" in line])
        return figure


@contextmanager
def _matplotlib_defaults() -> Iterator[None]:
    """Let matplotlib use its default style instead of the user's matplotlibrc."""
    try:
        from matplotlib import style
    except ImportError as error:
        raise UsageError(
            "Learning curves need the package matplotlib: pip install 'carvana-batch[train]'"
        ) from error
    with style.context("default"):
        yield


def _plot_loss(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    _prepare(axes, "training", "loss")
    if not lines:
        _note(axes, "no step logged yet")
        return
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    epochs, losses, rates = (_column(lines, name) for name in ("epoch", "loss", "learning_rate"))
    rate_axes = axes.twinx()
    rate_axes.plot(epochs, rates, color="0.75", marker=_marker(epochs), label="learning rate")
    rate_axes.set_ylabel("learning rate", color="0.5")
    rate_axes.tick_params(colors="0.5")
    rate_axes.yaxis.set_major_formatter("{x:g}")
    rate_axes.set_ylim(bottom=0)
    axes.set_zorder(rate_axes.get_zorder() + 1)  # draws the loss in front
    axes.patch.set_visible(False)
    positive = losses[losses > 0]
    if positive.size:
        axes.set_yscale("log")  # a loss of 0 is clipped at the bottom
        is_wide = positive.max() > 10 * positive.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if is_wide else MaxNLocator(6))
        axes.yaxis.set_minor_locator(NullLocator())
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
    """Return one value per line; NaN, which leaves a gap in the curve, if a line lacks it."""
    values = (line.get(name) for line in lines)
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _marker(points: NDArray[np.float64]) -> str:
    """Return a marker if there are few points, because a line through a single point is invisible."""
    return "." if len(points) <= MAX_MARKERS else ""


def _scale_by_error(axes: Axes, dice: NDArray[np.float64]) -> None:
    """Scale the Dice axis by log(1 - Dice), so that 0.9 to 0.95 is as high as 0.99 to 0.995."""

    def forward(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return -np.log10(np.maximum(1 + ERROR_OFFSET - value, ERROR_OFFSET / 100))

    def inverse(height: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 + ERROR_OFFSET - 10**-height

    axes.set_yscale("function", functions=(forward, inverse))
    heights = forward(dice[np.isfinite(dice)])
    extent = float(np.ptp(heights))
    margin = max(0.05 * extent, (MIN_DICE_DECADES - extent) / 2)
    bottom, top = inverse(np.array([heights.min() - margin, heights.max() + margin]))
    axes.set_ylim(bottom, top)
    ticks = [tick for tick in DICE_TICKS if bottom <= tick <= top]
    if len(ticks) > 2:  # in a narrower range, matplotlib's own ticks are better
        axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter("{x:g}")
