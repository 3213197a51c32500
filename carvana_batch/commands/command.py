"""What all commands have in common: options that environment variables and files set, and suggestions."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource

from carvana_batch.commands.lines import say
from carvana_batch.errors import UsageError

VARIABLE_PREFIX = "CARVANA_BATCH"

_GIVEN = f"{__name__}.given"

CONFIG = f"{__name__}.config"
"""Where the meta data of a context have the content of the file of ``--config``."""


class WithShortHelp(click.Command):
    """A command with -h beside --help, in whatever context it is used."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        del ctx
        return ["-h", "--help"]


class Command(WithShortHelp):
    """A command whose options can be set by the environment, which is said whenever it is the case.

    ``CARVANA_BATCH_PREDICT_MASK_BITS`` is the variable of ``predict --mask-bits``. Options on the command
    line win. Several values of an option are separated by spaces; 1 and 0 switch on and off. Python, which
    uses a command without the group that it belongs to, follows no variables.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for option in options_of(self):
            option.envvar = None if ctx.parent is None else variable_of(ctx, option)
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_GIVEN] = dict(given)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if isinstance(error.param, click.Option) and _is_from_environment(ctx, error.param):
                error.param_hint = f"'{error.param.opts[-1]}' (set by {error.param.envvar})"
            raise

    def invoke(self, ctx: click.Context) -> Any:
        for line in self._unknown_variables(ctx):
            say(line, err=True)
        variables = [
            f"{option.envvar}={os.environ[str(option.envvar)]}"
            for option in options_of(self)
            if _is_from_environment(ctx, option)
        ]
        line = f"From the environment: {' '.join(variables)}" if variables else ""
        if line and not ctx.params.get("quiet"):
            say(line, err=True)
            line = ""
        try:
            return super().invoke(ctx)
        except UsageError:
            if line:
                say(line, err=True)
            raise

    def _unknown_variables(self, ctx: click.Context) -> Iterator[str]:
        """A warning for each variable that looks like that of an option, but is not."""
        known = [str(option.envvar) for option in options_of(self)]
        for name in sorted(os.environ):
            if name.startswith(f"{_prefix(ctx)}_") and name not in known:
                yield f"Warning: {name} is the variable of no option.{did_you_mean(name, known)}"


class Group(WithShortHelp, click.Group):
    """A group of such commands."""

    command_class = Command


def options_of(command: click.Command) -> list[click.Option]:
    """The options that can be set other than on the command line: all but ``--help`` and the like."""
    return [one for one in command.params if isinstance(one, click.Option) and one.expose_value]


def option_name(option: click.Parameter) -> str:
    """The name of an option without its dashes, such as ``mask-bits``; the long one, if there are two."""
    return max(option.opts, key=len).removeprefix("--")


def keyword_of(option: click.Parameter) -> str:
    """The name of an option in files and in Python, such as ``mask_bits``."""
    return option_name(option).replace("-", "_")


def variable_of(context: click.Context, option: click.Option) -> str:
    """The name of the environment variable that sets an option of the command of this context."""
    return f"{_prefix(context)}_{option_name(option)}".replace("-", "_").upper()


def did_you_mean(name: str, known: list[str]) -> str:
    """A question that names what is spelled most alike, with a leading space; "" if nothing is."""
    nearest = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def given_values(context: click.Context) -> dict[str, Any]:
    """What was given on the command line, in a file or by the environment: option name -> value, as given."""
    found = {}
    for option in options_of(context.command):
        source = context.get_parameter_source(str(option.name))
        if source is ParameterSource.COMMANDLINE:
            found[option_name(option)] = context.meta[_GIVEN][option.name]
        elif source is ParameterSource.DEFAULT_MAP:
            found[option_name(option)] = context.meta[CONFIG][keyword_of(option)]
        elif source is ParameterSource.ENVIRONMENT:
            found[option_name(option)] = os.environ[str(option.envvar)]
    return found


def _is_from_environment(context: click.Context, option: click.Option) -> bool:
    return context.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT


def _prefix(context: click.Context) -> str:
    """``CARVANA_BATCH_PREDICT``, or ``CARVANA_BATCH_MODELS_LIST`` for a command in a group."""
    names: list[str] = []
    while context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return "_".join([VARIABLE_PREFIX, *names]).replace("-", "_").upper()
