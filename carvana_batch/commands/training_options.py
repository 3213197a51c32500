"""The settings of ``train``, collected from the command line, a file and a preset."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from carvana_batch.errors import UsageError
from carvana_batch.text import shown
from carvana_batch.training.settings import PRESETS, AugmentationLimits, read_settings


def collect_values(context: click.Context, values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the values of all settings, from the command line, the file, the preset and the defaults.

    The first of these that has a value provides it. A preset on the command line replaces limits in the file.

    Args:
        context: the context of the command.
        values: the values of all options.
        config: the TOML file.

    Raises:
        UsageError: the file cannot be read, or an option does not accept its value in the file.
    """
    limits = [item.name for item in fields(AugmentationLimits)]
    in_file = {} if config is None else read_settings(config)
    if _is_given(context, "augment"):
        in_file = {name: value for name, value in in_file.items() if name not in limits}
    collected = {**values, **({} if config is None else _parse_file(context, in_file, config))}
    preset = PRESETS[collected.pop("augment")]
    for name in limits:
        if name not in in_file and not _is_given(context, name):
            collected[name] = getattr(preset, name)
    return collected


def _is_given(context: click.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _parse_file(context: click.Context, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Parse the settings of a file that are not given on the command line.

    Raises:
        UsageError: an option does not accept its value in the file.
    """
    parsed = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in given or _is_given(context, name):
            continue
        value = given[name]
        if isinstance(value, dict) or isinstance(value, list) != bool(getattr(parameter, "multiple", False)):
            raise UsageError(f"{shown(path)}: {name.replace('_', '-')}: {value!r} is not a value for it.")
        try:
            # As text, it is checked like a value of an option; click would convert 3.5 to a count of 3.
            text = [str(one) for one in value] if isinstance(value, list) else str(value)
            parsed[name] = parameter.process_value(context, text)
        except click.BadParameter as error:
            raise UsageError(f"{shown(path)}: {name.replace('_', '-')}: {error.message}") from error
    return parsed
