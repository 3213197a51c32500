"""Values that options take: sizes, amounts of memory, shards."""

from __future__ import annotations

import math
import re
from typing import Any

import click

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class TileSize(click.ParamType[Any]):
    """``auto`` to None, ``N`` and ``WxH`` to (width, height) in pixels."""

    name = "auto|N|WxH"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value is None or isinstance(value, tuple) or value == "auto":
            return None if value == "auto" else value
        match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", value.lower())
        if match is None:
            self.fail(
                f"{value!r} is neither auto nor a number of pixels nor WIDTHxHEIGHT", parameter, context
            )
        return int(match[1]), int(match[2] or match[1])


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


class Finite(click.FloatRange):
    """A range without nan and infinity, which ``click.FloatRange`` lets pass."""

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


class PhotoSize(click.ParamType[Any]):
    """``full`` to None, ``WxH`` to (width, height) in pixels."""

    name = "full|WxH"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "full" or isinstance(value, tuple):
            return None if value == "full" else value
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", value.lower())
        if match is None:
            self.fail(f"{value!r} is neither full nor WIDTHxHEIGHT", parameter, context)
        return int(match[1]), int(match[2])


class MaskSize(click.ParamType[Any]):
    """``WxH`` to (width, height) in pixels."""

    name = "WxH"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", value.lower())
        if match is None:
            self.fail(f"{value!r} is not WIDTHxHEIGHT, such as 1918x1280", parameter, context)
        return int(match[1]), int(match[2])


class NetworkName(click.ParamType[str]):
    """A name of the registry of networks."""

    name = "name"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        from carvana_batch.network import NETWORKS

        if value not in NETWORKS:
            self.fail(f"{value!r} is none of {', '.join(NETWORKS)}.", parameter, context)
        return str(value)
