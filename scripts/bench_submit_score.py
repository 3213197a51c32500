#!/usr/bin/env python
"""Compare the speed of run-length encoding, submit and score with that of plain implementations.

    scripts/bench_submit_score.py MASKS [PREDICTED]

MASKS are masks that submit can read. PREDICTED are masks made by predict, which are scored against MASKS;
without them, MASKS are scored against themselves. All implementations take turns in this process, and the
ratios are those of the median times. They only describe a machine if nothing else runs on it, so its load is
printed first.

The row for pycocotools needs it: pip install "carvana-batch[bench]".
"""

import argparse
import csv
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from measuring import describe_machine
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.read import read_mask
from carvana_batch.scoring.compare import compare_masks
from carvana_batch.submission.write import write_submission
from carvana_batch.values import PackedMask

try:
    from pycocotools import mask as coco
except ImportError:
    coco = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("masks", type=Path, metavar="MASKS", help="a folder of masks")
    parser.add_argument(
        "predicted", type=Path, metavar="PREDICTED", nargs="?", help="a folder of masks made by predict"
    )
    parser.add_argument("--limit", type=int, help="use only this many masks, the first ones")
    parser.add_argument("--turns", type=int, default=5, help="runs of each implementation  [default: 5]")
    arguments = parser.parse_args()
    try:
        masks = find_masks(arguments.masks)
        predicted = find_masks(arguments.predicted or arguments.masks)
    except UsageError as error:
        parser.error(str(error))
    ids = [name for name in masks if name in predicted][: arguments.limit]
    if not ids or arguments.turns < 1:
        parser.error("MASKS and PREDICTED must have an id in common, and --turns must be at least 1")
    print(describe_machine(f"Python {platform.python_version()}", f"NumPy {np.__version__}"))
    print(f"{len(ids)} masks, {arguments.turns} turns\n")
    with tempfile.TemporaryDirectory() as folder:
        true, predicted_links = Path(folder, "true"), Path(folder, "predicted")
        link_all(ids, masks, true)
        link_all(ids, predicted, predicted_links)
        print("| what | ms/mask | compared with | ms/mask | ratio |\n|---|---|---|---|---|")
        measure_encoding([read_mask(masks[name]) for name in ids], arguments.turns)
        measure_submit(true, Path(folder, "s.csv"), len(ids), arguments.turns)
        measure_score(predicted_links, true, len(ids), arguments.turns)


def link_all(ids: list[str], masks: dict[str, Path], folder: Path) -> None:
    for name in ids:
        link = folder / f"{name}{masks[name].suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(masks[name].resolve())


def measure_in_turns(runs: Mapping[str, Callable[[], object]], count: int, turns: int) -> dict[str, float]:
    """Return the median time of each implementation in ms per mask, after a warm-up turn."""
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


def measure_encoding(packed: Sequence[PackedMask], turns: int) -> None:
    arrays = [mask.to_bool() for mask in packed]
    if any(rle.encode(array) != encode_with_numpy(array) for array in arrays):
        raise SystemExit("the rows differ from those of the NumPy snippet")
    runs: dict[str, Callable[[], object]] = {
        "encode packed rows": lambda: [rle.encode_packed(mask) for mask in packed],
        "encode a bool array": lambda: [rle.encode(array) for array in arrays],
        "NumPy snippet": lambda: [encode_with_numpy(array) for array in arrays],
    }
    if coco is not None:
        # pycocotools counts column by column, so the transposed mask gives the same runs without a copy.
        # Its result, compressed counts, would still have to be converted to a row of the competition.
        transposed = [array.view(np.uint8).T for array in arrays]
        runs["pycocotools"] = lambda: [coco.encode(array) for array in transposed]
    times = measure_in_turns(runs, len(packed), turns)
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
        "plain loop with Pillow, .csv": lambda: submit_plainly(masks, plain),
        "only decoding with Pillow": lambda: decode_plainly(masks),
    }
    times = measure_in_turns(runs, count, turns)
    if target.read_bytes() != plain.read_bytes():
        raise SystemExit("submit and the plain loop wrote different rows")
    print_ratio(times, "submit, 1 worker", "plain loop with Pillow, .csv")
    for what in ("submit, 1 worker", "submit, 1 worker, .csv.gz"):
        print_ratio(times, what, "only decoding with Pillow")
    print_ratio(times, "submit, 1 worker", "submit, 2 workers")


def measure_score(predicted: Path, masks: Path, count: int, turns: int) -> None:
    runs = {
        "score, 1 worker": lambda: compare_masks(predicted, masks, workers=1),
        "score, 2 workers": lambda: compare_masks(predicted, masks, workers=2),
        "plain loop with Pillow, only Dice": lambda: score_plainly(predicted, masks),
    }
    times = measure_in_turns(runs, count, turns)
    ours = compare_masks(predicted, masks).summary
    if ours is None or abs(ours.dice - score_plainly(predicted, masks)) > 1e-9:
        raise SystemExit("score and the plain loop differ in the mean Dice")
    print_ratio(times, "score, 1 worker", "plain loop with Pillow, only Dice")
    print_ratio(times, "score, 1 worker", "score, 2 workers")


def encode_with_numpy(mask: NDArray[np.bool_]) -> str:
    """Encode as many notebooks of the competition do."""
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def read_plainly(path: Path) -> NDArray[np.bool_]:
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
    """Return the mean Dice."""
    true = find_masks(masks)
    scores = []
    for name, path in find_masks(predicted).items():
        one, other = read_plainly(path), read_plainly(true[name])
        area = int(one.sum()) + int(other.sum())
        scores.append(2 * int((one & other).sum()) / area if area else 1.0)
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
