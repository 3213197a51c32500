"""Networks that were exported to TorchScript."""

from __future__ import annotations

from pathlib import Path

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.model import Model
from carvana_batch.text import shown


def load(path: Path, _settings: ModelSettings) -> Model:
    """Load a file of TorchScript; see :func:`load_model`."""
    raise ModelError(f"{shown(path)}: TorchScript cannot be read yet; save the network's state_dict()")
