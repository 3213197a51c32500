"""A network with its weights, and what its input must look like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.network.blocks import AnySizeNetwork

OWN_WEIGHTS = "weights of carvana-batch"
"""The kind of weights whose header says all that is needed."""

FORMAT = "carvana-batch weights 1"

PLAIN_MEAN = (0.5, 0.5, 0.5)

PLAIN_DEVIATION = (0.5, 0.5, 0.5)

DESCRIBING = ("network", "mean", "deviation", "size")
"""Entries of the header that the digest covers, because they affect every mask; so does ``scale``."""


@dataclass(frozen=True)
class Model:
    """A network with its weights, and what its input must look like.

    Attributes:
        name: of the network in the registry, or ``auto`` for a pair of models; for others of their class.
        network: with its weights, float32, in evaluation mode.
        mean: of the red, green and blue channel, scaled to [0, 1].
        deviation: the same.
        digest: SHA-256 of all of this, by which a resumed run recognises the model.
        notes: the rest of the header: training data, validation result, licence.
        size: (width, height) to which photos are resized for the network, None if it depends on the photo.
        scale: length in pixels of the long side of the photos that the weights were trained on, to which
            photos of another scale are resized; None for photos as they are.
        second: the model that checks the masks of this one, see :class:`CheckedPredictor`; None if none does.
        kind: what it was loaded from, in words.
        origins: where values are from: ``mean`` -> ``model.toml``, for example.
    """

    name: str
    network: AnySizeNetwork
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    digest: str
    notes: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    scale: int | None = None
    second: Model | None = None
    kind: str = OWN_WEIGHTS
    origins: dict[str, str] = field(default_factory=dict)


class MissingSettingsError(ModelError):
    """A model cannot be used, because something that changes its masks was not said.

    Attributes:
        missing: names of the settings of :class:`ModelSettings`.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


def weights_digest(weights: Mapping[str, Tensor], header: dict[str, str] | None = None) -> str:
    """SHA-256 of the weights and the header.

    It covers network, mean, deviation, size and scale of the header, and names, dtypes, shapes and bytes of
    the tensors, sorted by name.
    """
    header = header or {}
    described = [header.get(key, "") for key in DESCRIBING]
    if "scale" in header:  # weights of earlier versions have no scale, and keep their digest
        described.append(header["scale"])
    digest = hashlib.sha256("\n".join(described).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
