"""Where models come from: a module for each kind, whose ``load(path, settings)`` gives a :class:`Model`.

| kind | module |
|---|---|
| our own weights, and safetensors files of others | ``own`` |
| state dicts (``torch.save``) | ``state_dict``, which asks ``milesial``, ``smp`` and ``code`` |
| folders of segmentation_models_pytorch | ``smp`` |
| ``--network package.module:factory`` | ``code`` |
| ONNX, torch.export and TorchScript files | ``onnx``, ``exported``, ``torchscript`` |
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.model import Model
from carvana_batch.network.sources import code, exported, onnx, own, smp, state_dict, torchscript

PICKLED_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin"}


def source_of(path: Path) -> Callable[[Path, ModelSettings], Model]:
    """The function that loads a file, or a folder of another package, by its suffix and its content."""
    if path.is_dir():
        return smp.load
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return onnx.load
    if suffix == ".pt2":
        return exported.load
    if suffix in PICKLED_SUFFIXES | {".ts", ".torchscript"}:
        if _is_torchscript(path):
            return torchscript.load
        return state_dict.load
    return own.load


def runs_code(network: str | None) -> bool:
    """Whether a network of this name is code of others, which only the user may ask for."""
    return code.is_code(network) or network == torchscript.NAME


def _is_torchscript(path: Path) -> bool:
    """Whether it is an archive of torch.jit.save, which has code beside the data that torch.save writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
