"""Learning curves, drawn by matplotlib, which belongs to the extra ``train``."""

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
MOST_MARKERS = 60
LOSS_COLOUR = "#0072b2"
DICE_COLOUR = "#009e73"
BEST_COLOUR = "#d55e00"

FINEST_ERROR = 1e-4
"""Added to 1 - Dice before its logarithm is taken: a Dice of 1 has a place on the axis, too."""

LEAST_EXTENT = 0.5
"""The least powers of ten of the error that the Dice axis covers."""

DICE_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1)


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

    ``lines`` are those of a run's log.jsonl, in its order; those without an epoch are passed over. ``size``
    is (width, height) in inches. Where there is nothing to draw, the picture says so.

    Raises UsageError where matplotlib is missing.
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
    """A block in which matplotlib draws as it does for everyone, whatever the user's matplotlibrc says."""
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
    axes.set_zorder(rate_axes.get_zorder() + 1)  # the loss in front
    axes.patch.set_visible(False)
    positive = losses[losses > 0]
    if positive.size:
        axes.set_yscale("log")  # a loss of 0 leads out of the picture at its bottom
        wide = positive.max() > 10 * positive.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6))
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
