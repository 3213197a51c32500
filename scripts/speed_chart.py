#!/usr/bin/env python
"""Draw docs/speed.png: photos per second of predict and its peers, from the table in docs/benchmarks-log.md.

scripts/speed_chart.py docs/speed.png
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

LOG = Path(__file__).parent.parent / "docs" / "benchmarks-log.md"

HEADING = "## Speed relative to other methods"

WIDTH, HEIGHT = 8.0, 2.6
"""Of the picture, in inches."""


def main(path: Path) -> None:
    rates = read_rates(LOG.read_text(encoding="utf-8"))
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#00684a" if name == "predict" else "#9aa5ab" for name in rates]
    bars = axes.barh(list(rates), list(rates.values()), color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    figure.supxlabel("photos per second, 1918×1280, two CPU cores; all with the same weights", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    figure.savefig(path, dpi=110)


def read_rates(text: str) -> dict[str, float]:
    """Photos per second of each method, in the order of the table below ``HEADING``."""
    section = text.partition(f"\n{HEADING}")[2].partition("\n## ")[0]
    return {name: float(rate) for name, rate in re.findall(r"^\| ([^|]+) \| ([0-9.]+) \|", section, re.M)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
