#!/usr/bin/env python
"""Measure how well the doubt of `predict` tells bad masks from good ones, and fit it.

    scripts/bench_doubt.py --data data/val --more data/street --rows rows.jsonl --plot roc.png
    scripts/bench_doubt.py --rows rows.jsonl --fit

The photos of every other car are masked with the changes of photo_changes.other_changes, and as they are;
these, and four fifths of --more, are what doubt is judged on. On those of the other cars, with changes like
those of training and harder ones, and on the rest of --more, it is fitted. --rows keeps what was measured: a
second call goes on with it.

Measured are the area under the ROC curve of telling masks of a Dice below 0.95 from those above 0.99, and the
rank correlation of doubt and Dice.
"""

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import numpy as np
import torch
from measuring import describe_machine
from photo_changes import Change, changes, harder_changes, other_changes

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference import checked
from carvana_batch.inference.doubt import FLOOR, estimate_doubt
from carvana_batch.inference.planning import make_predictor
from carvana_batch.masks.counts import count
from carvana_batch.masks.specks import clean
from carvana_batch.network.checkpoints import load_model
from carvana_batch.notes import Note
from carvana_batch.options import Options
from carvana_batch.output.report import MOST_DOUBT, rank_correlation
from carvana_batch.training.pairs import Pair, find_pairs, load_pair
from carvana_batch.values import Failure, ImageRef, PackedMask, Photo

BAD, GOOD = 0.95, 0.99
WIDTHS_MEASURED = ("width 480", "width 960", "width 3000")
AS_IT_IS = "none"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder with images/ and masks/ of several cars")
    parser.add_argument("--more", type=Path, help="the same of other photos, with unknown pixels of 128")
    parser.add_argument("--each", type=int, default=2, help="photos of each car and change  [default: 2]")
    parser.add_argument("--rows", type=Path, required=True, help="keep what was measured here (JSON lines)")
    parser.add_argument("--fit", action="store_true", help="print the coefficients that fit best")
    parser.add_argument("--threads", type=int, default=1, help="of the networks  [default: 1]")
    parser.add_argument("--plot", type=Path, help="draw the ROC curve into this PNG (matplotlib)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        if arguments.data is not None:
            measure_all(arguments.data, arguments.more, arguments.each, arguments.rows)
        rows = read_rows(arguments.rows)
    except (CarvanaBatchError, OSError) as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"{arguments.rows} holds no rows; give --data")
    if arguments.fit:
        fit([row for row in rows if not row["judged"]])
    report([row for row in rows if row["judged"]], arguments.plot)


def measure_all(data: Path, more: Path | None, each: int, rows_file: Path) -> None:
    """Mask all changed photos that are not in the file of rows yet, and add their rows."""
    known = {row["name"] for row in read_rows(rows_file)}
    predictor, _ = make_predictor(load_model("auto"), Options())
    arguments: list[tuple[float, float]] = []

    def note_arguments(expected_dice: float, disagreement: float) -> float:
        arguments.append((expected_dice, disagreement))
        return estimate_doubt(expected_dice, disagreement)

    with mock.patch.object(checked, "estimate_doubt", note_arguments), rows_file.open("a") as file:
        for name, kind, judged, pair, change in choose(data, more, each):
            if name in known:
                continue
            photo, mask, known_pixels = load_pair(pair, None)
            ignored = np.asarray(known_pixels) < 255
            photo, mask = change(photo, mask)
            true = PackedMask.from_bool(np.asarray(mask) > 127, ignored if ignored.any() else None)
            result = next(predictor.predict([Photo(ImageRef(name, name), np.array(photo))]))
            if isinstance(result, Failure):
                raise CarvanaBatchError(f"{name}: {result.reason}")
            row = {
                "name": name,
                "kind": kind,
                "judged": judged,
                "dice": count(clean(result.mask), true).dice,
                "second": Note.SECOND_NETWORK in result.photo.notes,
                "expected_dice": arguments[-1][0],
                "disagreement": arguments[-1][1],
            }
            file.write(json.dumps(row) + "\n")
            file.flush()


