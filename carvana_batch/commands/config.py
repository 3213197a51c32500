"""Values of options that a TOML file, that of ``--config``, gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from carvana_batch.commands.command import CONFIG, Command, keyword_of, option_name, options_of
from carvana_batch.commands.model_options import Triple
from carvana_batch.errors import UsageError
from carvana_batch.settings_file import read_settings_file
from carvana_batch.text import shown


class ConfigurableCommand(Command):
    """A command with an option ``--config`` whose file sets any other option that is not given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        path = ctx.params.pop("config")
        if path is None or ctx.resilient_parsing:
            return rest
        known = [keyword_of(option) for option in options_of(self)]
        known.remove("config")
        ctx.meta[CONFIG] = content = read_settings_file(path, known)
        parsed = parse_config(ctx, content, path)
        ctx.params |= parsed
        for name in parsed:
            ctx.set_parameter_source(name, ParameterSource.DEFAULT_MAP)
        return rest


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def parse_config(context: click.Context, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Parse the values of a file that are not given on the command line, as the options parse theirs.

    Args:
        context: the context of the command.
        given: what the file has, by the long name of the option, with underscores.
        path: the file, for messages.

    Returns:
        The values by the name of the parameter.

    Raises:
        UsageError: an option does not accept its value in the file.
    """
    parsed = {}
    for option in options_of(context.command):
        key, keyword, name = option_name(option), keyword_of(option), str(option.name)
        if keyword not in given or is_given(context, name):
            continue
        value = given[keyword]
        if isinstance(option.type, Triple) and isinstance(value, list):  # as in model.toml
            value = ",".join(map(str, value))
        if isinstance(value, dict) or isinstance(value, list) != option.multiple:
            raise UsageError(f"{shown(path)}: {key}: {value!r} is not a value for it.")
        if isinstance(value, bool) != option.is_flag:
            kind = "true or false" if option.is_flag else "a value for it"
            raise UsageError(f"{shown(path)}: {key}: {value!r} is not {kind}.")
        try:
            # As text, it is checked like a value of an option; click would convert 3.5 to a count of 3.
            text = [str(one) for one in value] if isinstance(value, list) else str(value)
            parsed[name] = option.process_value(context, text)
        except click.BadParameter as error:
            raise UsageError(f"{shown(path)}: {key}: {error.message}") from error
    return parsed
