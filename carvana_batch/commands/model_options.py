"""Options of several commands that say what a weights file of the user's own does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from carvana_batch.commands.completion import complete_network_of_weights
from carvana_batch.model_settings import OUTPUTS, ModelSettings, read_deviation, read_mean


class Triple(click.ParamType[Any]):
    """``R,G,B`` to three numbers.

    Args:
        read: makes the numbers of the text, or raises ValueError.
    """

    name = "R,G,B"

    def __init__(self, read: Callable[[object], tuple[float, float, float]]) -> None:
        self.read = read

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", parameter, context)


OPTIONS = (
    click.option(
        "--network",
        metavar="NAME",
        shell_complete=complete_network_of_weights,
        help="Network of the weights, if they do not say it: a name of `carvana-batch models`, milesial,"
        " smp:Unet, package.module:factory, which runs your own code, or torchscript, which runs the program"
        " in the file.",
    ),
    click.option("--encoder", metavar="NAME", help="Encoder of --network smp:NAME, such as resnet34."),
    click.option(
        "--mean", type=Triple(read_mean), help="Mean of the channels in training, scaled to [0, 1]."
    ),
    click.option(
        "--deviation", type=Triple(read_deviation), help="Deviation by which the channels were divided."
    ),
    click.option("--output", type=click.Choice(OUTPUTS), help="What the network gives.  [default: logits]"),
    click.option(
        "--stride",
        type=click.IntRange(1, 4096),
        help="Pixels by which tiles of a network of your own may be shifted.  [default: measured]",
    ),
)


NAMES = ("network", "encoder", "mean", "deviation", "output", "stride")


def settings_of(values: Mapping[str, Any]) -> ModelSettings:
    """The settings among the values of a command's parameters."""
    return ModelSettings(**{name: values[name] for name in NAMES})


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options to a command, which gets them as ``model_settings``."""

    def wrapped(*arguments: Any, **values: Any) -> Any:
        settings = settings_of(values)
        others = {name: value for name, value in values.items() if name not in NAMES}
        return command(*arguments, model_settings=settings, **others)

    wrapped.__doc__ = command.__doc__
    wrapped.__name__ = command.__name__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(OPTIONS):
        option(wrapped)
    return wrapped


def is_default(context: click.Context, name: str) -> bool:
    """Whether a parameter was not given."""
    return context.get_parameter_source(name) in (None, ParameterSource.DEFAULT)
