"""Networks that were exported to ONNX (.onnx)."""

from __future__ import annotations

from pathlib import Path

from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.exported.as_model import as_model
from carvana_batch.network.exported.onnx_graph import load_onnx
from carvana_batch.network.model import Model


def load(path: Path, settings: ModelSettings) -> Model:
    """Load a file of ONNX; see :func:`load_model`."""
    return as_model(path, load_onnx(path), settings, "an ONNX network")
