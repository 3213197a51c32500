"""Networks that were exported to torch.export (.pt2)."""

from __future__ import annotations

from pathlib import Path

from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.exported.as_model import as_model
from carvana_batch.network.exported.program import load_exported_program
from carvana_batch.network.model import Model


def load(path: Path, settings: ModelSettings) -> Model:
    """Load a file of torch.export; see :func:`load_model`."""
    return as_model(path, load_exported_program(path), settings, "a program of torch.export")
