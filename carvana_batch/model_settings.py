"""What must be known of a network of the user's own, besides its weights: from options and ``model.toml``."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from carvana_batch.errors import UsageError
from carvana_batch.text import cut_short, shown

FILE_NAME = "model.toml"
"""Settings of all weights in its folder; a file of the name of the weights with ``.toml`` goes before it."""

OUTPUTS = ("logits", "probability")


@dataclass(frozen=True)
class ModelSettings:
    """What a weights file may not say itself; None is what it says, or what is measured.

    Attributes:
        network: ``milesial``, a name of the registry, ``smp:Unet``, or ``package.module:factory``.
        encoder: of a network of segmentation_models_pytorch, such as ``resnet34``.
        mean: of the red, green and blue channel, scaled to [0, 1], which is subtracted.
        deviation: the same, by which the result is divided.
        size: (width, height) in pixels to which photos are resized for the network.
        threshold: probability above which a pixel is car.
        overlap: pixels that neighbouring tiles share at least.
        output: ``logits`` or ``probability``.
        classes: channels of the output, 1 or 2.
        car_class: which of two channels is car, 0 or 1.
        stride: windows that start on multiples of it, in pixels, see the same grid.
        context: how many pixels away the logit of a pixel depends on others.
        fixed_size: (width, height) in pixels, if the network takes images of this size only.
    """

    network: str | None = None
    encoder: str | None = None
    mean: tuple[float, float, float] | None = None
    deviation: tuple[float, float, float] | None = None
    size: tuple[int, int] | None = None
    threshold: float | None = None
    overlap: int | None = None
    output: str | None = None
    classes: int | None = None
    car_class: int | None = None
    stride: int | None = None
    context: int | None = None
    fixed_size: tuple[int, int] | None = None

    def over(self, others: ModelSettings) -> ModelSettings:
        """These settings, and those of ``others`` where these say nothing."""
        return replace(others, **self.given())

    def given(self) -> dict[str, Any]:
        """Name of each setting that is not None -> value."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, value in values if value is not None}

    def describe(self) -> dict[str, str]:
        """The same as text, by the names that the file and the options have."""
        return {name.replace("_", "-"): format_value(value) for name, value in self.given().items()}


NO_SETTINGS = ModelSettings()


def format_value(value: object) -> str:
    """A value as it is written in an option: ``0.5,0.5,0.5``, ``512x512``."""
    if isinstance(value, tuple):
        return ("x" if len(value) == 2 else ",").join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_triple(value: object) -> tuple[float, float, float]:
    """``0.485,0.456,0.406`` or a list of three finite numbers, one per channel.

    Raises:
        ValueError: anything else; the message says what is wrong.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        if not isinstance(parts, list | tuple) or any(isinstance(part, bool) for part in parts):
            raise TypeError
        red, green, blue = (float(part) for part in parts)
        if not all(math.isfinite(part) for part in (red, green, blue)):
            raise TypeError
    except (TypeError, ValueError) as error:
        raise ValueError("is not three numbers R,G,B, such as 0.485,0.456,0.406") from error
    return red, green, blue


def read_mean(value: object) -> tuple[float, float, float]:
    """The same for channels that are scaled to [0, 1]."""
    triple = read_triple(value)
    if max(map(abs, triple)) > 2:
        raise ValueError("is not for values from 0 to 1; divide it by 255")
    return triple


def read_deviation(value: object) -> tuple[float, float, float]:
    """The same for positive numbers."""
    triple = read_triple(value)
    if min(triple) <= 0:
        raise ValueError("has to be positive")
    if max(triple) > 2:
        raise ValueError("is not for values from 0 to 1; divide it by 255")
    return triple


def _read_size(value: object) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", str(value).lower())
    if match is None:
        raise ValueError('is not "WIDTHxHEIGHT" in pixels, such as "512x512"')
    return int(match[1]), int(match[2])


def _read_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is not text")
    return value


def _read_output(value: object) -> str:
    if value not in OUTPUTS:
        raise ValueError(f"is none of {', '.join(OUTPUTS)}")
    return str(value)


def _read_whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return value

    return read


def _read_threshold(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("is not a number from 0 to 1")
    return float(value)


READERS: dict[str, Callable[[object], Any]] = {
    "network": _read_text,
    "encoder": _read_text,
    "mean": read_mean,
    "deviation": read_deviation,
    "size": _read_size,
    "threshold": _read_threshold,
    "overlap": _read_whole(0, 99_999),
    "output": _read_output,
    "classes": _read_whole(1, 2),
    "car_class": _read_whole(0, 1),
    "stride": _read_whole(1, 4096),
    "context": _read_whole(0, 99_999),
    "fixed_size": _read_size,
}
"""For each setting, what makes its value of that in a TOML file."""


def read_settings(path: Path) -> ModelSettings:
    """Read the settings of a model from a TOML file.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has an unknown key or an odd value.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown(path)} is not TOML: {error}.") from error
    known = {name.replace("_", "-"): name for name in READERS}
    values = {}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise UsageError(f"{shown(path)}: {shown(key)} is no setting of a model; {advice}")
        try:
            values[known[key]] = READERS[known[key]](value)
        except ValueError as error:
            text = shown(cut_short(repr(value)))
            raise UsageError(f"{shown(path)}: {key} = {text} {error}.") from error
    return ModelSettings(**values)


def settings_beside(weights: Path) -> tuple[ModelSettings, Path | None]:
    """The settings of a weights file, or of a folder with one, and the file that they are from, if any.

    Raises:
        UsageError: see :func:`read_settings`.
    """
    try:
        is_folder = weights.is_dir()
        places = (
            [weights / FILE_NAME] if is_folder else [weights.with_suffix(".toml"), weights.parent / FILE_NAME]
        )
        path = next((path for path in places if path.is_file()), None)
    except (OSError, ValueError):  # a name that cannot be one, which is refused where the weights are loaded
        return NO_SETTINGS, None
    return (NO_SETTINGS, None) if path is None else (read_settings(path), path)
