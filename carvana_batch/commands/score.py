"""``carvana-batch score``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.commands.buckets import PathOrUrl, enter_mask_folder
from carvana_batch.commands.command import Command
from carvana_batch.commands.lines import say
from carvana_batch.commands.parameters import MaskSize, car_value_option, ignore_value_option
from carvana_batch.commands.score_report import describe, describe_empty_sides, print_scores
from carvana_batch.errors import EXIT_SOME_FAILED, QualityGateError, UsageError
from carvana_batch.files import check_target
from carvana_batch.scoring.scores import (
    Scores,
    refuse_other_file,
    write_scores,
)
from carvana_batch.text import shown

if TYPE_CHECKING:
    from carvana_batch.cloud.masks import Masks

WORST_ON_PAGE = 12


@click.command(cls=Command)
@click.argument("predicted", type=PathOrUrl(), default="out", metavar="[PRED]")
@click.option(
    "--gt",
    "truth",
    type=PathOrUrl(),
    required=True,
    help="The true masks: a folder, or run-length rows (.csv, .csv.gz, .zip).",
)
@click.option(
    "--images",
    "photos",
    type=click.Path(path_type=Path),
    help="Folder of the photos; with it, errors are also told where paint and background look alike, and a"
    " mask as stored and an upright one are turned alike by the EXIF orientation.",
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
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object, with all cars, views and names, and no tables.",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A page to look at: charts, a table of all images, and the worst ones with their errors. Photos are"
    " shown if --images, or the run.json of PRED, says where they are.",
)
@click.option(
    "--pictures",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="With --html: write the picture of each image into DIR, and open it from its row of the table.",
)
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 1),
    help="Exit with code 4 if the mean Dice is below this; everything is written before.",
)
@click.option(
    "--size",
    type=MaskSize(),
    metavar="WIDTHxHEIGHT",
    help="Size of the masks, where both sides are run-length rows.  [default: 1918x1280]",
)
@car_value_option("the masks of --gt")
@ignore_value_option("the masks of --gt")
@click.option("--workers", type=click.IntRange(min=1), help="Images at a time.  [default: one a core]")
@click.pass_context
def command(
    context: click.Context,
    /,
    predicted: Path | BucketUrl,
    truth: Path | BucketUrl,
    photos: Path | None,
    output: Path,
    as_json: bool,
    page: Path | None,
    pictures: Path | None,
    fail_under: float | None,
    workers: int | None,
    **_others: Any,
) -> None:
    """Compare masks with the true ones.

    PRED is the folder that predict wrote (default: out), or run-length rows as submit writes them. Masks
    are paired by their path below the folder, without suffix and without _mask. Exit code 3 if a mask of
    either side could not be paired or compared: such masks are named and never averaged.
    """
    from carvana_batch.scoring.page.page import check_pictures, write_page, write_pictures
    from carvana_batch.scoring.page.pictures import read_worst

    if output.suffix.lower() != ".csv":
        raise UsageError(
            f"Cannot write {shown(output)}: the scores are CSV. Give -o a name that ends in .csv."
        )
    check_target(output)
    if page is not None and (isinstance(predicted, BucketUrl) or isinstance(truth, BucketUrl)):
        raise UsageError("--html does not go with masks in a bucket: copy them to this machine.")
    in_predicted, in_truth = (enter_mask_folder(context, each) for each in (predicted, truth))
    predicted, truth = in_predicted.folder, in_truth.folder
    for source, option in ((predicted, "PRED"), (truth, "--gt")):
        if output.exists() and source.exists() and output.samefile(source):
            raise UsageError(f"{shown(output)} is {option} itself. Give -o another name.")
    refuse_other_file(output)
    if page is not None:
        if page.suffix.lower() != ".html":
            raise UsageError(f"Cannot write {shown(page)}: give --html a name that ends in .html.")
        check_target(page)
    if pictures is not None:
        if page is None:
            raise UsageError("--pictures are opened from the page. Give --html as well.")
        check_pictures(pictures)
    with _progress() as progress:
        task = progress.add_task("Scoring", total=None)
        scores = compare(
            in_predicted,
            in_truth,
            context.params,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for note in scores.notes:
        say(note, err=True)
    write_scores(scores.rows, output, scores.columns)
    if page is not None:
        folder = photos or find_photos_of_run(predicted)
        links = None
        if pictures is not None:
            with _progress() as progress:
                task = progress.add_task("Pictures", total=None)
                links = write_pictures(
                    pictures,
                    page,
                    scores,
                    folder,
                    workers,
                    lambda done, total: progress.update(task, completed=done, total=total),
                )
        worst = read_worst(scores, WORST_ON_PAGE, folder)
        write_page(page, scores, predicted=predicted, truth=truth, worst=worst, links=links)
    if as_json:
        click.echo(json.dumps(describe(scores, output, page)))
    else:
        print_scores(scores, output)
        if page is not None:
            say(f"Page: {shown(page)}")
    if lines := describe_empty_sides(scores, predicted, truth):
        for line in lines:
            say(f"Error: {line}", err=True)
        context.exit(EXIT_SOME_FAILED)
    if fail_under is not None:
        check_gate(scores, fail_under)
    if not scores.complete:
        left_out = ", ".join(scores.unused)
        say(f"Not everything was compared: {left_out}. So the exit code is {EXIT_SOME_FAILED}.", err=True)
        context.exit(EXIT_SOME_FAILED)


def compare(
    predicted: Masks,
    truth: Masks,
    values: Mapping[str, Any],
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Scores:
    """Compare masks, which may be in buckets, and name them in the texts for the user as the user does.

    Args:
        predicted, truth: the masks.
        values: of the parameters of the command.
        on_progress: see :func:`compare_masks`.

    Raises:
        UsageError: the masks cannot be read, or none has a counterpart.
    """
    from carvana_batch.scoring.compare import compare_masks

    scores = compare_masks(
        predicted.folder,
        truth.folder,
        photos=values["photos"],
        size=values["size"],
        car_values=values["car_values"],
        ignored_values=values["ignored_values"],
        workers=values["workers"],
        on_progress=on_progress,
        reading=(predicted.reading, truth.reading),
    )
    return reword(reword(scores, predicted.in_words), truth.in_words)


def reword(scores: Scores, in_words: Callable[[str], str]) -> Scores:
    """The scores with other names of files in the texts for the user."""
    notes = tuple(map(in_words, scores.notes))
    unusable = tuple(
        dataclasses.replace(failure, reason=in_words(failure.reason)) for failure in scores.unusable
    )
    return dataclasses.replace(scores, notes=notes, unusable=unusable)


def find_photos_of_run(predicted: Path) -> Path | None:
    """The folder of the photos, for pictures only, if ``run.json`` names it and there still are photos."""
    from carvana_batch.inputs.masks import find_photos
    from carvana_batch.output.photos import find_in_folder

    folder = find_in_folder(predicted)
    try:
        return folder if folder is not None and find_photos(folder) else None
    except UsageError:
        return None


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def check_gate(scores: Scores, limit: float) -> None:
    """Check the mean Dice.

    Raises:
        QualityGateError: the mean Dice is below ``limit``, or there is none.
    """
    if scores.summary is None:
        raise QualityGateError(
            "No mask could be scored, so there is no mean Dice to hold against --fail-under."
        )
    if not scores.summary.dice >= limit:  # also fails for a limit of NaN
        raise QualityGateError(f"The mean Dice is {scores.summary.dice:.8f}, below --fail-under {limit}.")
