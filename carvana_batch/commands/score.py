"""``carvana-batch score``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from carvana_batch.atomic import check_target
from carvana_batch.inputs import shown
from carvana_batch.records import EXIT_SOME_FAILED, QualityGateError, UsageError
from carvana_batch.scoring import Scores, score_folders, write_scores

WORST_SHOWN = 3
NAMES_SHOWN = 5


@click.command()
@click.argument("predicted", type=click.Path(path_type=Path), default="out", metavar="[PRED]")
@click.option(
    "--gt", "truth", type=click.Path(path_type=Path), required=True, help="Folder of the true masks."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="scores.csv",
    show_default=True,
    help="CSV to write, an image a row.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, with all the names, and no table."
)
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 1),
    help="Exit with code 4 if the mean Dice is below this; everything is written before.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Pairs read at a time.  [default: one a core]")
@click.pass_context
def command(
    context: click.Context,
    predicted: Path,
    truth: Path,
    output: Path,
    as_json: bool,
    fail_under: float | None,
    workers: int | None,
) -> None:
    """Compare masks with the true ones.

    PRED is what predict wrote (default: out). Masks are paired by their path below the folder, without
    suffix and without _mask. Exit code 3 if a mask of either folder could not be paired or compared: such
    masks are named and never averaged.
    """
    if output.suffix.lower() != ".csv":
        raise UsageError(
            f"Cannot write {shown(output)}: the scores are CSV. Give -o a name that ends in .csv."
        )
    check_target(output)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Scoring", total=None)
        scores = score_folders(
            predicted,
            truth,
            workers=workers,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    write_scores(scores.rows, output)
    if as_json:
        click.echo(json.dumps(describe(scores, output)))
    else:
        print_scores(scores, output)
    if fail_under is not None:
        check_gate(scores, fail_under)
    if not scores.complete:
        context.exit(EXIT_SOME_FAILED)


def check_gate(scores: Scores, lowest: float) -> None:
    if scores.summary is None:
        raise QualityGateError(
            "No mask could be scored, so there is no mean Dice to hold against --fail-under."
        )
    if not scores.summary.dice >= lowest:  # so that nan, too, is a gate that is missed
        raise QualityGateError(f"The mean Dice is {scores.summary.dice:.8f}, below --fail-under {lowest}.")


def describe(scores: Scores, output: Path) -> dict[str, object]:
    """The scores as JSON has them; ``summary`` is null if no image was scored."""
    return {
        "summary": dataclasses.asdict(scores.summary) if scores.summary else None,
        "worst": [dataclasses.asdict(row) for row in scores.find_worst(WORST_SHOWN)],
        "missing": scores.missing,
        "extra": scores.extra,
        "unusable": [dataclasses.asdict(image) for image in scores.unusable],
        "scores": str(output),
    }


def print_scores(scores: Scores, output: Path) -> None:
    if scores.summary:
        click.echo(f"Masks scored: {scores.summary.images:,}")
        table = Table("metric", "value")
        for name, value in (
            ("mean Dice", scores.summary.dice),
            ("mean IoU", scores.summary.iou),
            ("mean pixel accuracy", scores.summary.pixel_accuracy),
            ("mean precision", scores.summary.precision),
            ("mean recall", scores.summary.recall),
            ("Dice at 5 %", scores.summary.dice_05),
            ("Dice at 50 %", scores.summary.dice_50),
            ("Dice at 95 %", scores.summary.dice_95),
        ):
            table.add_row(name, f"{value:.6f}")
        Console().print(table)
        click.echo("Lowest Dice:")
        for row in scores.find_worst(WORST_SHOWN):
            click.echo(f"  {row.dice:.6f}  {shown(row.image)}")
    else:
        click.echo("No mask could be scored.")
    print_names("True masks without a predicted one", scores.missing)
    print_names("Predicted masks without a true one", scores.extra)
    print_names("Pairs that cannot be compared", [f"{pair.image}: {pair.reason}" for pair in scores.unusable])
    click.echo(f"Each image's scores: {shown(output)}")


def print_names(what: str, names: Sequence[str]) -> None:
    """The first few of ``names`` and how many there are; nothing if there are none."""
    if not names:
        return
    click.echo(f"{what}: {len(names):,}")
    for name in names[:NAMES_SHOWN]:
        click.echo(f"  {shown(name)}")
    if len(names) > NAMES_SHOWN:
        click.echo(f"  ... and {len(names) - NAMES_SHOWN:,} more")
