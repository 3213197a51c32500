"""The command line, one file per command; Click and Rich are only used in this folder."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys

import click

from carvana_batch import __version__
from carvana_batch.cloud.urls import is_url
from carvana_batch.commands.command import WithShortHelp
from carvana_batch.commands.lines import say
from carvana_batch.commands.streams import exit_code_of_output, use_lasting_streams
from carvana_batch.errors import (
    OUT_OF_FILES,
    TOO_MANY_FILES,
    TOO_MANY_PROCESSES,
    CarvanaBatchError,
    UsageError,
    is_out_of_threads,
)
from carvana_batch.text import shown

COMMANDS = {
    "predict": "Mask the photos of a folder.",
    "submit": "Turn a folder of masks into the competition's CSV.",
    "decode": "Turn such a CSV back into masks.",
    "verify": "Compare masks with the checksums of the run that made them.",
    "review": "Look at the masks of a run, the doubtful ones first.",
    "score": "Compare masks with the true ones.",
    "train": "Train a model of your own.",
    "models": "List what can be used, what it costs, how good it is.",
    "demo": "Predict, submit, score and review photos drawn on the spot.",
    "help": "Print the help of a command.",
}


WITH_BUCKETS = {"predict", "submit", "score"}
"""The commands whose folders may be URLs."""


class LazyGroup(WithShortHelp, click.Group):
    """Imports the module of a command only when that command runs, so that --help stays fast."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"carvana_batch.commands.{name}").command
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, which would suggest only commands that are loaded already."""
        name, *rest = arguments
        urls = [each for each in rest if is_url(each)]
        if name in COMMANDS and name not in WITH_BUCKETS and urls:
            raise UsageError(
                f"{name} does not read {urls[0].partition('://')[0]}:// URLs. Give a local copy; predict,"
                " submit and score do read them (docs/buckets.md)."
            )
        try:
            return super().resolve_command(context, arguments)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=context) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup)
@click.version_option(__version__, "-V", "--version", prog_name="carvana-batch")
def group() -> None:
    """Mask cars in very large folders of photographs at full resolution.

    Exit codes: 0 all done; 1 failed; 2 wrong usage; 3 finished, but some photos failed; 4 a quality
    gate was missed; 11 the out folder is in use; 130 or 143 interrupted, can be resumed; 141 all done,
    but stdout was closed.
    """


def main() -> None:
    """The console script: a known error prints one message without a traceback, and sets the exit code."""
    use_lasting_streams()
    try:
        code = group(prog_name="carvana-batch", standalone_mode=False)
        sys.exit(code or exit_code_of_output())
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        say(text.getvalue().removesuffix("\n"), err=True)
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C while there is nothing in flight to finish first
        say("Interrupted.", err=True)
        sys.exit(128 + signal.SIGINT)
    except CarvanaBatchError as error:
        say(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        if not is_out_of_threads(error):
            raise
        say(f"Error: {TOO_MANY_PROCESSES}.", err=True)
        sys.exit(1)
    except OSError as error:  # for example a name that is too long for any disk
        if error.errno in OUT_OF_FILES:
            say(f"Error: {TOO_MANY_FILES}.", err=True)
            sys.exit(1)
        if not isinstance(error.filename, str | bytes):
            raise
        say(f"Error: {shown(os.fsdecode(error.filename))}: {error.strerror}.", err=True)
        sys.exit(1)
