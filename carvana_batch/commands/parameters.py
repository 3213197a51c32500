"""Types of option values (sizes, amounts of memory, shards), and options of several commands."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from carvana_batch.colours import parse_colour
from carvana_batch.commands.completion import complete_file

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> tuple[int, int] | None:
    """Parse WIDTHxHEIGHT, each from 1 to 999999 pixels, into (width, height); None for any other text."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.lower())
    return None if match is None else (int(match[1]), int(match[2]))


class Colour(click.ParamType[Any]):
    """``#rrggbb``, or the name of a colour in CSS, to (red, green, blue)."""

    name = "COLOUR"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return parse_colour(value)
        except ValueError:
            problem = f"{value!r} is neither #rrggbb nor the name of a colour, such as darkred"
            self.fail(problem, parameter, context)


class ColourOrFile(Colour):
    """A file to its path; a colour, if there is no such file, to (red, green, blue)."""

    name = "FILE|COLOUR"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, tuple | Path):
            return value
        if Path(value).exists():
            return Path(value)
        try:
            return parse_colour(value)
        except ValueError:
            self.fail(f"there is no file {value!r}, and no colour of this name", parameter, context)

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        return complete_file(context, parameter, incomplete)


class MaskSize(click.ParamType[Any]):
    """``WxH`` to (width, height) in pixels; subclasses may define a ``keyword`` that stands for None."""

    name = "WxH"
    keyword = ""
    problem = "is not WIDTHxHEIGHT, such as 1918x1280"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        if self.keyword and value == self.keyword:
            return None
        size = self.parse(value)
        if size is None:
            self.fail(f"{value!r} {self.problem}", parameter, context)
        return size

    def parse(self, text: str) -> tuple[int, int] | None:
        """Parse a size; None for any other text."""
        return parse_size(text)


class AnyMaskSize(MaskSize):
    """``any`` to None, ``WxH`` to (width, height) in pixels."""

    name = "WxH|any"
    keyword = "any"
    problem = "is neither WIDTHxHEIGHT, such as 1918x1280, nor any."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        is_keyword = isinstance(value, str) and value.lower() == self.keyword
        return super().convert(self.keyword if is_keyword else value, parameter, context)


class RowSize(AnyMaskSize):
    """``WxH`` to (width, height) in pixels; explains why ``any`` is not possible for run-length rows."""

    name = "WxH"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        size = super().convert(value, parameter, context)
        if size is None:
            message = "run-length rows do not say how large their photos are; give WIDTHxHEIGHT."
            self.fail(message, parameter, context)
        return size


class PhotoSize(MaskSize):
    """``full`` to None, ``WxH`` to (width, height) in pixels."""

    name = "full|WxH"
    keyword = "full"
    problem = "is neither full nor WIDTHxHEIGHT"


class NetworkSize(MaskSize):
    """``auto`` to None, ``native`` to itself, ``WxH`` to (width, height) in pixels."""

    name = "auto|native|WxH"
    keyword = "auto"
    problem = "is neither auto nor native nor WIDTHxHEIGHT, such as 1918x1280"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return value if value == "native" else super().convert(value, parameter, context)


class TileSize(MaskSize):
    """``auto`` to None, ``N`` and ``WxH`` to (width, height) in pixels."""

    name = "auto|N|WxH"
    keyword = "auto"
    problem = "is neither auto nor a number of pixels nor WIDTHxHEIGHT"

    def parse(self, text: str) -> tuple[int, int] | None:
        return parse_size(text) or parse_size(f"{text}x{text}")


class Memory(click.ParamType[Any]):
    """``6GB``, ``500MB`` or a number of bytes, to bytes."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", value.strip().upper())
        unit = match[2] + ("" if match[2].endswith("B") or not match[2] else "B") if match else ""
        if match is None or unit not in UNITS or int(float(match[1]) * UNITS[unit]) < 1:
            self.fail(f"{value!r} is no amount of memory such as 6GB or 500MB", parameter, context)
        amount = int(float(match[1]) * UNITS[unit])
        if amount < UNITS["MB"]:
            self.fail(f"{value!r} is less than a megabyte; write an amount such as 6GB", parameter, context)
        return amount


class MaskValue(click.ParamType[Any]):
    """``N`` or ``N-M`` to the tuple of all values from N to M, each from 0 to 65535."""

    name = "N|N-M"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", value)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= 65535:
            self.fail(
                f"{value!r} is neither a value such as 7 nor a range such as 128-255.", parameter, context
            )
        return tuple(range(first, last + 1))


def join_values(
    _context: click.Context, _parameter: click.Parameter, values: tuple[tuple[int, ...], ...]
) -> tuple[int, ...]:
    """Join the values of an option that was given several times."""
    return tuple(sorted({value for group in values for value in group}))


def car_value_option(masks: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the option ``--car-value`` for the given masks."""
    return click.option(
        "--car-value",
        "car_values",
        type=MaskValue(),
        multiple=True,
        callback=join_values,
        metavar="N|N-M",
        help=f"Grey value or palette index that is car in {masks}; all others are background. Can be"
        " repeated.  [default: the higher of two]",
    )


def ignore_value_option(masks: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the option ``--ignore-value`` for the given masks."""
    return click.option(
        "--ignore-value",
        "ignored_values",
        type=MaskValue(),
        multiple=True,
        callback=join_values,
        metavar="N|N-M",
        help=f"Value of pixels of {masks} that are neither car nor background, and count nowhere. Can be"
        " repeated.",
    )


class Finite(click.FloatRange):
    """A range that refuses NaN and infinity, which ``click.FloatRange`` accepts."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", parameter, context)
        return number


class Shard(click.ParamType[Any]):
    """``i/n`` to (i, n)."""

    name = "i/n"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is not i/n with 1 <= i <= n, such as 2/8", parameter, context)
        return int(match[1]), int(match[2])


class NetworkName(click.ParamType[str]):
    """A name from the registry of networks."""

    name = "name"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        if context is not None and context.resilient_parsing:  # a shell asks, and does not want to wait
            return str(value)
        from carvana_batch.network import NETWORKS

        if value not in NETWORKS:
            self.fail(f"{value!r} is none of {', '.join(NETWORKS)}.", parameter, context)
        return str(value)
