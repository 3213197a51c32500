"""Networks of the user's own code: ``--network package.module:factory``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.model import Model


def is_code(network: str | None) -> bool:
    """Whether the name of a network is that of a factory, ``package.module:factory``."""
    return network is not None and ":" in network and not network.startswith("smp:")


def load(path: Path | None, settings: ModelSettings) -> Model:
    """The network that the factory gives, without a file of weights."""
    raise ModelError("cannot be used yet")


def from_weights(
    path: Path, weights: dict[str, Tensor], stripped: dict[str, Tensor], settings: ModelSettings
) -> Model:
    raise ModelError("cannot be used yet")
