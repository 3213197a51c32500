"""``carvana-batch review``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from carvana_batch.commands.command import Command
from carvana_batch.commands.lines import say
from carvana_batch.inputs.decisions import ACCEPT, REJECT, Decision, match_decisions, read_decisions
from carvana_batch.options import REVIEW_SAMPLE, REVIEW_WORST
from carvana_batch.text import counted, shown

if TYPE_CHECKING:
    from carvana_batch.review.page import Written
    from carvana_batch.review.selection import FinishedRun, Selection

MOST_SHOWN = 1000
"""Masks of each kind that a browser can still show on one page."""


@click.command(cls=Command)
@click.argument("out", metavar="[OUT]", type=click.Path(path_type=Path), default="out")
@click.option(
    "--images",
    metavar="IN",
    type=click.Path(path_type=Path),
    help="Folder of the photos.  [default: where the run found them]",
)
@click.option(
    "-o",
    "--output",
    "page",
    type=click.Path(path_type=Path),
    help="The page to write.  [default: review.html; with --decisions, none]",
)
@click.option(
    "--worst",
    type=click.IntRange(0, MOST_SHOWN),
    default=REVIEW_WORST,
    show_default=True,
    help="How many of the most doubtful masks to show.",
)
@click.option(
    "--sample",
    type=click.IntRange(0, MOST_SHOWN),
    default=REVIEW_SAMPLE,
    show_default=True,
    help="How many of the other masks to show, drawn at random.",
)
@click.option(
    "--decisions",
    "table",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Count the decisions that the page has saved; with -o, also make a page that starts with them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    out: Path,
    images: Path | None,
    page: Path | None,
    worst: int,
    sample: int,
    table: Path | None,
    as_json: bool,
) -> None:
    """Write a page to look at the masks of a run, without true ones.

    OUT is the folder that predict wrote (default: out). The page shows the most doubtful masks first, and
    some of the others drawn at random; masks are accepted or rejected with the keys A and R. The decisions
    stay in the browser, and are saved as a CSV, whose rejected photos `predict IN OUT --files-from FILE`
    masks again.
    """
    from carvana_batch.review.page import check_page, write_page
    from carvana_batch.review.selection import read_finished_run, select

    run = read_finished_run(out)
    selection = select(run.masked, worst, sample)
    decisions: Mapping[str, Decision] = {}
    if table is not None:
        keys = [entry.key for entry in (*run.masked, *run.kept, *run.failures)]
        decisions = match_decisions(read_decisions(table), keys, shown(table), out)
    else:
        page = page or Path("review.html")
    written = None
    if page is not None:
        check_page(page)
        with _waiting("Making pictures"):
            written = write_page(page, run, selection, images=images, decisions=decisions)
    if as_json:
        click.echo(json.dumps(describe(run, selection, decisions, written)))
        return
    if table is not None:
        print_decisions(decisions, run, selection)
    if written is not None:
        print_page(written, run, selection)


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    with Console(stderr=True).status(what):
        yield


def describe(
    run: FinishedRun, selection: Selection, decisions: Mapping[str, Decision], written: Written | None
) -> dict[str, object]:
    """Return the content of ``--json``."""
    sampled = [decisions[entry.key] for entry in selection.sample if entry.key in decisions]
    return {
        "masks": len(run.masked),
        "doubtful": run.doubtful,
        "failed": len(run.failures),
        "kept": len(run.kept),
        "worst": len(selection.worst),
        "sample": len(selection.sample),
        "others": selection.others,
        "mean_doubt_of_others": selection.mean_doubt,
        "decisions": _count(list(decisions.values())),
        "decisions_of_sample": _count(sampled),
        "page": None if written is None else str(written.page),
        "photos": None if written is None or written.photos is None else str(written.photos),
        "without_photo": None if written is None else written.without_photo,
        "unreadable": None if written is None else written.unreadable,
    }


def _count(decisions: list[Decision]) -> dict[str, int]:
    return {
        "accepted": sum(each.decision == ACCEPT for each in decisions),
        "rejected": sum(each.decision == REJECT for each in decisions),
        "only_notes": sum(not each.decision for each in decisions),
    }


def print_decisions(decisions: Mapping[str, Decision], run: FinishedRun, selection: Selection) -> None:
    """Print the numbers of decisions, and what those on the random sample say of the rest."""
    counts = _count(list(decisions.values()))
    left = len(run.masked) - counts["accepted"] - counts["rejected"]
    say(f"{counts['accepted']:,} accepted, {counts['rejected']:,} rejected, {left:,} undecided")
    if counts["only_notes"]:
        say(f"{counted(counts['only_notes'], 'note')} without a decision")
    shown_keys = {entry.key for entry in (*selection.worst, *selection.sample)}
    outside = [key for key in decisions if decisions[key].decision and key not in shown_keys]
    if outside:
        say(
            f"{counted(len(outside), 'decision')} on masks that were not selected as here, so nothing is said"
            " of the others. Give --worst and --sample as for the page.",
            err=True,
        )
        return
    sampled = _count([decisions[entry.key] for entry in selection.sample if entry.key in decisions])
    n = sampled["accepted"] + sampled["rejected"]
    if not n:
        return
    from carvana_batch.review.selection import wilson_interval

    say(
        f"Of {counted(n, 'mask')} drawn at random from the {selection.others:,} less doubtful,"
        f" {sampled['accepted']:,} accepted: {sampled['accepted'] / n:.1%}"
        + (
            ", 95 % interval {:.1%} to {:.1%}".format(*wilson_interval(sampled["accepted"], n))
            if n < selection.others
            else ""
        )
    )


def print_page(written: Written, run: FinishedRun, selection: Selection) -> None:
    """Print what the page shows, and its path last."""
    sample = f" and {len(selection.sample):,} of the others at random" if selection.sample else ""
    say(
        f"{counted(len(run.masked), 'mask')}, {run.doubtful:,} of them doubtful,"
        f" {len(run.failures):,} failed; shown: the {len(selection.worst):,} most doubtful{sample}"
    )
    if written.left_out:
        say(f"{counted(written.left_out, 'mask')} left out, to keep the page small")
    if written.unreadable:
        say(
            f"{counted(written.unreadable, 'mask')} cannot be read; `carvana-batch verify"
            f" {shown(run.root)}` names what is missing or damaged",
            err=True,
        )
    if written.without_photo:
        say(
            f"{counted(written.without_photo, 'mask')} without photo; give --images IN, the folder that was"
            " given to predict",
            err=True,
        )
    if written.photos is not None:
        say(f"Its photos: {shown(written.photos)}")
    say(f"Page: {shown(written.page)}")
