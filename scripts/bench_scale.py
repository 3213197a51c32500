#!/usr/bin/env python
"""How the cost of predict grows: with the number of photos, with their size, and with the overlap of tiles.

    scripts/bench_scale.py [PHOTOS] --plot scale.png

Runs carvana-batch predict on links to the photos of a folder, or to a dozen that are drawn; photos of other
sizes are made of the first few by resizing, so many that each run has about as many pixels to do. Sizes and
overlaps take turns, in the opposite order every other turn; ratios are those of a turn to the first row of
their kind, the median with the least and the most in brackets. Photos/s are those of run.json, from the first
photo on. Memory is sampled once a second, so the peaks of short runs are low estimates.

The start is the time until the first mask has its name, the start of Python and torch included; its ratio
says how many photos could be done meanwhile. The plot needs matplotlib: pip install "carvana-batch[train]".
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

from bench_memory import draw_photos, link_photos, measure
from bench_submit_score import find_processor
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.inference.tiles import Tiling
from carvana_batch.inputs.find import find_images
from carvana_batch.network.checkpoints import Model, load_model

COMPETITION_PHOTOS = 100_064
FEWEST_PHOTOS = 4
SAMPLING_SECONDS = 1.0
"""Between two looks at the memory, each of which takes some 10 ms of a core."""

POLLING_SECONDS = 0.005
FORMATS = {"photos": ",.0f", "megapixels": ".4g", "% overlap": ".4g"}


@dataclass
class Row:
    """One kind of run, and what its turns came to.

    ``value`` is the number of photos, their megapixels or the overlap, as ``unit`` says; ``size`` is (width,
    height) in pixels. ``seen``: pixels that the network sees over those of the photos.
    """

    unit: str
    value: float
    photos: Path
    size: tuple[int, int]
    tile: int | None = None
    overlap: int = 256
    seen: float = 1.0
    rates: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def run(self, model: Model, out: Path, options: Sequence[str]) -> None:
        tile = [] if self.tile is None else ["--tile", str(self.tile)]
        options = [*options, *tile, "--overlap", str(self.overlap)]
        _, peak, _ = measure(self.photos, out, options, SAMPLING_SECONDS)
        report = json.loads((out / "run.json").read_text())
        shutil.rmtree(out)
        self.rates.append(report["photos_per_second"])
        self.peaks.append(peak)
        chosen, (width, height) = report["chosen"], self.size
        fixed = None if self.tile is None or not chosen["tile"] else (self.tile, self.tile)
        tiling = Tiling(fixed, chosen["most_pixels"], self.overlap, chosen["map_share"])
        plan = tiling.plan(height, width, model.network.stride, model.network.unit)
        self.seen = plan.tile_count * plan.tile_height * plan.tile_width / self.pixels

    def speeds(self, first: "Row") -> list[float]:
        """Pixels of photos a second, relative to those of the first row, of each turn."""
        pairs = zip(self.rates, first.rates, strict=True)
        return [rate * self.pixels / (other * first.pixels) for rate, other in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 2_000, 20_000], help="of photos")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.3, 2.5, 25, 100], help="of a photo")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0, 12.5, 25, 37.5, 50], help="percent")
    parser.add_argument("--tile", type=int, default=1024, help="side of tiles that overlap  [default: 1024]")
    parser.add_argument("--work", type=float, default=250, help="megapixels of a run  [default: 250]")
    parser.add_argument("--turns", type=int, default=3, help="of starts, sizes and overlaps  [default: 3]")
    parser.add_argument("--model", default="segunet-s", help="as of predict  [default: segunet-s]")
    parser.add_argument("--precision", default="auto", help="as of predict  [default: auto]")
    parser.add_argument("--price", type=float, help="of an hour of such a machine, in whatever money")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (.png, .svg)")
    arguments = parser.parse_args()
    if min(*arguments.counts, *arguments.megapixels, arguments.work, arguments.turns, arguments.tile) <= 0:
        parser.error("--counts, --megapixels, --work, --turns and --tile are more than 0")
    if not all(0 <= overlap < 100 for overlap in arguments.overlaps):
        parser.error("--overlaps are percent, from 0 to less than 100")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{date.today()}, {platform.machine()}, {find_processor()}, {os.cpu_count()} cores,", end=" ")
    print(f"{arguments.model}, load before: {load}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            photos = arguments.photos or draw_photos(folder / "drawn", "1918x1280")
            paths = [ref.path.resolve() for ref in find_images(photos, follow_links=True).refs]
        except UsageError as error:
            parser.error(str(error))
        measure_all(paths, folder, arguments)


def measure_all(paths: list[Path], folder: Path, arguments: argparse.Namespace) -> None:
    model, out = load_model(arguments.model), folder / "out"
    few = link_photos(paths, folder / "few", FEWEST_PHOTOS)
    options = ["--model", arguments.model, "--precision", arguments.precision]
    starts = [measure_start(few, out, options) for _ in range(arguments.turns + 1)][1:]  # the first warms up
    report = json.loads((out / "run.json").read_text())
    shutil.rmtree(out)
    # Chosen once: timed again for each run, another precision might come out.
    options = ["--model", arguments.model, "--precision", report["chosen"]["precision"]]
    print(f"{arguments.turns} turns, {report['device']}\n")
    counts, sizes, overlaps = make_rows(paths, folder, arguments)
    print("| what | photos/s | pixels/s over the first's | pixels seen over the photo's | peak MB |")
    print("|---|---|---|---|---|")
    for rows, turns in ((counts, 1), (sizes, arguments.turns), (overlaps, arguments.turns)):
        for turn in range(turns):
            for row in reversed(rows) if turn % 2 else rows:
                row.run(model, out, options)
        for row in rows:
            what, speed = f"{row.value:{FORMATS[row.unit]}} {row.unit}", spread(row.speeds(rows[0]))
            print(f"| {what} | {median(row.rates):.3f} | {speed} | {row.seen:.2f} |", end=" ")
            print(f"{max(row.peaks) / 1e6:.0f} |", flush=True)
    print_sums(counts, starts, arguments.price)
    if arguments.plot is not None:
        draw_plot([counts, sizes, overlaps], arguments.plot)


def make_rows(paths: list[Path], folder: Path, arguments: argparse.Namespace) -> list[list[Row]]:
    """A list of rows for each kind of runs: counts, sizes, overlaps."""
    size = read_size(paths[0])
    counts = [
        Row("photos", count, link_photos(paths, folder / f"{count}-photos", count), size)
        for count in arguments.counts
    ]
    sizes = []
    for megapixels in arguments.megapixels:
        resized = resize_photos(paths[:FEWEST_PHOTOS], folder / f"resized-{megapixels}", megapixels)
        links = link_photos(resized, folder / f"{megapixels}-megapixels", count_photos(megapixels, arguments))
        sizes.append(Row("megapixels", megapixels, links, read_size(resized[0])))
    links = link_photos(paths, folder / "overlaps", count_photos(size[0] * size[1] / 1e6, arguments))
    overlaps = [
        Row("% overlap", overlap, links, size, arguments.tile, round(arguments.tile * overlap / 100))
        for overlap in arguments.overlaps
    ]
    return [counts, sizes, overlaps]


def count_photos(megapixels: float, arguments: argparse.Namespace) -> int:
    """So many photos of the size as have the pixels of a run."""
    return max(FEWEST_PHOTOS, round(arguments.work / megapixels))


def read_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def resize_photos(paths: list[Path], folder: Path, megapixels: float) -> list[Path]:
    folder.mkdir()
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            size = round(image.width * factor), round(image.height * factor)
            image.convert("RGB").resize(size).save(folder / f"{number}.jpg", quality=95)
    return sorted(folder.iterdir())


def measure_start(photos: Path, out: Path, options: list[str]) -> float:
    """Seconds until the first mask is there."""
    command = [sys.executable, "-m", "carvana_batch", "predict", str(photos), str(out), "--follow-links"]
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    with subprocess.Popen([*command, "--quiet", *options]) as process:
        while process.poll() is None and not any(out.glob("*.png")):
            time.sleep(POLLING_SECONDS)
        seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"carvana-batch predict failed with exit code {process.returncode}")
    return seconds


def print_sums(counts: list[Row], starts: list[float], price: float | None) -> None:
    first, last = counts[0], counts[-1]
    meanwhile = spread([seconds * last.rates[0] for seconds in starts])
    print(f"\nStart to the first mask: {median(starts):.2f} s, in which {meanwhile} photos could be done")
    if last.value != first.value:
        growth = (last.peaks[0] - first.peaks[0]) / 1e6 / (last.value - first.value) * 1000
        ratio = last.peaks[0] / first.peaks[0]
        print(f"Memory: {growth:+.2f} MB for each thousand photos, {ratio:.3f} times the first peak")
    hours = COMPETITION_PHOTOS / last.rates[0] / 3600
    money = "" if price is None else f", {hours * price:.2f} at {price:.2f} an hour"
    print(f"{COMPETITION_PHOTOS:,} photos at the rate of {last.value:,} photos: {hours:.1f} hours{money}")


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the most in brackets."""
    return f"{median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def draw_plot(kinds: list[list[Row]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(kinds), figsize=(11, 3.2), sharey=True, layout="constrained")
    for panel, rows in zip(panels, kinds, strict=True):
        values = [row.value for row in rows]
        ratios = [row.speeds(rows[0]) for row in rows]
        middle = [median(row) for row in ratios]
        below = [value - min(row) for value, row in zip(middle, ratios, strict=True)]
        above = [max(row) - value for value, row in zip(middle, ratios, strict=True)]
        panel.errorbar(values, middle, (below, above), marker="o", capsize=3, label="measured")
        expected = [rows[0].seen / row.seen for row in rows]
        panel.plot(values, expected, linestyle="--", color="grey", label="if each pixel seen cost the same")
        panel.set(xlabel=rows[0].unit, xscale="linear" if rows[0].unit == "% overlap" else "log")
        panel.set_xticks(values, labels=[f"{value:{FORMATS[rows[0].unit]}}" for value in values])
        panel.minorticks_off()
    panels[0].set(ylabel="pixels/s over the first's", ylim=(0, None))
    panels[-1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
