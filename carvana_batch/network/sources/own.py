"""Safetensors files: our own, whose header holds everything that `predict` needs, and those of others."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network import NETWORKS
from carvana_batch.network.model import FORMAT, Model, weights_digest
from carvana_batch.network.sources.state_dict import recognise
from carvana_batch.network.sources.tensors import fill, read_safetensors
from carvana_batch.text import shown

IN_HEADER = ("network", "encoder", "mean", "deviation", "size", "output", "classes", "car_class", "stride")
"""Settings that our header has, or that its network has no choice of."""


def load(path: Path, settings: ModelSettings) -> Model:
    """Load a safetensors file; see :func:`load_model`."""
    header, weights = read_safetensors(path)
    return _assemble(path, header, weights, settings)


def _assemble(
    path: Path, header: dict[str, str], weights: dict[str, Tensor], settings: ModelSettings
) -> Model:
    written_as = header.pop("format", None)
    if written_as != FORMAT:
        if "digest" in header:
            raise ModelError(
                f"{shown(path)}: its header says {written_as!r}, not {FORMAT!r}; the file is damaged, or of"
                " another version"
            )
        return recognise(path, weights, settings)
    digest = weights_digest(weights, header)
    if header.pop("digest", None) != digest:
        raise ModelError(
            f"{shown(path)}: its content does not match the checksum in the header; the file is damaged"
        )
    name = header.pop("network", "")
    if name not in NETWORKS:
        known = ", ".join(sorted(NETWORKS))
        raise ModelError(f"{shown(path)}: made for the network {name!r}; known are {known}")
    mean, deviation = _statistics(path, header, "mean"), _statistics(path, header, "deviation")
    if min(deviation) <= 0:
        raise ModelError(f"{shown(path)}: the deviations {deviation} in the header are not positive")
    size, scale = _size(path, header), _scale(path, header)
    said = {"network": name, "mean": mean, "deviation": deviation, "size": size}
    for key in IN_HEADER:
        if getattr(settings, key) not in (None, said.get(key)):
            raise ModelError(
                f"{shown(path)}: its header says all that is needed, and the setting {key.replace('_', '-')}"
                " contradicts it; leave that out"
            )
    network = fill(path, name, NETWORKS[name](), weights)
    return Model(name, network, mean, deviation, digest, header, size, scale)


def _size(path: Path, header: dict[str, str]) -> tuple[int, int] | None:
    """Remove the input size from the header and return it; None if there is none."""
    text = header.pop("size", None)
    if text is None:
        return None
    try:
        width, height = (int(value) for value in json.loads(text))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ModelError(f"{shown(path)}: the size {text!r} in the header is not two numbers") from error
    if not (0 < width < 100_000 and 0 < height < 100_000):
        raise ModelError(f"{shown(path)}: the size {text!r} in the header is not one of images")
    return width, height


def _scale(path: Path, header: dict[str, str]) -> int | None:
    """Remove the scale of the training photos from the header and return it; None if there is none."""
    text = header.pop("scale", None)
    if text is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise ModelError(f"{shown(path)}: the scale {text!r} in the header is not a number of pixels")
    return int(text)


def _statistics(path: Path, header: dict[str, str], key: str) -> tuple[float, float, float]:
    """Remove an entry of three numbers, one per channel, from the header and return it."""
    text = header.pop(key, "")
    try:
        red, green, blue = (float(value) for value in json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{shown(path)}: the {key} {text!r} in the header is not three numbers") from error
    if not all(math.isfinite(value) for value in (red, green, blue)):
        raise ModelError(f"{shown(path)}: the {key} {text!r} in the header is not finite")
    return red, green, blue
