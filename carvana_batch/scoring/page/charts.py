"""Charts of Dice as HTML fragments: a histogram, and the spread within groups of images.

They are readable without JavaScript, at any width and with screen readers. Horizontal positions are
percentages of the width, so that text keeps its size when the chart becomes narrow. Colours come from the
style sheet of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from carvana_batch.text import counted, shown

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


def draw_histogram(dice: Sequence[float], axis: DiceAxis) -> str:
    """Draw the number of images by Dice: a figure, followed by a table of the same numbers."""
    edges = axis.bin_edges(min(max(round(1.5 * math.sqrt(len(dice))), MIN_BINS), MAX_BINS))
    counts = np.histogram(dice, edges)[0].tolist()
    highest, mean = max(counts), float(np.mean(dice))
    parts = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            height = max((BARS_BOTTOM - BARS_TOP) * count / highest, 1.5)
            parts.append(
                f'<rect class="bar" x="{axis.position(low):.2f}%" y="{BARS_BOTTOM - height:.1f}"'
                f' width="{axis.position(high) - axis.position(low):.2f}%" height="{height:.1f}">'
                f"<title>{_format_range(low, high)}: {counted(count, 'image')}</title></rect>"
            )
    parts.append(_draw_count_line(_round_down(highest), highest))
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{BARS_BOTTOM}" y2="{BARS_BOTTOM}"/>')
    parts.append(_draw_ticks(axis, axis.ticks(TICK_GAP), axis.ticks(NARROW_TICK_GAP), BARS_BOTTOM + 18))
    position = axis.position(mean)
    anchor, shift = ("end", -5) if position > 50 else ("start", 5)
    parts.append(
        f'<line class="mean" x1="{position:.2f}%" x2="{position:.2f}%" y1="2" y2="{BARS_BOTTOM}"/>'
        f'<text class="mean-label" x="{position:.2f}%" dx="{shift}" y="13" text-anchor="{anchor}">'
        f"mean {mean:.4f}</text>"
    )
    rows = "".join(
        f"<tr><td>{_format_range(low, high)}</td><td>{count:,}</td></tr>"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    )
    total = counted(len(dice), "image")
    return (
        f'<figure><svg class="histogram" width="100%" height="{BARS_BOTTOM + 24}" role="img"'
        f' aria-label="Histogram of Dice: {total} from {min(dice):.4f} to {max(dice):.4f},'
        f' mean {mean:.4f}. The table below has its numbers.">{"".join(parts)}</svg>'
        "<figcaption>Images by Dice. The scale is stretched towards 1.</figcaption>"
        "<details><summary>The histogram as a table</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="The histogram as a table">'
        '<table class="bins"><thead><tr><th scope="col">Dice</th><th scope="col">Images</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details></figure>"
    )


def _draw_count_line(count: int, highest: int) -> str:
    """Draw a labelled grid line at the height of a bar of ``count`` images."""
    y = BARS_BOTTOM - (BARS_BOTTOM - BARS_TOP) * count / highest
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick on-bars" x="0" y="{y - 5:.1f}">{counted(count, "image")}</text>'
    )


def _round_down(count: int) -> int:
    """Round down to one of 1, 2, 5, 10, 20, 50 and so on."""
    power: int = 10 ** (len(str(count)) - 1)
    return max(power * digit for digit in (1, 2, 5) if power * digit <= count)


def _draw_ticks(axis: DiceAxis, ticks: Sequence[float], narrow_ticks: Sequence[float], y: int) -> str:
    """Draw the labels of ``ticks``; narrow screens show only those that are also in ``narrow_ticks``."""
    return "".join(
        f'<text class="tick{"" if tick in narrow_ticks else " fine"}" x="{axis.position(tick):.2f}%" y="{y}"'
        f' text-anchor="{"start" if tick == axis.low else "end" if tick == axis.high else "middle"}">'
        f"{tick:g}</text>"
        for tick in ticks
    )


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


def draw_spreads(spreads: Sequence[Spread], axis: DiceAxis, heading: str) -> str:
    """Draw a table with a row per group: the range of Dice as a chart, its mean and its lowest value.

    ``heading`` is the heading of the names, which are links to the images of the group.
    """
    scale = _draw_ticks(axis, axis.ticks(SPREAD_TICK_GAP), (axis.low, axis.high), 12)
    rows = "".join(_draw_spread(spread, axis) for spread in spreads)
    return (
        f'<div class="scroll"><table class="groups"><thead><tr><th scope="col">{escape(heading)}</th>'
        f'<th class="spread"><svg width="100%" height="16" aria-hidden="true">{scale}</svg>'
        '<span class="visually-hidden">Spread of Dice</span></th>'
        '<th scope="col">Mean</th><th scope="col">Lowest</th>'
        '<th scope="col" class="fine">Images</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _draw_spread(spread: Spread, axis: DiceAxis) -> str:
    low, first_quartile, third_quartile, high = (
        axis.position(dice) for dice in np.percentile(spread.dice, [0, 25, 75, 100]).tolist()
    )
    grid = "".join(
        f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%"/>'
        for x in map(axis.position, axis.ticks(SPREAD_TICK_GAP))
    )
    long = ' class="long"' if len(spread.name) > WRAP_LENGTH else ""
    return (
        f'<tr><th scope="row"{long}>'
        f'<a href="#images" data-filter="{escape(shown(spread.filter))}">'
        f"<bdi>{escape(shown(spread.name))}</bdi></a></th>"
        f'<td class="spread"><svg width="100%" height="22" aria-hidden="true">{grid}'
        f'<line class="range" x1="{low:.2f}%" x2="{high:.2f}%" y1="11" y2="11"/>'
        f'<line class="middle" x1="{first_quartile:.2f}%" x2="{third_quartile:.2f}%" y1="11" y2="11"/>'
        f'<circle class="dot" cx="{axis.position(spread.mean):.2f}%" cy="11" r="4"/></svg></td>'
        f"<td>{spread.mean:.4f}</td><td>{min(spread.dice):.4f}</td>"
        f'<td class="fine">{len(spread.dice):,}</td></tr>'
    )


def _format_range(low: float, high: float) -> str:
    return f"{low:.5f} to {high:.5f}"
