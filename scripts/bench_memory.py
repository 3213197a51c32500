#!/usr/bin/env python
"""Measure whether the memory of predict grows with the number of photos.

    scripts/bench_memory.py [PHOTOS] --counts 200 2000

Runs carvana-batch predict on the given numbers of links to the photos of a folder, or to a dozen drawn
photos, and samples the memory of all its processes: their proportional set size, in which shared pages are
divided among the processes that share them, or where the system does not provide it, their unique set size.
The peak of the main process is the one in run.json. The exit code is 1 if a peak of the last run is more than
5 % above that of the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measuring import describe_machine
from PIL import Image

from carvana_batch.demo import draw_photo
from carvana_batch.errors import UsageError
from carvana_batch.inputs.find import find_images

MAX_GROWTH = 1.05
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
    parser.add_argument("--workers", type=int, default=2, help="decoder processes  [default: 2]")
    parser.add_argument("--precision", default="fp32", help="as in predict  [default: fp32]")
    arguments = parser.parse_args()
    print(f"{describe_machine()}\n")
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
            options += ["--size", "native"]  # small photos are quick as long as they are not enlarged
            seconds, peak, main_peak = measure(links, folder / f"out-{count}", options)
            peaks.append((peak, main_peak))
            print(f"| {count:,} | {seconds:.0f} | {peak / 1e6:.1f} | {main_peak / 1e6:.1f} |", flush=True)
    print()
    thousands = (arguments.counts[-1] - arguments.counts[0]) / 1000
    ratios = []
    for what, first, last in zip(("all processes", "main process"), peaks[0], peaks[-1], strict=True):
        ratios.append(last / first)
        growth = f", {(last - first) / 1e6 / thousands:+.1f} MB per thousand photos" if thousands else ""
        print(f"{what}: {last / first:.3f} times the first peak{growth}")
    return int(max(ratios) > MAX_GROWTH)


def draw_photos(folder: Path, size: str, mixed: bool = False) -> Path:
    """Draw photos of ``size``, such as 480x320; with ``mixed``, of sizes from that down to half of it."""
    width, height = (int(side) for side in size.split("x"))
    folder.mkdir()
    for index in range(DRAWN_PHOTOS):
        scale = 1 - index / DRAWN_PHOTOS / 2 if mixed else 1
        photo, _ = draw_photo(index, 1 + index, (round(scale * width), round(scale * height)))
        Image.fromarray(photo).save(folder / f"{index:02}.jpg", quality=95)
    return folder


def link_photos(paths: list[Path], folder: Path, count: int) -> Path:
    """Make a folder of ``count`` links to the paths, each of which is used repeatedly if necessary."""
    folder.mkdir()
    for index in range(count):
        path = paths[index % len(paths)]
        (folder / f"{index:07}{path.suffix}").symlink_to(path)
    return folder


def measure(
    photos: Path, out: Path, options: list[str], sampling_seconds: float = SAMPLING_SECONDS
) -> tuple[float, int, int]:
    """Run predict; return its seconds, and the peaks of all processes and of the main one in bytes."""
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
        return list(process.children(recursive=True))
    except psutil.Error:  # the process has just ended
        return []


def memory_of(process: psutil.Process) -> int:
    """Return proportional or else unique set size in bytes, 0 if the process has just ended."""
    try:
        usage = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(usage, "pss", usage.uss))


if __name__ == "__main__":
    raise SystemExit(main())
