#!/usr/bin/env python
"""Draw photos per second as bars, from a table in docs/benchmarks-log.md.

scripts/speed_chart.py docs/speed.png
scripts/speed_chart.py docs/ray-speed.png --heading "## What Ray costs" --first "two Ray workers"
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from matplotlib.figure import Figure

LOG = Path(__file__).parent.parent / "docs" / "benchmarks-log.md"

WIDTH, HEIGHT = 8.0, 2.6
"""Of the picture, in inches."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="the picture")
    parser.add_argument("--heading", default="## Speed relative to other methods", help="of the section")
    parser.add_argument("--first", default="predict", help="row that is highlighted")
    arguments = parser.parse_args()
    rates = read_rates(LOG.read_text(encoding="utf-8"), arguments.heading)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#00684a" if name == arguments.first else "#9aa5ab" for name in rates]
    bars = axes.barh(list(rates), list(rates.values()), color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    figure.supxlabel("photos per second, 1918×1280, two CPU cores; all with the same weights", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    figure.savefig(arguments.path, dpi=110)


def read_rates(text: str, heading: str) -> dict[str, float]:
    """Photos per second of each row, in the order of the first table below a heading."""
    section = text.partition(f"\n{heading}")[2].partition("\n## ")[0]
    return {name: float(rate) for name, rate in re.findall(r"^\| ([^|]+) \| ([0-9.]+)", section, re.M)}


if __name__ == "__main__":
    main()
