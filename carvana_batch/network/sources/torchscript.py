"""Networks that were exported to TorchScript."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.exported.as_model import as_model
from carvana_batch.network.exported.torchscript import load_torchscript
from carvana_batch.network.model import Model

NAME = "torchscript"
"""The value of ``--network`` by which the user says that the program in the file may be run."""


def load(path: Path, settings: ModelSettings) -> Model:
    """Load a file of TorchScript; see :func:`load_model`."""
    size = None if settings.fixed_size is None else settings.fixed_size[::-1]
    exported = load_torchscript(path, is_trusted=settings.network == NAME, size=size)
    return as_model(path, exported, replace(settings, network=None), "a TorchScript program")
