"""The metadata that this package writes into the networks that it exports, and reads again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carvana_batch.errors import ModelError
from carvana_batch.text import shown

FORMAT = "carvana-batch export 1"

Normalisation = Literal["inside", "outside"]

INPUT_NAME, OUTPUT_NAME = "images", "probability"

PIXELS = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
"""Mean and deviation of a network that is given values of 0 to 255 as they are."""


@dataclass(frozen=True)
class ExportHeader:
    """The metadata of an exported network: all that is needed to mask with it as with the original.

    Attributes:
        network: name of the architecture.
        normalisation: ``inside`` if the network is given RGB values of 0 to 255, ``outside`` if it is given
            (value / 255 - mean) / deviation.
        mean: of the red, green and blue channel, scaled to [0, 1].
        deviation: the same.
        stride: see :class:`AnySizeNetwork`.
        unit: the same.
        digest: SHA-256 of the weights that were exported.
        size: (width, height) to which photos are resized for the network, None if it depends on the photo.
        scale: long side in pixels of the photos it was trained on, None for photos as they are.
        context: see :class:`AnySizeNetwork`.
    """

    network: str
    normalisation: Normalisation
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    stride: int
    unit: int
    digest: str
    size: tuple[int, int] | None = None
    scale: int | None = None
    context: float | None = None

    @property
    def input_statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and deviation by which pixels are normalised before they are given to the network."""
        return PIXELS if self.normalisation == "inside" else (self.mean, self.deviation)

    def to_strings(self) -> dict[str, str]:
        """The entries as they are written into files."""
        entries = {
            "format": FORMAT,
            "network": self.network,
            "normalisation": self.normalisation,
            "mean": json.dumps(self.mean),
            "deviation": json.dumps(self.deviation),
            "output": OUTPUT_NAME,
            "stride": str(self.stride),
            "unit": str(self.unit),
            "digest": self.digest,
        }
        if self.size is not None:
            entries["size"] = json.dumps(self.size)
        if self.scale is not None:
            entries["scale"] = str(self.scale)
        if self.context is not None:
            entries["context"] = str(self.context)
        return entries


def read_header(path: Path, entries: dict[str, str]) -> ExportHeader | None:
    """The header among the metadata of a network; None if another program has exported it.

    Raises:
        ModelError: the entries are damaged, or of another version.
    """
    if not entries.get("format", "").startswith("carvana-batch"):
        return None
    try:
        if entries["format"] != FORMAT:
            raise ValueError(f"they are of {entries['format']!r}, not of {FORMAT!r}")
        if entries["normalisation"] not in ("inside", "outside"):
            raise ValueError("normalisation is neither inside nor outside")
        header = ExportHeader(
            network=entries["network"],
            normalisation="inside" if entries["normalisation"] == "inside" else "outside",
            mean=_three(entries["mean"]),
            deviation=_three(entries["deviation"]),
            stride=_whole(entries["stride"]),
            unit=_whole(entries["unit"]),
            digest=entries["digest"],
            size=_two(entries["size"]) if "size" in entries else None,
            scale=_whole(entries["scale"]) if "scale" in entries else None,
            context=float(entries["context"]) if "context" in entries else None,
        )
        if min(header.deviation) <= 0 or header.stride % header.unit:
            raise ValueError("the deviations are not positive, or the stride is no multiple of the unit")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else shown(str(error))
        raise ModelError(
            f"{shown(path)}: its metadata are damaged, or of another version ({reason}); export it again"
        ) from error
    return header


def _three(text: str) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in json.loads(text))
    if not all(-1e3 < value < 1e3 for value in (red, green, blue)):
        raise ValueError(f"{text} are not three statistics")
    return red, green, blue


def _two(text: str) -> tuple[int, int]:
    width, height = (_whole(str(value)) for value in json.loads(text))
    return width, height


def _whole(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise ValueError(f"{text} is not a number of pixels")
    return int(text)
