"""Charts of Dice as pieces of HTML: a histogram, and the spread within groups of images.

They are readable without JavaScript, at any width and by screen readers. All places are percentages of the
width, so that text keeps its size while the chart becomes narrow. Colours come from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from carvana_batch.text import shown

TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1)

FINEST_ERROR = 1e-4
"""Added to 1 - Dice before its logarithm is taken: a Dice of 1 has a place on the axis, too."""

GAP, NARROW_GAP, SPREAD_GAP = 5, 15, 20
"""Percent of the width that the number of a tick needs: in a wide and a narrow histogram, and in a spread."""

BAR_TOP, BAR_FOOT = 30, 168
"""From where to where the highest bar of the histogram reaches, in CSS pixels from the top."""

LONG_NAME = 16
"""Characters of a name that are kept on one line."""

FEWEST_BINS, MOST_BINS = 8, 48


@dataclass(frozen=True, slots=True)
class DiceAxis:
    """An axis from one of the ``TICKS`` to another, stretched towards 1, where Dice are bunched.

    What counts is the error: equal steps multiply 1 - Dice by equal factors.
    """

    low: float
    high: float

    @classmethod
    def around(cls, dice: Sequence[float]) -> DiceAxis:
        """The shortest axis on which all ``dice`` have a place; raises ValueError where there are none."""
        low = max(tick for tick in TICKS[:-1] if tick <= max(min(dice), 0))
        high = min(tick for tick in TICKS if tick >= min(max(dice), 1) and tick > low)
        return cls(low, high)

    def place(self, dice: float) -> float:
        """Where ``dice`` lies, in percent from the left."""
        start, end = _stretch(self.low), _stretch(self.high)
        return 100 * min(max((_stretch(dice) - start) / (end - start), 0), 1)

    def divide(self, parts: int) -> list[float]:
        """The ``parts`` + 1 Dice that divide the axis into equally wide parts."""
        steps = np.linspace(_stretch(self.low), _stretch(self.high), parts + 1)
        return [self.low, *(1 + FINEST_ERROR - 10 ** -float(step) for step in steps[1:-1]), self.high]

    def ticks(self, gap: float) -> list[float]:
        """Its two ends and those of the ``TICKS`` between that are ``gap`` percent from each other.

        From the ends they keep one and a half times as far, for the numbers there stand beside their place.
        """
        kept = [self.low]
        for tick in (tick for tick in TICKS if self.low < tick < self.high):
            place, last = self.place(tick), self.place(kept[-1])
            if place - last >= (gap if last else 1.5 * gap) and 100 - place >= 1.5 * gap:
                kept.append(tick)
        return [*kept, self.high]


def _stretch(dice: float) -> float:
    return -math.log10(1 - dice + FINEST_ERROR)


def draw_histogram(dice: Sequence[float], axis: DiceAxis) -> str:
    """How many images have which Dice: a figure with the same numbers as a table below it."""
    edges = axis.divide(min(max(round(1.5 * math.sqrt(len(dice))), FEWEST_BINS), MOST_BINS))
    counts = np.histogram(dice, edges)[0].tolist()
    highest, mean = max(counts), float(np.mean(dice))
    parts = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            height = max((BAR_FOOT - BAR_TOP) * count / highest, 1.5)
            parts.append(
                f'<rect class="bar" x="{axis.place(low):.2f}%" y="{BAR_FOOT - height:.1f}"'
                f' width="{axis.place(high) - axis.place(low):.2f}%" height="{height:.1f}">'
                f"<title>{_between(low, high)}: {count_images(count)}</title></rect>"
            )
    parts.append(_draw_count_line(_round_down(highest), highest))
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{BAR_FOOT}" y2="{BAR_FOOT}"/>')
    parts.append(_draw_ticks(axis, axis.ticks(GAP), axis.ticks(NARROW_GAP), BAR_FOOT + 18))
    place = axis.place(mean)
    anchor, shift = ("end", -5) if place > 50 else ("start", 5)
    parts.append(
        f'<line class="mean" x1="{place:.2f}%" x2="{place:.2f}%" y1="2" y2="{BAR_FOOT}"/>'
        f'<text class="mean-label" x="{place:.2f}%" dx="{shift}" y="13" text-anchor="{anchor}">'
        f"mean {mean:.4f}</text>"
    )
    rows = "".join(
        f"<tr><td>{_between(low, high)}</td><td>{count:,}</td></tr>"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    )
    return (
        f'<figure><svg class="histogram" width="100%" height="{BAR_FOOT + 24}" role="img"'
        f' aria-label="Histogram of Dice: {count_images(len(dice))} from {min(dice):.4f} to {max(dice):.4f},'
        f' mean {mean:.4f}. The table below has its numbers.">{"".join(parts)}</svg>'
        "<figcaption>Images by Dice. The scale is stretched towards 1.</figcaption>"
        "<details><summary>The histogram as a table</summary>"
        '<div class="scroll" tabindex="0" role="region" aria-label="The histogram as a table">'
        '<table class="bins"><thead><tr><th scope="col">Dice</th><th scope="col">Images</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details></figure>"
    )


def _draw_count_line(count: int, highest: int) -> str:
    y = BAR_FOOT - (BAR_FOOT - BAR_TOP) * count / highest
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick on-bars" x="0" y="{y - 5:.1f}">{count_images(count)}</text>'
    )


def _round_down(count: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50 and so on that is not above ``count``."""
    power: int = 10 ** (len(str(count)) - 1)
    return max(power * digit for digit in (1, 2, 5) if power * digit <= count)


