"""Loading models of any kind, and saving weights of our own with a header that holds all that is needed."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch
from torch import Tensor

from carvana_batch.errors import ModelError, NoModelError
from carvana_batch.files import atomic_writer
from carvana_batch.model_settings import NO_SETTINGS, ModelSettings, settings_beside
from carvana_batch.network import AUTO_WEIGHTS, BUNDLED_WEIGHTS, NETWORKS
from carvana_batch.network.model import FORMAT, Model, weights_digest
from carvana_batch.network.sources import code, own, runs_code, smp, source_of
from carvana_batch.network.sources.code import is_code
from carvana_batch.text import shown

OPTIONS_ORIGIN = "the options"
"""Where values are from that a command or a program gave; see :class:`Model`."""


def save_model(
    path: Path,
    name: str,
    weights: dict[str, Tensor],
    mean: tuple[float, float, float],
    deviation: tuple[float, float, float],
    notes: dict[str, str],
    size: tuple[int, int] | None = None,
    scale: int | None = None,
) -> None:
    """Write weights of a network of the registry, complete or not at all; see :class:`Model`."""
    header = {
        **notes,
        "format": FORMAT,
        "network": name,
        "mean": json.dumps(mean),
        "deviation": json.dumps(deviation),
    }
    if size is not None:
        header["size"] = json.dumps(size)
    if scale is not None:
        header["scale"] = json.dumps(scale)
    header["digest"] = weights_digest(weights, header)
    content = safetensors.torch.save({key: value.contiguous() for key, value in weights.items()}, header)
    with atomic_writer(path) as file:
        file.write(content)


def load_model(name_or_path: str | Path, settings: ModelSettings = NO_SETTINGS) -> Model:
    """Load bundled weights by name, a file of any kind, or the best weights in the folder of a training run.

    ``auto`` is a pair of bundled weights: those for photos of a studio, and as ``second`` those that check
    their masks; with a network of ``package.module:factory``, it is the factory's network as it is.

    Args:
        name_or_path: what to load.
        settings: what the weights do not say; they go before those of ``model.toml`` beside the file.

    Raises:
        NoModelError: there is nothing of that name.
        MissingSettingsError: the settings leave open what changes the masks.
        ModelError: the file is damaged, the weights are of an unknown or another network, or not finite, or
            the settings contradict them; or ``model.toml`` asks for code.
        UsageError: ``model.toml`` is damaged.
    """
    if name_or_path == "auto" and is_code(settings.network):
        return replace(code.load(settings), origins=dict.fromkeys(settings.given(), OPTIONS_ORIGIN))
    if str(name_or_path) in ("auto", *BUNDLED_WEIGHTS):
        _refuse_settings(str(name_or_path), settings)
    if name_or_path == "auto":
        first, second = (load_model(name) for name in AUTO_WEIGHTS)
        digest = hashlib.sha256((first.digest + second.digest).encode()).hexdigest()
        return replace(first, name="auto", digest=digest, second=second)
    if bundled := BUNDLED_WEIGHTS.get(str(name_or_path)):
        return own.load(bundled, NO_SETTINGS)
    path = _find(name_or_path)
    beside, origin = settings_beside(path)
    if origin is not None and settings.network is None and runs_code(beside.network):
        name = shown(str(beside.network))
        raise ModelError(
            f"{shown(origin)}: its network {name} would run code, which a file beside weights cannot ask for."
            f" If you trust where it is from, give --network '{name}'"
        )
    merged = settings.over(beside)
    model = source_of(path)(path, merged)
    given = dict.fromkeys(beside.given(), "" if origin is None else shown(origin))
    given |= dict.fromkeys(settings.given(), OPTIONS_ORIGIN)
    return replace(model, origins=given | model.origins)


def _refuse_settings(name: str, settings: ModelSettings) -> None:
    """Raise ModelError if there are settings that change what bundled weights are."""
    given = replace(settings, threshold=None, overlap=None).describe()
    if given:
        raise ModelError(
            f"--{next(iter(given))} is for weights of your own, and {name} comes with the package; give"
            " --model FILE as well, or leave it out"
        )


def _find(name_or_path: str | Path) -> Path:
    """The file, or the folder that some other package has saved a network in."""
    path = Path(name_or_path)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # the name is too long
        raise NoModelError(f"no model {shown(path)}: {error.strerror}") from error
    if is_folder and not smp.is_saved_folder(path):
        path = path / "best.safetensors"
        latest = path.with_name("last.safetensors")
        if latest.is_file() and not path.is_file():
            raise NoModelError(
                f"{shown(path.parent)} holds no best.safetensors yet; its latest weights are {shown(latest)}"
            )
        if not path.is_file():
            raise NoModelError(
                f"no model in {shown(path.parent)}: it has no best.safetensors, as the folder of a training"
                f" run has; bundled models are {', '.join(BUNDLED_WEIGHTS)}"
            )
    if not is_folder and not path.is_file():
        if str(name_or_path) in NETWORKS:
            raise NoModelError(
                f"{name_or_path} is a network without bundled weights (those have:"
                f" {', '.join(BUNDLED_WEIGHTS)}). Train it with `carvana-batch train --model {name_or_path}`"
                " and give --model the folder of that run."
            )
        names = ["auto", *BUNDLED_WEIGHTS]
        near = difflib.get_close_matches(str(name_or_path), names, n=1)
        raise NoModelError(
            f"no model {str(name_or_path)!r}: neither a file nor one of the bundled ({', '.join(names)})"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return path
