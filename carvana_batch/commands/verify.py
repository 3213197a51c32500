"""``carvana-batch verify``."""

from __future__ import annotations

from pathlib import Path

import click

from carvana_batch.commands.command import Command
from carvana_batch.commands.lines import say
from carvana_batch.errors import EXIT_SOME_FAILED
from carvana_batch.text import counted, shown


@click.command(cls=Command)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path), default="out")
@click.pass_context
def command(context: click.Context, out: Path) -> None:
    """Compare masks and extra files with their checksums.

    OUT is the folder of predict (default: out), which writes the checksums into its journal. Files that are
    gone, damaged or changed are named, and the exit code is then 3; `predict --verify` makes them again.
    Masks that predict did not make are not checked. Nothing is written.
    """
    from carvana_batch.output.paths import STATE_FOLDER
    from carvana_batch.output.status import is_held
    from carvana_batch.output.verifying import verify

    if is_held(out / STATE_FOLDER):
        say(f"Warning: a run of predict is at work in {shown(out)}, and changes files.", err=True)
    found = verify(out)
    for each in found.deviations:
        say(f"{shown(each.path)}: {each.reason}", err=True)
    counts = [f"{counted(found.masks, 'mask')} compared"]
    if found.without_checksum:
        counts.append(f"{found.without_checksum:,} of them without checksum, by size and decoding")
    if found.kept:
        counts.append(f"{found.kept:,} not made by predict and not compared")
    counts.append(f"{counted(len(found.deviations), 'file')} not as written")
    say(", ".join(counts))
    if found.deviations:
        say("The same predict command with --verify makes them again.")
        context.exit(EXIT_SOME_FAILED)
