"""The settings of ``train``, collected from the command line, a file, the environment and a preset."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from carvana_batch.commands.config import is_given, parse_config
from carvana_batch.training.settings import PRESETS, AugmentationLimits, read_settings


def collect_values(context: click.Context, values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the values of all settings, from the command line, the file, the environment, the preset and
    the defaults.

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
    if is_given(context, "augment"):
        in_file = {name: value for name, value in in_file.items() if name not in limits}
    collected = {**values, **({} if config is None else parse_config(context, in_file, config))}
    preset = PRESETS[collected.pop("augment")]
    # A preset that was chosen wins over limits in the environment, as these come last.
    chosen = is_given(context, "augment") or "augment" in in_file
    for name in limits:
        from_environment = context.get_parameter_source(name) is ParameterSource.ENVIRONMENT
        if name not in in_file and not is_given(context, name) and (chosen or not from_environment):
            collected[name] = getattr(preset, name)
    return collected