def choose(data: Path, more: Path | None, each: int) -> Iterator[tuple[str, str, bool, Pair, Change]]:
    """Yield name, kind, whether doubt is judged on it, pair and change of each photo to be masked."""
    by_car = defaultdict(list)
    for pair in find_pairs(data):
        by_car[pair.car].append(pair)
    as_it_is = {AS_IT_IS: changes()[AS_IT_IS]}
    like_training = {
        label: change
        for label, change in changes().items()
        if not label.startswith("width") or label in WIDTHS_MEASURED
    }
    for number, (_, pairs) in enumerate(sorted(by_car.items())):
        judged = bool(number % 2)
        kinds = as_it_is | other_changes() if judged else like_training | harder_changes()
        for position, (kind, change) in enumerate(kinds.items()):
            photos = 4 * each if kind == AS_IT_IS else each
            for index in range(photos):
                pair = pairs[(number + position + index * max(1, len(pairs) // photos)) % len(pairs)]
                yield f"{kind}: {pair.id}", kind, judged, pair, change
    for pair in find_pairs(more, ignored_values=[128]) if more else []:
        judged = zlib.crc32(pair.id.encode()) % 5 > 0
        yield f"more: {pair.id}", "more", judged, pair, changes()[AS_IT_IS]


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(rows: Sequence[Row], plot: Path | None) -> None:
    """Print a table by kind, and the figures."""
    from sklearn.metrics import roc_auc_score, roc_curve

    by_kind = defaultdict(list)
    for row in rows:
        row["doubt"] = estimate_doubt(row["expected_dice"], row["disagreement"])
        by_kind[row["kind"]].append(row)
    print(describe_machine(f"{len(rows)} photos") + "\n")
    print("| photos | number | mean Dice | mean doubt | doubtful | by the second network |")
    print("|---|---|---|---|---|---|")
    for kind, some in by_kind.items():
        doubtful = mean(row["doubt"] > MOST_DOUBT for row in some)
        second = mean(row["second"] for row in some)
        numbers = f"{mean(row['dice'] for row in some):.4f} | {mean(row['doubt'] for row in some):.4f}"
        print(f"| {kind} | {len(some)} | {numbers} | {doubtful:.0%} | {second:.0%} |")
    clear = [row for row in rows if row["dice"] < BAD or row["dice"] > GOOD]
    bad = [row["dice"] < BAD for row in clear]
    unchanged = by_kind[AS_IT_IS]
    print(f"\nbad (Dice < {BAD}): {sum(bad)}, good (> {GOOD}): {len(bad) - sum(bad)}")
    area = roc_auc_score(bad, [row["doubt"] for row in clear])
    overall, as_they_are = (
        rank_correlation([row["doubt"] for row in some], [1 - row["dice"] for row in some])
        for some in (rows, unchanged)
    )
    print(f"area under the ROC: {area:.4f}")
    print(f"rank correlation of doubt and 1 - Dice: {overall:.3f}, of photos as they are: {as_they_are:.3f}")
    for name, wanted in (("bad", True), ("good", False)):
        found = [
            row["doubt"] > MOST_DOUBT for row, is_bad in zip(clear, bad, strict=True) if is_bad == wanted
        ]
        print(f"{name} ones that are called doubtful: {mean(found):.1%}")
    if plot is not None:
        from matplotlib import pyplot

        false, true, _ = roc_curve(bad, [row["doubt"] for row in clear])
        pyplot.plot(false, true)
        pyplot.xlabel(f"share of masks of Dice above {GOOD} that are called doubtful")
        pyplot.ylabel(f"share of masks of Dice below {BAD} that are called doubtful")
        pyplot.grid(alpha=0.3)
        pyplot.savefig(plot, dpi=120, bbox_inches="tight")


def fit(rows: Sequence[Row]) -> None:
    """Print factor and powers of :func:`estimate_doubt` that fit best by least squares on logarithms."""
    signs = np.array([(1 - row["expected_dice"], row["disagreement"]) for row in rows])
    design = np.column_stack([np.ones(len(rows)), np.log10(signs.clip(0) + FLOOR)])
    target = np.log10([max(1 - row["dice"], FLOOR) for row in rows])
    (constant, *powers), *_ = np.linalg.lstsq(design, target, rcond=None)
    words = ", ".join(f"{power:.2f}" for power in powers)
    print(f"fitted on {len(rows)} photos: factor {10**constant:.2f}, powers {words}\n")


if __name__ == "__main__":
    main()
