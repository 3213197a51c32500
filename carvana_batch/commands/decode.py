"""``carvana-batch decode``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from carvana_batch.commands.command import Command
from carvana_batch.commands.lines import say
from carvana_batch.commands.parameters import RowSize
from carvana_batch.errors import EXIT_SOME_FAILED
from carvana_batch.masks import rle
from carvana_batch.submission.table import COMPETITION_SIZE
from carvana_batch.submission.unpack import decode_submission
from carvana_batch.text import shown
from carvana_batch.values import Failure

NAMES_SHOWN = 10


@click.command(cls=Command)
@click.argument("source", metavar="CSV", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--size",
    type=RowSize(),
    metavar="WIDTHxHEIGHT",
    help="Size of the photos; a row does not say it.  [default: 1918x1280]",
)
@click.option(
    "--rle-order",
    "order",
    type=click.Choice(["rows", "columns"]),
    help="How rows count pixels: along the rows, as Carvana does, or down the columns, as many other"
    " competitions do.  [default: rows, unless they look otherwise]",
)
@click.option(
    "--mask-bits",
    type=click.Choice(["1", "8"]),
    default="1",
    show_default=True,
    help="Bits a pixel of the PNG masks: 1, or 8 with values 0 and 255.",
)
@click.option("--overwrite", is_flag=True, help="Replace masks that are in OUT already.")
@click.option("--workers", type=click.IntRange(min=1), help="Masks written at a time.  [default: one a core]")
@click.pass_context
def command(
    context: click.Context,
    source: Path,
    out: Path,
    size: tuple[int, int] | None,
    order: rle.Order | None,
    mask_bits: str,
    overwrite: bool,
    workers: int | None,
) -> None:
    """Turn a submission back into masks.

    CSV is a .csv, .csv.gz or .zip such as submit writes. The mask of the row a/b.jpg is OUT/a/b.png. A row
    that cannot be used is named at the end and does not stop the others; the exit code is then 3, as it is
    if all rows are empty. If OUT already has a mask of one of the rows, nothing is
    written, unless --overwrite is given. Rows that seem
    to be of another size, or to count pixels down the columns, are refused.
    """
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Decoding", total=None)
        summary = decode_submission(
            source,
            out,
            size,
            order=order,
            mask_bits=int(mask_bits),
            overwrite=overwrite,
            workers=workers,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if size is None:
        width, height = COMPETITION_SIZE
        say(
            f"Assumed {width}x{height} pixels, the competition's size; --size changes it.",
            err=True,
        )
    if summary.doubt:
        say(f"Warning: {summary.doubt}", err=True)
    print_failures(summary.failures)
    empty = f" ({summary.empty:,} of them empty)" if summary.empty else ""
    say(f"{summary.masks:,} decoded{empty}, {len(summary.failures):,} failed -> {shown(out)}")
    only_empty = summary.masks > 0 and summary.empty == summary.masks
    if only_empty:
        say(f"Error: none of the {summary.masks:,} rows has a car: all are empty.", err=True)
    if summary.failures or only_empty:
        context.exit(EXIT_SOME_FAILED)


def print_failures(failures: Sequence[Failure]) -> None:
    for failure in failures[:NAMES_SHOWN]:
        say(f"failed: {shown(failure.source)}: {shown(failure.id)}: {shown(failure.reason)}", err=True)
    if len(failures) > NAMES_SHOWN:
        say(f"failed: {len(failures) - NAMES_SHOWN:,} more", err=True)
