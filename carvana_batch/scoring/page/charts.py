"""Charts of Dice as HTML fragments: a histogram, and the spread within groups of images.

They are readable without JavaScript, at any width and with screen readers. Horizontal positions are
percentages of the width, so that text keeps its size when the chart becomes narrow. Colours come from the
style sheet of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from carvana_batch.pages.rendering import render_fragment

PACKAGE = "carvana_batch.scoring.page"

TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1)

ERROR_OFFSET = 1e-4
"""Added to 1 - Dice before taking its logarithm, so that a Dice of 1 has a position on the axis."""

TICK_GAP, NARROW_TICK_GAP, SPREAD_TICK_GAP = 5, 15, 20
"""Least distance of ticks in percent of the width: in a wide and in a narrow histogram, and in a spread."""

BARS_TOP, BARS_BOTTOM = 30, 168
"""Top and bottom of the highest bar of the histogram, in CSS pixels from the top of the chart."""

WRAP_LENGTH = 16
"""Names with more characters than this may wrap."""

MIN_BINS, MAX_BINS = 8, 48


@dataclass(frozen=True, slots=True)
class DiceAxis:
    """A logarithmic axis of 1 - Dice between two of the ``TICKS``, which spreads out values close to 1.

    Equal distances on the axis multiply 1 - Dice by equal factors.
    """

    low: float
    high: float

    @classmethod
    def around(cls, dice: Sequence[float]) -> DiceAxis:
        """Make the shortest axis that contains all ``dice``.

        Raises:
            ValueError: ``dice`` is empty.
        """
        low = max(tick for tick in TICKS[:-1] if tick <= max(min(dice), 0))
        high = min(tick for tick in TICKS if tick >= min(max(dice), 1) and tick > low)
        return cls(low, high)

    def position(self, dice: float) -> float:
        """Return the position of ``dice``, in percent from the left."""
        start, end = _log_error(self.low), _log_error(self.high)
        return 100 * min(max((_log_error(dice) - start) / (end - start), 0), 1)

    def bin_edges(self, bins: int) -> list[float]:
        """Return the ``bins`` + 1 values of Dice that divide the axis into bins of equal width."""
        steps = np.linspace(_log_error(self.low), _log_error(self.high), bins + 1)
        return [self.low, *(1 + ERROR_OFFSET - 10 ** -float(step) for step in steps[1:-1]), self.high]

    def ticks(self, gap: float) -> list[float]:
        """Return both ends, and the ``TICKS`` between them that are at least ``gap`` percent apart.

        Ticks keep 1.5 times that distance from the ends, because the labels of the ends are not centred.
        """
        kept = [self.low]
        for tick in (tick for tick in TICKS if self.low < tick < self.high):
            position, last = self.position(tick), self.position(kept[-1])
            if position - last >= (gap if last else 1.5 * gap) and 100 - position >= 1.5 * gap:
                kept.append(tick)
        return [*kept, self.high]


def _log_error(dice: float) -> float:
    return -math.log10(1 - dice + ERROR_OFFSET)


def draw_histogram(dice: Sequence[float], axis: DiceAxis) -> Markup:
    """Draw the number of images by Dice: a figure, followed by a table of the same numbers."""
    edges = axis.bin_edges(min(max(round(1.5 * math.sqrt(len(dice))), MIN_BINS), MAX_BINS))
    counts = np.histogram(dice, edges)[0].tolist()
    highest, mean = max(counts), float(np.mean(dice))
    bars = [
        {
            "left": axis.position(low),
            "width": axis.position(high) - axis.position(low),
            "height": max((BARS_BOTTOM - BARS_TOP) * count / highest, 1.5),
            "range": _format_range(low, high),
            "count": count,
        }
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    marked = _round_down(highest)
    return render_fragment(
        PACKAGE,
        "histogram.html",
        dice=dice,
        mean=mean,
        mean_x=axis.position(mean),
        bars=bars,
        bottom=BARS_BOTTOM,
        line={"count": marked, "y": BARS_BOTTOM - (BARS_BOTTOM - BARS_TOP) * marked / highest},
        ticks=_place_ticks(axis, axis.ticks(TICK_GAP), axis.ticks(NARROW_TICK_GAP)),
        tick_y=BARS_BOTTOM + 18,
    )


def _round_down(count: int) -> int:
    """Round down to one of 1, 2, 5, 10, 20, 50 and so on."""
    power: int = 10 ** (len(str(count)) - 1)
    return max(power * digit for digit in (1, 2, 5) if power * digit <= count)


def _place_ticks(
    axis: DiceAxis, ticks: Sequence[float], narrow_ticks: Sequence[float]
) -> list[dict[str, object]]:
    """Place the labels of ``ticks``; narrow screens show only those that are also in ``narrow_ticks``."""
    return [
        {
            "x": axis.position(tick),
            "label": f"{tick:g}",
            "narrow": tick in narrow_ticks,
            "anchor": "start" if tick == axis.low else "end" if tick == axis.high else "middle",
        }
        for tick in ticks
    ]


@dataclass(frozen=True, slots=True)
class Spread:
    """The Dice of a group of images.

    Attributes:
        name: name of the group.
        filter: text for the filter of the table that selects the group.
        dice: the Dice of each image.
    """

    name: str
    filter: str
    dice: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.dice))


def draw_spreads(spreads: Sequence[Spread], axis: DiceAxis, heading: str) -> Markup:
    """Draw a table with a row per group: the range of Dice as a chart, its mean and its lowest value.

    ``heading`` is the heading of the names, which are links to the images of the group.
    """
    return render_fragment(
        PACKAGE,
        "spreads.html",
        heading=heading,
        rows=[_place_spread(spread, axis) for spread in spreads],
        grid=[axis.position(tick) for tick in axis.ticks(SPREAD_TICK_GAP)],
        ticks=_place_ticks(axis, axis.ticks(SPREAD_TICK_GAP), (axis.low, axis.high)),
        tick_y=12,
    )


def _place_spread(spread: Spread, axis: DiceAxis) -> dict[str, object]:
    names = ("low", "first_quartile", "third_quartile", "high")
    quartiles = np.percentile(spread.dice, [0, 25, 75, 100]).tolist()
    return {
        "name": spread.name,
        "long": len(spread.name) > WRAP_LENGTH,
        "filter": spread.filter,
        "mean": spread.mean,
        "mean_x": axis.position(spread.mean),
        "lowest": min(spread.dice),
        "images": len(spread.dice),
        **{name: axis.position(dice) for name, dice in zip(names, quartiles, strict=True)},
    }


def _format_range(low: float, high: float) -> str:
    return f"{low:.5f} to {high:.5f}"
