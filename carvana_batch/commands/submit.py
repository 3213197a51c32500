"""``carvana-batch submit``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.commands.buckets import PathOrUrl, enter_mask_folder
from carvana_batch.commands.command import Command
from carvana_batch.commands.lines import command_line, say
from carvana_batch.commands.parameters import AnyMaskSize, car_value_option
from carvana_batch.errors import EXIT_SOME_FAILED
from carvana_batch.output.status import RunState, read_run_state
from carvana_batch.submission.table import COMPETITION_ROWS, COMPETITION_SIZE, SubmissionSummary
from carvana_batch.submission.write import write_submission
from carvana_batch.text import NAMED, shown

EXAMPLE_NAME = "0cdf5b5d0ce1_01.jpg"

DAMAGED_ADVICE = (
    "If predict made them, and they are damaged, the same predict command with --verify makes them again."
)


@click.command(cls=Command)
@click.argument("masks", type=PathOrUrl(), default="out")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="submission.csv.gz",
    show_default=True,
    help="File to write; its name ends in .csv, .csv.gz or .zip.",
)
@click.option(
    "--size",
    type=AnyMaskSize(),
    default="1918x1280",
    metavar="WIDTHxHEIGHT|any",
    show_default=True,
    help="Size that every mask must have.",
)
@click.option(
    "--sample",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Sample submission (.csv, .csv.gz or .zip) that gives the header, the ids and their order.",
)
@car_value_option("the masks")
@click.option("--workers", type=click.IntRange(min=1), help="Masks read at a time.  [default: one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    context: click.Context,
    masks: Path | BucketUrl,
    output: Path,
    size: tuple[int, int] | None,
    sample: Path | None,
    car_values: tuple[int, ...],
    workers: int | None,
    as_json: bool,
) -> None:
    """Turn the masks of a folder into the competition's CSV.

    MASKS is what predict wrote (default: out). The file appears whole or not at all, and the same masks
    always give the same bytes. With --sample, missing and surplus masks are refused. A mask that cannot be
    read, or has another size, ends this with exit code 1. Exit code 3 if no mask has a car. Nothing is
    uploaded.
    """
    local = enter_mask_folder(context, masks)
    state = read_run_state(local.folder)
    for line in describe_unfinished(masks, state) if state is not None else ():
        say(f"Warning: {line}", err=True)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Encoding", total=None)
        summary = write_submission(
            local.folder,
            output,
            size,
            sample=sample,
            car_values=car_values,
            workers=workers,
            advice="" if state is None else DAMAGED_ADVICE,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            reading=local.reading,
        )
    for line in describe_lost(masks, state, summary.rows) if state is not None and sample is None else ():
        say(f"Warning: {line}", err=True)
    all_empty = summary.empty == summary.rows
    lacking = [] if all_empty else what_is_lacking(summary, size)
    if as_json:
        click.echo(json.dumps(describe(summary, output, lacking)))
    else:
        sample_words = "" if sample is None else f" (those of {shown(sample)})"
        say(f"file         {shown(output)}")
        say(f"rows         {summary.rows:,}{sample_words}")
        say(f"empty masks  {summary.empty:,}{list_empty(summary)}")
        say(f"size         {summary.bytes:,} bytes")
        say(f"sha256       {summary.sha256}")
    if summary.doubt:
        say(local.in_words(summary.doubt), err=True)
    if all_empty:
        say(f"Error: none of the masks in {shown(masks)} has a car.", err=True)
        context.exit(EXIT_SOME_FAILED)
    if as_json:
        return
    if lacking:
        say("\nThe competition would not accept this file:")
        for line in lacking:
            say(f"  {line}")
    else:
        say("\nTo hand it in:")
        say(command_line(hand_in_command(output)))


def what_is_lacking(summary: SubmissionSummary, size: tuple[int, int] | None) -> list[str]:
    """What the file lacks to be one that the competition accepts, a short line each; empty if nothing."""
    lines = []
    if size != COMPETITION_SIZE:
        has = "any" if size is None else "{}x{}".format(*size)
        lines.append("it wants masks of {}x{}; --size is {}".format(*COMPETITION_SIZE, has))
    if summary.foreign:
        lines.append(
            f"it wants names such as {EXAMPLE_NAME}; {summary.foreign:,} of {summary.rows:,} differ, such as"
            f" {shown(summary.first_foreign)}"
        )
    if summary.rows != COMPETITION_ROWS:
        lines.append(f"it wants {COMPETITION_ROWS:,} rows; the file has {summary.rows:,}")
    return lines


def hand_in_command(output: Path) -> list[str]:
    """The command that hands a file in."""
    program = ["kaggle", "competitions", "submit", "-c", "carvana-image-masking-challenge"]
    return [*program, "-f", str(output), "-m", "carvana-batch"]


def describe(summary: SubmissionSummary, output: Path, lacking: list[str]) -> dict[str, Any]:
    """The content of ``--json``; without a car, nothing is lacking, but there is nothing to hand in."""
    ready = not lacking and summary.empty < summary.rows
    return {
        "file": str(output),
        "rows": summary.rows,
        "empty": summary.empty,
        "first_empty": list(summary.first_empty),
        "bytes": summary.bytes,
        "sha256": summary.sha256,
        "doubt": summary.doubt or None,
        "competition_lacks": lacking,
        "hand_in": shlex.join(hand_in_command(output)) if ready else None,
    }


def list_empty(summary: SubmissionSummary) -> str:
    """Format the first photos whose masks are empty, so that the user can check them."""
    if not summary.empty:
        return ""
    more = ", ..." if summary.empty > len(summary.first_empty) else ""
    return f" ({', '.join(map(shown, summary.first_empty))}{more})"


def describe_unfinished(folder: Path | BucketUrl, state: RunState) -> list[str]:
    """What to warn of if predict has not yet masked all photos of an out folder."""
    name = shown(folder)
    facts = [f"Masks so far: {state.masked:,}"]
    lines = []
    if state.left:
        facts.append(f"photos left: {state.left:,}")
    if state.shards and state.shards[0] < state.shards[1]:
        facts.append("shards begun: {} of {}".format(*state.shards))
    if state.running:
        lines.append(f"a run of predict is at work in {name}. {'; '.join(facts)}.")
    elif not state.finished:
        lines.append(
            f"{name} is not finished. {'; '.join(facts)}. The same predict command, run again, does the rest."
        )
    if state.kept:
        names = ", ".join(shown(f"{key}.png") for key in state.kept[:NAMED])
        more = ", ..." if len(state.kept) > NAMED else ""
        lines.append(
            f"masks in {name} that predict did not make: {len(state.kept):,} ({names}{more})."
            " They are used as they are."
        )
    if state.failed:
        report = folder / "report.csv"
        there = isinstance(report, BucketUrl) or report.exists()
        where = f"; {shown(report)} names them" if there else ""
        lines.append(f"photos that failed and have no mask in {name}: {state.failed:,}{where}.")
    return lines


def describe_lost(folder: Path | BucketUrl, state: RunState, rows: int) -> list[str]:
    """What to warn of if fewer masks are there than predict made."""
    lost = state.masked + len(state.kept) - rows
    if lost <= 0:
        return []
    return [
        f"{shown(folder)} has {lost:,} masks less than predict made. The same predict command, run again,"
        " makes them once more."
    ]
