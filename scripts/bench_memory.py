#!/usr/bin/env python
"""Whether memory grows with the number of photos.

    scripts/bench_memory.py [PHOTOS] --counts 200 2000

Runs carvana-batch predict on so many links to the photos of a folder, or to a dozen that are drawn, and
samples the memory of the process and its workers: their proportional set size where the system tells it
(shared pages are divided among those that share them), else what each has for itself. The peak of the main
process is the one that run.json tells. Exit code 1 if a peak of the last run is more than 5 % above that of
the first.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import psutil
from PIL import Image

from carvana_batch.demo import draw_photo
from carvana_batch.errors import UsageError
from carvana_batch.inputs.find import find_images

MOST_GROWTH = 1.05
SAMPLING_SECONDS = 0.02
DRAWN_PHOTOS = 12


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 2000], help="[default: 200 2000]")
    parser.add_argument("--size", default="480x320", help="size of drawn photos  [default: 480x320]")
    parser.add_argument("--mixed", action="store_true", help="draw photos of many sizes, down to half")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode  [default: 2]")
    parser.add_argument("--precision", default="fp32", help="as of predict  [default: fp32]")
    arguments = parser.parse_args()
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, load before: {load}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            photos = arguments.photos or draw_photos(folder / "drawn", arguments.size, arguments.mixed)
            paths = [ref.path.resolve() for ref in find_images(photos).refs]
        except (UsageError, ValueError) as error:
            parser.error(str(error))
        print("| photos | seconds | all processes, peak MB | main process, peak MB |\n|---|---|---|---|")
        peaks = []
        for count in arguments.counts:
            links = link_photos(paths, folder / f"in-{count}", count)
            options = ["--workers", str(arguments.workers), "--precision", arguments.precision]
            seconds, peak, main_peak = measure(links, folder / f"out-{count}", options)
            peaks.append((peak, main_peak))
            print(f"| {count:,} | {seconds:.0f} | {peak / 1e6:.1f} | {main_peak / 1e6:.1f} |", flush=True)
    print()
    thousands = (arguments.counts[-1] - arguments.counts[0]) / 1000
    ratios = []
    for what, first, last in zip(("all processes", "main process"), peaks[0], peaks[-1], strict=True):
        ratios.append(last / first)
        growth = f"{(last - first) / 1e6 / thousands:+.1f} MB for each thousand photos" if thousands else ""
        print(f"{what}: {last / first:.3f} times the first peak, {growth}")
    return int(max(ratios) > MOST_GROWTH)


def draw_photos(folder: Path, size: str, mixed: bool = False) -> Path:
    width, height = (int(side) for side in size.split("x"))
    folder.mkdir()
    for number in range(DRAWN_PHOTOS):
        share = 1 - number / DRAWN_PHOTOS / 2 if mixed else 1
        photo, _ = draw_photo(number, 1 + number, (round(share * width), round(share * height)))
        Image.fromarray(photo).save(folder / f"{number:02}.jpg", quality=95)
    return folder


def link_photos(paths: list[Path], folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        path = paths[number % len(paths)]
        (folder / f"{number:07}{path.suffix}").symlink_to(path)
    return folder


def measure(
    photos: Path, out: Path, options: list[str], sampling_seconds: float = SAMPLING_SECONDS
) -> tuple[float, int, int]:
    """Seconds, and the peaks of all processes together and of the main one in bytes."""
    command = [sys.executable, "-m", "carvana_batch", "predict", str(photos), str(out), "--follow-links"]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([*command, "--quiet", *options]) as process:
        main_process = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, sum(memory_of(each) for each in [main_process, *children_of(main_process)]))
            time.sleep(sampling_seconds)
    if process.returncode:
        raise SystemExit(f"carvana-batch predict failed with exit code {process.returncode}")
    report = json.loads((out / "run.json").read_text())
    return time.perf_counter() - start, peak, report["peak_memory_bytes"]


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:  # it has ended meanwhile
        return []


def memory_of(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", memory.uss))


if __name__ == "__main__":
    raise SystemExit(main())
