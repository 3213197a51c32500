#!/usr/bin/env python
"""Measure how the cost of predict grows with the number of photos, their size, and the overlap of tiles.

    scripts/bench_scale.py [PHOTOS] --plot scale.png

Runs carvana-batch predict on links to the photos of a folder, or to a dozen drawn photos. Photos of other
sizes are made from the first few by resizing, as many as give each run about the same number of pixels. Sizes
and overlaps take turns; every other turn runs in reverse order. Ratios compare a turn with the first row of
the same kind: the median, with the minimum and the maximum in brackets. Photos/s are those of run.json, from
the first photo on. Memory is sampled once per second, so the peaks of short runs are underestimates.

The start is the time until the first mask has its final name, including the start of Python and torch; it is
also given as the number of photos that could be masked in that time. The plot needs matplotlib: pip install
"carvana-batch[train]".
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench_memory import draw_photos, link_photos, measure
from measuring import alternate, describe_machine, summarise
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.inference.tiles import Tiling
from carvana_batch.inputs.find import find_images
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.model import Model

COMPETITION_PHOTOS = 100_064
FEWEST_PHOTOS = 4
SAMPLING_SECONDS = 1.0
"""Time between two samples of the memory, each of which takes about 10 ms of a core."""

POLLING_SECONDS = 0.005
FORMATS = {"photos": ",.0f", "megapixels": ".4g", "% overlap": ".4g"}


@dataclass
class Row:
    """One kind of run, and the results of its turns.

    Attributes:
        unit: of ``value``: photos, megapixels of a photo, or percent of overlap.
        value: what differs from the other rows of its kind.
        photos: the input folder.
        size: (width, height) of the photos in pixels.
        tile: side of the tiles in pixels, None for the choice of predict.
        overlap: of the tiles in pixels.
        redundancy: pixels that the network processes relative to those of the photos.
        rates: photos per second in each turn.
        peaks: peak memory of all processes in each turn, in bytes.
    """

    unit: str
    value: float
    photos: Path
    size: tuple[int, int]
    tile: int | None = None
    overlap: int = 256
    redundancy: float = 1.0
    rates: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def run(self, model: Model, out: Path, options: Sequence[str]) -> None:
        tile = [] if self.tile is None else ["--tile", str(self.tile)]
        options = [*options, *tile, "--overlap", str(self.overlap), "--size", "native"]
        _, peak, _ = measure(self.photos, out, options, SAMPLING_SECONDS)
        report = json.loads((out / "run.json").read_text())
        shutil.rmtree(out)
        self.rates.append(report["photos_per_second"])
        self.peaks.append(peak)
        chosen, (width, height) = report["chosen"], self.size
        fixed = None if self.tile is None or not chosen["tile"] else (self.tile, self.tile)
        tiling = Tiling(fixed, chosen["most_pixels"], self.overlap, chosen["map_share"])
        plan = tiling.plan(height, width, model.network.stride, model.network.unit)
        self.redundancy = plan.tile_count * plan.tile_height * plan.tile_width / self.pixels

    def speeds(self, first: "Row") -> list[float]:
        """Return pixels of photos per second relative to those of the first row, for each turn."""
        pairs = zip(self.rates, first.rates, strict=True)
        return [rate * self.pixels / (other * first.pixels) for rate, other in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[200, 2_000, 20_000], help="numbers of photos"
    )
    parser.add_argument(
        "--megapixels", type=float, nargs="+", default=[0.3, 2.5, 25, 100], help="sizes of photos"
    )
    parser.add_argument(
        "--overlaps", type=float, nargs="+", default=[0, 12.5, 25, 37.5, 50], help="in percent"
    )
    parser.add_argument(
        "--tile", type=int, default=1024, help="side of overlapping tiles in pixels  [default: 1024]"
    )
    parser.add_argument("--work", type=float, default=250, help="megapixels per run  [default: 250]")
    parser.add_argument(
        "--turns", type=int, default=3, help="runs of start, sizes and overlaps  [default: 3]"
    )
    parser.add_argument("--model", default="segunet-s", help="as in predict  [default: segunet-s]")
    parser.add_argument("--precision", default="auto", help="as in predict  [default: auto]")
    parser.add_argument("--price", type=float, help="price of an hour on such a machine, in any currency")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the ratios (.png, .svg)")
    arguments = parser.parse_args()
    if min(*arguments.counts, *arguments.megapixels, arguments.work, arguments.turns, arguments.tile) <= 0:
        parser.error("--counts, --megapixels, --work, --turns and --tile must be more than 0")
    if not all(0 <= overlap < 100 for overlap in arguments.overlaps):
        parser.error("--overlaps must be percentages from 0 to less than 100")
    print(describe_machine(arguments.model), flush=True)
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
    starts = [measure_start(few, out, options) for _ in range(arguments.turns + 1)][
        1:
    ]  # the first is a warm-up
    report = json.loads((out / "run.json").read_text())
    shutil.rmtree(out)
    # The precision is chosen once: if each run timed it again, another one might result.
    options = ["--model", arguments.model, "--precision", report["chosen"]["precision"]]
    print(f"{arguments.turns} turns, {report['device']}\n")
    counts, sizes, overlaps = make_rows(paths, folder, arguments)
    print("| what | photos/s | pixels/s relative to first | pixels processed / of the photos | peak MB |")
    print("|---|---|---|---|---|")
    for rows, turns in ((counts, 1), (sizes, arguments.turns), (overlaps, arguments.turns)):
        for turn in range(turns):
            for row in alternate(rows, turn):
                row.run(model, out, options)
        for row in rows:
            what, speed = f"{row.value:{FORMATS[row.unit]}} {row.unit}", summarise(row.speeds(rows[0]))
            print(f"| {what} | {median(row.rates):.3f} | {speed} | {row.redundancy:.2f} |", end=" ")
            print(f"{max(row.peaks) / 1e6:.0f} |", flush=True)
    print_summary(counts, starts, arguments.price)
    if arguments.plot is not None:
        draw_plot([counts, sizes, overlaps], arguments.plot)


def make_rows(paths: list[Path], folder: Path, arguments: argparse.Namespace) -> list[list[Row]]:
    """Return the rows of each kind: counts, sizes, overlaps."""
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
    """Return how many photos of this size have about the pixels of a run."""
    work: float = arguments.work
    return max(FEWEST_PHOTOS, round(work / megapixels))


def read_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        width, height = image.size
    return width, height


def resize_photos(paths: list[Path], folder: Path, megapixels: float) -> list[Path]:
    folder.mkdir()
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            size = round(image.width * factor), round(image.height * factor)
            image.convert("RGB").resize(size).save(folder / f"{index}.jpg", quality=95)
    return sorted(folder.iterdir())


def measure_start(photos: Path, out: Path, options: list[str]) -> float:
    """Return the seconds until the first mask has its final name."""
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


def print_summary(counts: list[Row], starts: list[float], price: float | None) -> None:
    first, last = counts[0], counts[-1]
    photos = summarise([seconds * last.rates[0] for seconds in starts])
    print(f"\nStart to first mask: {median(starts):.2f} s, the time of {photos} photos")
    if last.value != first.value:
        growth = (last.peaks[0] - first.peaks[0]) / 1e6 / (last.value - first.value) * 1000
        ratio = last.peaks[0] / first.peaks[0]
        print(f"Memory: {growth:+.2f} MB per thousand photos, {ratio:.3f} times the first peak")
    hours = COMPETITION_PHOTOS / last.rates[0] / 3600
    cost = "" if price is None else f", {hours * price:.2f} at {price:.2f} per hour"
    print(f"{COMPETITION_PHOTOS:,} photos at the rate of {last.value:,} photos: {hours:.1f} hours{cost}")


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
        expected = [rows[0].redundancy / row.redundancy for row in rows]
        panel.plot(
            values, expected, linestyle="--", color="grey", label="if every processed pixel cost the same"
        )
        panel.set(xlabel=rows[0].unit, xscale="linear" if rows[0].unit == "% overlap" else "log")
        panel.set_xticks(values, labels=[f"{value:{FORMATS[rows[0].unit]}}" for value in values])
        panel.minorticks_off()
    panels[0].set(ylabel="pixels/s relative to the first", ylim=(0, None))
    panels[-1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
