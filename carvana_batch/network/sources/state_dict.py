"""State dicts without a header: names and shapes of their tensors tell the network, or settings do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network import NETWORKS
from carvana_batch.network.model import PLAIN_DEVIATION, PLAIN_MEAN, Model, weights_digest
from carvana_batch.network.sources import code, milesial, smp
from carvana_batch.network.sources.tensors import describe_misfit, fill, read_checkpoint, strip_prefixes
from carvana_batch.network.wrapped import settings_digest
from carvana_batch.text import shown

LIGHTNING = "pytorch-lightning_version"


def load(path: Path, settings: ModelSettings) -> Model:
    """Load a file that ``torch.save`` wrote; see :func:`load_model`."""
    weights, rest = read_checkpoint(path)
    return recognise(path, weights, settings, rest)


def recognise(
    path: Path, weights: dict[str, Tensor], settings: ModelSettings, rest: dict[str, Any] | None = None
) -> Model:
    """The model of weights without our header.

    Args:
        path: of their file.
        weights: by name.
        settings: which may name the network; else it is the one whose tensors have these names and shapes.
        rest: what else is in the file.

    Raises:
        ModelError: no network fits, or not the one of the settings; what is needed was not said.
    """
    rest = rest or {}
    stripped = strip_prefixes(weights, LIGHTNING in rest)
    name = settings.network
    if name is not None and name.startswith(smp.PREFIX):
        return smp.from_weights(path, stripped, settings)
    if code.is_code(name):
        return code.from_weights(path, weights, stripped, settings)
    if settings.encoder is not None:
        raise ModelError(f"{shown(path)}: --encoder is for --network smp:NAME; give that as well")
    if name == milesial.NAME or (name is None and milesial.is_milesial(stripped)):
        return milesial.from_weights(path, stripped, rest.get("mask_values"), settings)
    if name is not None and name not in NETWORKS:
        known = ", ".join((*NETWORKS, milesial.NAME, f"{smp.PREFIX}NAME", "package.module:factory"))
        raise ModelError(f"there is no network {shown(name)!r}; --network can be {known}")
    return _of_registry(path, stripped, settings)


def _of_registry(path: Path, weights: dict[str, Tensor], settings: ModelSettings) -> Model:
    shapes = {key: value.shape for key, value in weights.items()}
    names = [settings.network] if settings.network in NETWORKS else list(NETWORKS)
    candidates = {}
    for name in names:
        with torch.device("meta"):  # shapes alone, no random weights
            candidates[name] = NETWORKS[name]().state_dict()
        if shapes == {key: value.shape for key, value in candidates[name].items()}:
            return _plain(name, fill(path, name, NETWORKS[name](), weights), weights, settings)
    candidates[milesial.PROJECT] = milesial.expected_tensors(weights)
    raise ModelError(
        f"{shown(path)}: its tensors fit none of the networks {', '.join(names)}:"
        f" {describe_misfit(weights, candidates)}. Give --network if it is another one"
    )


def _plain(name: str, network: Any, weights: dict[str, Tensor], settings: ModelSettings) -> Model:
    """The model of a network of ours; without settings, with the statistics that its digest always had."""
    mean, deviation = settings.mean or PLAIN_MEAN, settings.deviation or PLAIN_DEVIATION
    digest = weights_digest(weights)
    if (mean, deviation, settings.size) != (PLAIN_MEAN, PLAIN_DEVIATION, None):
        digest = settings_digest(digest, network, settings)
    assumed = "assumed, as nothing says it"
    origins = {key: assumed for key in ("mean", "deviation") if getattr(settings, key) is None}
    kind = "a state dict of a network of carvana-batch"
    return Model(name, network, mean, deviation, digest, size=settings.size, kind=kind, origins=origins)
