"""``carvana-batch score``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from carvana_batch.commands.command import Command
from carvana_batch.commands.parameters import MaskSize, car_value_option, ignore_value_option
from carvana_batch.errors import EXIT_SOME_FAILED, QualityGateError, UsageError
from carvana_batch.files import check_target
from carvana_batch.scoring.scores import (
    Average,
    Group,
    Scores,
    Summary,
    refuse_other_file,
    summarise,
    write_scores,
)
from carvana_batch.text import shown
from carvana_batch.values import Failure

WORST_SHOWN = 5
NAMES_SHOWN = 5
GROUPS_SHOWN = 20
WORST_ON_PAGE = 12


@click.command(cls=Command)
@click.argument("predicted", type=click.Path(path_type=Path), default="out", metavar="[PRED]")
@click.option(
    "--gt",
    "truth",
    type=click.Path(path_type=Path),
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
    predicted: Path,
    truth: Path,
    photos: Path | None,
    output: Path,
    as_json: bool,
    page: Path | None,
    pictures: Path | None,
    fail_under: float | None,
    size: tuple[int, int] | None,
    car_values: tuple[int, ...],
    ignored_values: tuple[int, ...],
    workers: int | None,
) -> None:
    """Compare masks with the true ones.

    PRED is the folder that predict wrote (default: out), or run-length rows as submit writes them. Masks
    are paired by their path below the folder, without suffix and without _mask. Exit code 3 if a mask of
    either side could not be paired or compared: such masks are named and never averaged.
    """
    from carvana_batch.scoring.compare import compare_masks
    from carvana_batch.scoring.page.page import check_pictures, write_page, write_pictures
    from carvana_batch.scoring.page.pictures import read_worst

    if output.suffix.lower() != ".csv":
        raise UsageError(
            f"Cannot write {shown(output)}: the scores are CSV. Give -o a name that ends in .csv."
        )
    check_target(output)
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
        scores = compare_masks(
            predicted,
            truth,
            photos=photos,
            size=size,
            car_values=car_values,
            ignored_values=ignored_values,
            workers=workers,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for note in scores.notes:
        click.echo(note, err=True)
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
            click.echo(f"Page: {shown(page)}")
    if report_empty_sides(scores, predicted, truth):
        context.exit(EXIT_SOME_FAILED)
    if fail_under is not None:
        check_gate(scores, fail_under)
    if not scores.complete:
        context.exit(EXIT_SOME_FAILED)


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


def report_empty_sides(scores: Scores, predicted: Path, truth: Path) -> bool:
    """Say on stderr if all masks of a side are empty, which is a mistake in reading or writing them."""
    values = "check their values, of which the higher is car"
    sides = [
        ("predicted", predicted, values, [row.area_predicted for row in scores.rows]),
        ("true", truth, f"{values} (or --car-value)", [row.area_true for row in scores.rows]),
    ]
    empty = [(side, path, advice) for side, path, advice, areas in sides if areas and not any(areas)]
    for side, path, advice in empty:
        if not path.is_dir():
            advice = f"their rows in {shown(path)} are empty"
        click.echo(
            f"Error: none of the {len(scores.rows):,} {side} masks that were compared has a car: {advice}.",
            err=True,
        )
    return bool(empty)


def print_empty(scores: Scores) -> None:
    """Say how many pairs are empty on both sides, and the mean Dice without them."""
    kept = scores.not_empty
    count = len(scores.rows) - len(kept)
    without = summarise(kept)
    mean = f"; mean Dice without them: {without.dice:.6f}" if count and without else ""
    click.echo(f"Empty on both sides, counted as 1: {count:,}{mean}")


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


def describe(scores: Scores, output: Path, page: Path | None = None) -> dict[str, object]:
    """Return the scores for JSON; ``summary`` is null if no image was scored."""
    summary = scores.summary
    return {
        "summary": None if summary is None else describe_means(summary, scores.averages),
        "empty_on_both_sides": len(scores.rows) - len(scores.not_empty),
        "views": [
            {"view": group.name, **describe_means(group.summary, group.averages)} for group in scores.views
        ],
        "cars": [
            {"car": group.name, **describe_means(group.summary, group.averages)} for group in scores.cars
        ],
        "worst": [
            {column: getattr(row, column) for column in scores.columns}
            for row in scores.find_worst(WORST_SHOWN)
        ],
        "missing": scores.missing,
        "extra": scores.extra,
        "unusable": [describe_failure(failure) for failure in scores.unusable],
        "unseen": [describe_failure(failure) for failure in scores.unseen],
        "notes": scores.notes,
        "turned": scores.turned,
        "unclear_orientation": scores.unclear,
        "scores": str(output),
        "page": None if page is None else str(page),
    }


def describe_failure(failure: Failure) -> dict[str, str]:
    return {"image": failure.id, "reason": failure.reason}


def describe_means(summary: Summary, averages: Mapping[str, Average]) -> dict[str, object]:
    """Return all means for JSON; ``defined_for`` is the number of images for which a metric is defined."""
    return {
        **dataclasses.asdict(summary),
        **{name: average.value for name, average in averages.items()},
        "defined_for": {name: average.images for name, average in averages.items()},
    }


def print_scores(scores: Scores, output: Path) -> None:
    if scores.summary:
        click.echo(f"Masks scored: {scores.summary.images:,}")
        print_empty(scores)
        print_summary(scores.summary)
        print_outline(scores.averages, scores.summary.images)
        print_groups("view", scores.views, GROUPS_SHOWN)
        print_groups("car", scores.cars, WORST_SHOWN)
        click.echo("\nLowest Dice")
        for row in scores.find_worst(WORST_SHOWN):
            click.echo(f"  {row.dice:.6f}  {shown(row.image)}")
    else:
        click.echo("No mask could be scored.")
    if scores.turned or scores.unclear:
        print_orientations(scores)
    print_names("True masks without a predicted one", scores.missing)
    print_names("Predicted masks without a true one", scores.extra)
    print_names("Masks that cannot be compared", list_reasons(scores.unusable))
    print_names("Photos that cannot be used", list_reasons(scores.unseen))
    click.echo(f"\nEach image's scores: {shown(output)}")


def print_orientations(scores: Scores) -> None:
    click.echo()
    if scores.turned:
        click.echo(
            "Pairs of an upright mask and one as the photo is stored, turned alike by its EXIF orientation:"
            f" {scores.turned:,}"
        )
    if scores.unclear:
        click.echo(
            f"Photos whose EXIF orientation keeps their size: {scores.unclear:,}; their masks were compared"
            " as they are, because it cannot be told whether one is upright and the other as stored"
        )


def list_reasons(failures: Sequence[Failure]) -> list[str]:
    return [f"{failure.id}: {failure.reason}" for failure in failures]


def print_summary(summary: Summary) -> None:
    print_lines(
        ("mean Dice", f"{summary.dice:.6f}", ""),
        ("mean IoU", f"{summary.iou:.6f}", ""),
        ("mean pixel accuracy", f"{summary.pixel_accuracy:.6f}", ""),
        ("mean precision", f"{summary.precision:.6f}", ""),
        ("mean recall", f"{summary.recall:.6f}", ""),
        ("Dice at 5 %", f"{summary.dice_05:.6f}", ""),
        ("Dice at 50 %", f"{summary.dice_50:.6f}", ""),
        ("Dice at 95 %", f"{summary.dice_95:.6f}", ""),
    )


def print_outline(averages: Mapping[str, Average], images: int) -> None:
    """Print the metrics of the outlines, with a note for metrics that are not defined for all images."""

    def note_coverage(average: Average) -> str:
        return "" if average.images == images else f"in {average.images:,} of {images:,} images"

    def line(label: str, name: str, template: str, note: str = "") -> tuple[str, str, str]:
        average = averages[name]
        value = "-" if average.value is None else template.format(average.value)
        return label, value, ", ".join(part for part in (note, note_coverage(average)) if part)

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%} of it"

    print_lines(
        line("distance between outlines", "boundary_mean", "{:.2f} px"),
        line("  95th percentile", "boundary_p95", "{:.2f} px"),
        line("Dice within 5 px of the outline", "band_dice", "{:.4f}"),
    )
    whole, lower = averages["outline_error"].pixels, averages["lower_error"].pixels
    lower_share = share(lower / whole if whole and lower else None)
    errors = [
        line("error along the true outline", "outline_error", "{:.2f} px"),
        line("  lower outline", "lower_error", "{:.2f} px", lower_share),
    ]
    if "similar_error" in averages:
        similar_share = share(averages["similar_share"].value)
        errors.append(line("  similar colours", "similar_error", "{:.2f} px", similar_share))
    thin = averages["thin_recall"]
    note = f"{thin.pixels:,} px" if thin.pixels else ""
    print_lines(*errors, line("recall of thin structures", "thin_recall", "{:.4f}", note))


def print_lines(*lines: tuple[str, str, str]) -> None:
    """Print a paragraph of lines, each a label, a value and a note."""
    click.echo()
    for label, value, note in lines:
        click.echo(f"{label:<34}{value:>8}" + (f"  ({note})" if note else ""))


def print_groups(kind: str, groups: Sequence[Group], limit: int) -> None:
    """Print one line per group, or only the ``limit`` with the lowest Dice; nothing for a single group."""
    if len(groups) < 2:
        return
    kept = groups
    if len(groups) > limit:
        kept = sorted(groups, key=lambda group: (group.summary.dice, group.name))[:limit]
        click.echo(f"\nThe {limit} of {len(groups):,} {kind}s with the lowest Dice (--json has all)")
    else:
        click.echo(f"\nBy {kind}")
    click.echo("  images    Dice     5 %     IoU  precision  recall  distance  " + kind)
    for group in kept:
        summary, boundary_mean = group.summary, group.averages["boundary_mean"].value
        distance = "-" if boundary_mean is None else f"{boundary_mean:.2f} px"
        click.echo(
            f"  {summary.images:>6,}  {summary.dice:.4f}  {summary.dice_05:.4f}  {summary.iou:.4f}"
            f"  {summary.precision:>9.4f}  {summary.recall:.4f}  {distance:>8}  {shown(group.name)}"
        )


def print_names(heading: str, names: Sequence[str]) -> None:
    """Print the number of names and the first few of them; nothing if there are none."""
    if not names:
        return
    click.echo(f"\n{heading}: {len(names):,}")
    for name in names[:NAMES_SHOWN]:
        click.echo(f"  {shown(name)}")
    if len(names) > NAMES_SHOWN:
        click.echo(f"  ... and {len(names) - NAMES_SHOWN:,} more")
