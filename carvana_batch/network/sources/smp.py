"""Networks of segmentation_models_pytorch: saved folders, and state dicts with ``--network smp:Unet``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.model import Model
from carvana_batch.text import shown

PREFIX = "smp:"

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_saved_folder(path: Path) -> bool:
    """Whether it is a folder that ``save_pretrained`` wrote."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def load(path: Path, settings: ModelSettings) -> Model:
    """Load a folder that ``save_pretrained`` wrote; see :func:`load_model`."""
    raise ModelError(f"{shown(path)}: cannot be read yet")


def from_weights(path: Path, weights: dict[str, Tensor], settings: ModelSettings) -> Model:
    raise ModelError(f"{shown(path)}: cannot be read yet")