def _draw_ticks(axis: DiceAxis, ticks: Sequence[float], on_phone: Sequence[float], y: int) -> str:
    """Numbers at ``ticks``; those that are not among ``on_phone`` are left out on a narrow screen."""
    return "".join(
        f'<text class="tick{"" if tick in on_phone else " fine"}" x="{axis.place(tick):.2f}%" y="{y}"'
        f' text-anchor="{"start" if tick == axis.low else "end" if tick == axis.high else "middle"}">'
        f"{tick:g}</text>"
        for tick in ticks
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """The Dice of images that belong together: what they share, and what to filter for to see them."""

    name: str
    filter: str
    dice: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.dice))


def draw_spreads(spreads: Sequence[Spread], axis: DiceAxis, heading: str) -> str:
    """A table with a row for each: Dice drawn from lowest to highest, its mean and its lowest in figures.

    ``heading`` is that of the names, which lead to the images.
    """
    scale = _draw_ticks(axis, axis.ticks(SPREAD_GAP), (axis.low, axis.high), 12)
    rows = "".join(_draw_spread(spread, axis) for spread in spreads)
    return (
        f'<div class="scroll"><table class="groups"><thead><tr><th scope="col">{escape(heading)}</th>'
        f'<th class="spread"><svg width="100%" height="16" aria-hidden="true">{scale}</svg>'
        '<span class="unseen">Spread of Dice</span></th>'
        '<th scope="col">Mean</th><th scope="col">Lowest</th>'
        '<th scope="col" class="fine">Images</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _draw_spread(spread: Spread, axis: DiceAxis) -> str:
    low, first, last, high = (
        axis.place(dice) for dice in np.percentile(spread.dice, [0, 25, 75, 100]).tolist()
    )
    grid = "".join(
        f'<line class="grid" x1="{axis.place(tick):.2f}%" x2="{axis.place(tick):.2f}%" y1="0" y2="100%"/>'
        for tick in axis.ticks(SPREAD_GAP)
    )
    long = ' class="long"' if len(spread.name) > LONG_NAME else ""
    return (
        f'<tr><th scope="row"{long}>'
        f'<a href="#images" data-filter="{escape(shown(spread.filter))}">'
        f"<bdi>{escape(shown(spread.name))}</bdi></a></th>"
        f'<td class="spread"><svg width="100%" height="22" aria-hidden="true">{grid}'
        f'<line class="range" x1="{low:.2f}%" x2="{high:.2f}%" y1="11" y2="11"/>'
        f'<line class="middle" x1="{first:.2f}%" x2="{last:.2f}%" y1="11" y2="11"/>'
        f'<circle class="dot" cx="{axis.place(spread.mean):.2f}%" cy="11" r="4"/></svg></td>'
        f"<td>{spread.mean:.4f}</td><td>{min(spread.dice):.4f}</td>"
        f'<td class="fine">{len(spread.dice):,}</td></tr>'
    )


def _between(low: float, high: float) -> str:
    return f"{low:.5f} to {high:.5f}"


def count_images(count: int) -> str:
    """``1 image``, ``2 images``."""
    return f"{count:,} image{'' if count == 1 else 's'}"
