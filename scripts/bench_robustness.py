#!/usr/bin/env python
"""Measure the mean Dice of models on photos of other sizes, and on photos that were changed.

    scripts/bench_robustness.py --data data/val
    scripts/bench_robustness.py --data data/val --model segunet-s --model runs/first --plot robustness.png

Each photo and its true mask are resized, or the photo is changed, and masked as predict does it; the mask is
compared with the true one at the size of the changed photo. Photos are taken evenly from all cars and views.
Smaller photos are averaged by area, larger ones interpolated. Where a turned photo leaves pixels free, those
of its edge are repeated; around a photo at 0.4 of its size they are white, like most of a studio.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import click
import numpy as np
import torch
from measuring import describe_machine
from photo_changes import Change, changes

from carvana_batch.commands.parameters import NetworkSize
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inference.predictor import AnyPredictor
from carvana_batch.masks.counts import count
from carvana_batch.masks.specks import clean
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import Options
from carvana_batch.training.pairs import Pair, find_pairs, load_pair
from carvana_batch.values import PackedMask


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder with images/ and masks/")
    parser.add_argument("--model", action="append", help="as in predict; repeatable  [default: auto]")
    parser.add_argument("--size", default="auto", help="as in predict  [default: auto]")
    parser.add_argument("--limit", type=int, default=12, help="number of photos  [default: 12]")
    parser.add_argument("--precision", default="auto", help="as in predict  [default: auto]")
    parser.add_argument("--threads", type=int, default=1, help="of the network  [default: 1]")
    parser.add_argument("--plot", type=Path, help="also draw the Dice into this PNG (matplotlib)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        size = NetworkSize().convert(arguments.size, None, None)
        options = Options(precision=arguments.precision, size=size)
        names = arguments.model or ["auto"]
        predictors = {name: make_predictor(load_model(name), options)[0] for name in names}
        pairs = choose_pairs(find_pairs(arguments.data), arguments.limit)
    except (CarvanaBatchError, click.BadParameter) as error:
        parser.error(str(error))
    print(f"{describe_machine(f'{len(pairs)} photos', f'--size {arguments.size}')}\n")
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}", flush=True)
    table: dict[str, list[float]] = {}
    for label, change in changes().items():
        dice = [measure(predictor, pairs, change) for predictor in predictors.values()]
        table[label] = dice
        print(f"| {label} | {' | '.join(f'{value:.4f}' for value in dice)} |", flush=True)
    if arguments.plot is not None:
        plot(arguments.plot, names, table)


def choose_pairs(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """Choose evenly spaced pairs, with an offset that takes another view of each car."""
    step = max(1, len(pairs) // limit)
    return [pairs[index * step + index % step] for index in range(min(limit, len(pairs)))]


def measure(predictor: AnyPredictor, pairs: Sequence[Pair], change: Change) -> float:
    """Return the mean Dice on the changed photos."""
    dice = []
    for pair in pairs:
        photo, mask = change(*load_pair(pair, None)[:2])
        predicted = clean(PackedMask.from_bool(predictor.mask(np.asarray(photo))))
        dice.append(count(predicted, PackedMask.from_bool(np.asarray(mask) > 127)).dice)
    return mean(dice)


def plot(path: Path, names: Sequence[str], dice: dict[str, list[float]]) -> None:
    """Draw the Dice of each model on all sizes and changes."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.25 * len(dice) + 1))
    places = range(len(dice))
    for name, values, marker in zip(names, zip(*dice.values(), strict=True), "osd^v", strict=False):
        axes.plot(values, places, marker, label=name, alpha=0.7)
    axes.set_yticks(places, dice.keys())
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set_xlabel("mean Dice")
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
