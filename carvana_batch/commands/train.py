"""``carvana-batch train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from carvana_batch.commands.parameters import PhotoSize

LOSS_NAMES = ("bce+dice", "bce", "dice", "boundary")
NETWORK_NAMES = ("segunet-s", "segunet", "unet")


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another folder like DATA to train on. Can be repeated.",
)
@click.option(
    "--val",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder like DATA with other cars, to measure on.",
)
@click.option(
    "--model",
    "network",
    type=click.Choice(NETWORK_NAMES),
    default="segunet-s",
    show_default=True,
    help="The network.",
)
@click.option("--init", metavar="NAME|FILE|RUN", help="Weights to start from.")
@click.option(
    "--size",
    type=PhotoSize(),
    default="full",
    show_default=True,
    help="Size that photos and masks are averaged down to.",
)
@click.option("--crop", type=PhotoSize(), help="Size of random crops, for a part of the batches.")
@click.option(
    "--crop-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Part of the batches that are cropped.",
)
@click.option("--steps", type=click.IntRange(min=1), default=3000, show_default=True, help="Steps in all.")
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True, help="Photos a step.")
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(min=0, min_open=True),
    default=3e-3,
    show_default=True,
    help="Highest learning rate; warm-up, then half a cosine.",
)
@click.option(
    "--warm-up", type=click.IntRange(min=0), default=200, show_default=True, help="Steps of warm-up."
)
@click.option(
    "--loss",
    type=click.Choice(LOSS_NAMES),
    default="bce+dice",
    show_default=True,
    help="What is minimised; boundary weighs the outline.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="For weights, order and augmentation.",
)
def command(data: Path, run: Path, also: tuple[Path, ...], val: Path, **values: Any) -> None:
    """Train a network on DATA and write its averaged weights into the folder RUN.

    DATA holds `images/<id>.jpg` and `masks/<id>_mask.gif`. The same command again goes on from the last
    checkpoint. It runs on a CPU, in bf16.
    """
    from carvana_batch.training.data import find_pairs
    from carvana_batch.training.loop import TrainingSettings, train

    pairs = [pair for folder in (data, *also) for pair in find_pairs(folder)]
    val_pairs = find_pairs(val)
    click.echo(f"{len(pairs):,} photos to train on, {len(val_pairs):,} to measure on")
    weights = train(
        pairs, val_pairs, run, TrainingSettings(**values), lambda line: click.echo(json.dumps(line))
    )
    click.echo(f"weights: {weights}")
