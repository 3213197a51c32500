#!/usr/bin/env python
"""How fast encoding, submit and score are, as ratios within one run.

    scripts/bench_submit_score.py MASKS [PREDICTED]

MASKS are masks that submit can read; PREDICTED, those of predict, are scored against them (without it, MASKS
against themselves). Everything that is compared takes turns in this one process, and the ratios are those of
the medians. It says something about a machine only if nothing else runs there: the load is printed first.

The row with pycocotools needs it: pip install "carvana-batch[bench]".
"""

import argparse
import csv
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.read import read_mask
from carvana_batch.scoring.compare import compare_masks
from carvana_batch.submission.write import write_submission

try:
    from pycocotools import mask as coco
except ImportError:
    coco = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("masks", type=Path, metavar="MASKS", help="a folder of masks")
    parser.add_argument("predicted", type=Path, metavar="PREDICTED", nargs="?", help="another, of predict")
    parser.add_argument("--limit", type=int, help="take only the first so many masks")
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind  [default: 5]")
    arguments = parser.parse_args()
    try:
        masks = find_masks(arguments.masks)
        predicted = find_masks(arguments.predicted or arguments.masks)
    except UsageError as error:
        parser.error(str(error))
    ids = [name for name in masks if name in predicted][: arguments.limit]
    if not ids or arguments.turns < 1:
        parser.error("there is nothing to measure: MASKS and PREDICTED must share ids; --turns is at least 1")
    print_machine(len(ids), arguments.turns)
    with tempfile.TemporaryDirectory() as folder:
        true, ours = Path(folder, "true"), Path(folder, "ours")
        link_all(ids, masks, true)
        link_all(ids, predicted, ours)
        print("| what | ms a mask | against | ms a mask | ratio |\n|---|---|---|---|---|")
        measure_encoding([read_mask(masks[name]) for name in ids], arguments.turns)
        measure_submit(true, Path(folder, "s.csv"), len(ids), arguments.turns)
        measure_score(ours, true, len(ids), arguments.turns)


def print_machine(count: int, turns: int) -> None:
    packages = f"Python {platform.python_version()}, NumPy {np.__version__}"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{date.today()}, {platform.machine()}, {find_processor()}, {os.cpu_count()} cores, {packages}")
    print(f"{count} masks, {turns} turns, load before: {load}\n")


def find_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def link_all(ids: list[str], masks: dict[str, Path], folder: Path) -> None:
    for name in ids:
        link = folder / f"{name}{masks[name].suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(masks[name].resolve())


def take_turns(runs: dict[str, Callable[[], object]], count: int, turns: int) -> dict[str, float]:
    """The median time of each run in milliseconds a mask, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) * 1000 / count for name, values in seconds.items()}


def print_ratio(times: dict[str, float], what: str, against: str) -> None:
    one, other = times[what], times[against]
    print(f"| {what} | {one:.3f} | {against} | {other:.3f} | {one / other:.2f} |")


def measure_encoding(packed: list, turns: int) -> None:
    arrays = [mask.to_bool() for mask in packed]
    if any(rle.encode(array) != encode_with_numpy(array) for array in arrays):
        raise SystemExit("the rows differ from those of the NumPy snippet")
    runs = {
        "encode packed rows": lambda: [rle.encode_packed(mask) for mask in packed],
        "encode a bool array": lambda: [rle.encode(array) for array in arrays],
        "NumPy snippet": lambda: [encode_with_numpy(array) for array in arrays],
    }
    if coco is not None:
        # Column by column is how pycocotools counts: the transposed mask gives the same runs without a copy.
        # What it makes of them, compressed counts, is not yet a row of the competition.
        turned = [array.view(np.uint8).T for array in arrays]
        runs["pycocotools"] = lambda: [coco.encode(array) for array in turned]
    times = take_turns(runs, len(packed), turns)
    for what in ("encode packed rows", "encode a bool array"):
        for against in ("pycocotools", "NumPy snippet"):
            if against in times:
                print_ratio(times, what, against)
    if coco is None:
        print("| encode | | pycocotools | skipped: not installed | |")


def measure_submit(masks: Path, target: Path, count: int, turns: int) -> None:
    plain = target.with_name("plain.csv")
    runs = {
        "submit, 1 worker": lambda: write_submission(masks, target, None, workers=1),
        "submit, 2 workers": lambda: write_submission(masks, target, None, workers=2),
        "submit, 1 worker, .csv.gz": lambda: write_submission(
            masks, target.with_suffix(".csv.gz"), None, workers=1
        ),
        "plain loop, .csv": lambda: submit_plainly(masks, plain),
        "decoding with Pillow": lambda: decode_plainly(masks),
    }
    times = take_turns(runs, count, turns)
    if target.read_bytes() != plain.read_bytes():
        raise SystemExit("submit and the plain loop wrote different rows")
    print_ratio(times, "submit, 1 worker", "plain loop, .csv")
    for what in ("submit, 1 worker", "submit, 1 worker, .csv.gz"):
        print_ratio(times, what, "decoding with Pillow")
    print_ratio(times, "submit, 1 worker", "submit, 2 workers")


def measure_score(predicted: Path, masks: Path, count: int, turns: int) -> None:
    runs = {
        "score, 1 worker": lambda: compare_masks(predicted, masks, workers=1),
        "score, 2 workers": lambda: compare_masks(predicted, masks, workers=2),
        "plain loop, Dice alone": lambda: score_plainly(predicted, masks),
    }
    times = take_turns(runs, count, turns)
    ours = compare_masks(predicted, masks).summary
    if ours is None or abs(ours.dice - score_plainly(predicted, masks)) > 1e-9:
        raise SystemExit("score and the plain loop differ in the mean Dice")
    print_ratio(times, "score, 1 worker", "plain loop, Dice alone")
    print_ratio(times, "score, 1 worker", "score, 2 workers")


def encode_with_numpy(mask: np.ndarray) -> str:
    """As in many notebooks of the competition."""
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def read_plainly(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127


def submit_plainly(masks: Path, target: Path) -> None:
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["img", "rle_mask"])
        for name, path in find_masks(masks).items():
            writer.writerow([f"{name}.jpg", encode_with_numpy(read_plainly(path))])


def decode_plainly(masks: Path) -> None:
    for path in find_masks(masks).values():
        with Image.open(path) as image:
            image.load()


def score_plainly(predicted: Path, masks: Path) -> float:
    """The mean Dice."""
    true = find_masks(masks)
    scores = []
    for name, path in find_masks(predicted).items():
        one, other = read_plainly(path), read_plainly(true[name])
        area = int(one.sum()) + int(other.sum())
        scores.append(2 * int((one & other).sum()) / area if area else 1.0)
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
