"""Weights on disk: safetensors files whose header holds everything that `predict` needs."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from carvana_batch.errors import ModelError, NoModelError
from carvana_batch.files import atomic_writer
from carvana_batch.network import AUTO_WEIGHTS, BUNDLED_WEIGHTS, NETWORKS
from carvana_batch.network.blocks import AnySizeNetwork
from carvana_batch.network.pickled import OversizedError, load_pickled
from carvana_batch.text import counted, shown

FORMAT = "carvana-batch weights 1"

DESCRIBING = ("network", "mean", "deviation", "size")
"""Entries of the header that the digest covers, because they affect every mask; so does ``scale``."""

PLAIN_MEAN = (0.5, 0.5, 0.5)

PLAIN_DEVIATION = (0.5, 0.5, 0.5)

MAX_WEIGHTS_BYTES = 2**29
"""The largest network has 240 MB in float32."""

MAX_TENSORS = 10_000
"""The network with the most tensors has 224."""

FOREIGN_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin"}


@dataclass(frozen=True)
class Model:
    """A network with its weights, and what its input must look like.

    Attributes:
        name: of the network in the registry, or ``auto`` for a pair of models.
        network: with its weights, float32, in evaluation mode.
        mean: of the red, green and blue channel, scaled to [0, 1].
        deviation: the same.
        digest: SHA-256 of all of this, by which a resumed run recognises the model.
        notes: the rest of the header: training data, validation result, licence.
        size: (width, height) to which photos are resized for the network, None if it depends on the photo.
        scale: length in pixels of the long side of the photos that the weights were trained on, to which
            photos of another scale are resized; None for photos as they are.
        second: the model that checks the masks of this one, see :class:`CheckedPredictor`; None if none does.
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


def weights_digest(weights: dict[str, Tensor], header: dict[str, str] | None = None) -> str:
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


def load_model(name_or_path: str | Path) -> Model:
    """Load bundled weights by name, a weights file, or the best weights in the folder of a training run.

    ``auto`` is a pair of bundled weights: those for photos of a studio, and as ``second`` those that check
    their masks.

    Raises:
        NoModelError: there is nothing of that name.
        ModelError: the file is damaged, or the weights are of an unknown or another network, or not finite.
    """
    if name_or_path == "auto":
        first, second = (load_model(name) for name in AUTO_WEIGHTS)
        digest = hashlib.sha256((first.digest + second.digest).encode()).hexdigest()
        return replace(first, name="auto", digest=digest, second=second)
    path = BUNDLED_WEIGHTS.get(str(name_or_path)) or Path(name_or_path)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # the name is too long
        raise NoModelError(f"no model {shown(path)}: {error.strerror}") from error
    if is_folder:
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
    if not path.is_file():
        names = ", ".join(BUNDLED_WEIGHTS)
        if str(name_or_path) in NETWORKS:
            raise NoModelError(
                f"{name_or_path} is a network without bundled weights (those have: {names}). Train it with"
                f" `carvana-batch train --model {name_or_path}` and give --model the folder of that run."
            )
        raise NoModelError(f"no model {str(name_or_path)!r}: neither a file nor one of the bundled ({names})")
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        return _load_foreign(path)
    try:
        size = path.stat().st_size
        if size > MAX_WEIGHTS_BYTES:  # which are those of its tensors, as they fill the file without overlap
            raise ModelError(f"{shown(path)}: has {size:,} bytes, more than weights of any of the networks")
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            keys = file.keys()
            if len(keys) > MAX_TENSORS:
                raise ModelError(
                    f"{shown(path)}: has {counted(len(keys), 'tensor')}, more than any of the networks"
                )
            weights = {key: file.get_tensor(key) for key in keys}
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(
            f"{shown(path)}: not a whole safetensors file ({shown(str(error))}); fetch or train it again"
        ) from error
    _refuse_odd(path, weights)
    return _assemble(path, header, weights)


def _assemble(path: Path, header: dict[str, str], weights: dict[str, Tensor]) -> Model:
    written_as = header.pop("format", None)
    if written_as != FORMAT:
        if "digest" in header:
            raise ModelError(
                f"{shown(path)}: its header says {written_as!r}, not {FORMAT!r}; the file is damaged, or of"
                " another version"
            )
        return _recognise(path, weights)
    digest = weights_digest(weights, header)
    if header.pop("digest", None) != digest:
        raise ModelError(
            f"{shown(path)}: its content does not match the checksum in the header; the file is damaged"
        )
    name = header.pop("network", "")
    if name not in NETWORKS:
        known = ", ".join(sorted(NETWORKS))
        raise ModelError(f"{shown(path)}: made for the network {name!r}; known are {known}")
    mean, deviation = _statistics(path, header, "mean"), _statistics(path, header, "deviation")
    if min(deviation) <= 0:
        raise ModelError(f"{shown(path)}: the deviations {deviation} in the header are not positive")
    size, scale = _size(path, header), _scale(path, header)
    return Model(name, _fill(path, name, weights), mean, deviation, digest, header, size, scale)


def _size(path: Path, header: dict[str, str]) -> tuple[int, int] | None:
    """Remove the input size from the header and return it; None if there is none."""
    text = header.pop("size", None)
    if text is None:
        return None
    try:
        width, height = (int(value) for value in json.loads(text))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ModelError(f"{shown(path)}: the size {text!r} in the header is not two numbers") from error
    if not (0 < width < 100_000 and 0 < height < 100_000):
        raise ModelError(f"{shown(path)}: the size {text!r} in the header is not one of images")
    return width, height


def _scale(path: Path, header: dict[str, str]) -> int | None:
    """Remove the scale of the training photos from the header and return it; None if there is none."""
    text = header.pop("scale", None)
    if text is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise ModelError(f"{shown(path)}: the scale {text!r} in the header is not a number of pixels")
    return int(text)


def _statistics(path: Path, header: dict[str, str], key: str) -> tuple[float, float, float]:
    """Remove an entry of three numbers, one per channel, from the header and return it."""
    text = header.pop(key, "")
    try:
        red, green, blue = (float(value) for value in json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{shown(path)}: the {key} {text!r} in the header is not three numbers") from error
    if not all(math.isfinite(value) for value in (red, green, blue)):
        raise ModelError(f"{shown(path)}: the {key} {text!r} in the header is not finite")
    return red, green, blue


def _fill(path: Path, name: str, weights: dict[str, Tensor]) -> AnySizeNetwork:
    network = NETWORKS[name]()
    expected = network.state_dict()
    for key, value in weights.items():
        if key in expected and value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[key].shape)}"
            raise ModelError(f"{shown(path)}: {shown(key)} has the shape {shapes} of the network {name}")
        if not torch.isfinite(value.float()).all():
            raise ModelError(
                f"{shown(path)}: {shown(key)} holds values that are not finite; use an earlier checkpoint"
            )
    missing, extra = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or extra:
        example = shown(sorted(missing or extra)[0])
        raise ModelError(
            f"{shown(path)}: not weights of the network {name}: {len(missing)} missing, {len(extra)} unknown,"
            f" such as {example}"
        )
    network.load_state_dict(weights)
    return network.eval()


def _load_foreign(path: Path) -> Model:
    """Load a state dict that another tool saved; only tensors are unpickled."""
    try:
        content = load_pickled(path)
    except OversizedError as error:
        raise ModelError(f"{shown(path)}: not loaded, because {error}") from error
    except Exception as error:  # a damaged pickle raises anything, from IndexError to struct.error
        # The message of the error is not shown, because it explains how to load the file unsafely.
        raise ModelError(
            f"{shown(path)}: damaged, or not a plain checkpoint of tensors ({type(error).__name__}), so it is"
            f" not loaded; save the network's state_dict()"
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{shown(path)}: not a state dict of tensors; save the network's state_dict()")
    weights = {str(key): value for key, value in content.items()}
    _refuse_odd(path, weights)
    return _recognise(path, weights)


def _refuse_odd(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise ModelError if a tensor is not a plain array of real numbers."""
    for key, value in weights.items():
        plain = value.layout == torch.strided and not (value.is_nested or value.is_quantized)
        if not plain or value.is_complex() or value.device.type != "cpu":
            raise ModelError(
                f"{shown(path)}: {shown(key)} is no plain tensor of real numbers; save it as float32"
            )


def _recognise(path: Path, weights: dict[str, Tensor]) -> Model:
    """The model of weights without our header: the network whose tensors have these names and shapes."""
    shapes = {key: value.shape for key, value in weights.items()}
    for name, build in NETWORKS.items():
        with torch.device("meta"):  # shapes alone, no random weights
            network = build()
        if shapes == {key: value.shape for key, value in network.state_dict().items()}:
            filled = _fill(path, name, weights)
            return Model(name, filled, PLAIN_MEAN, PLAIN_DEVIATION, weights_digest(weights))
    raise ModelError(f"{shown(path)}: its tensors fit none of the networks {', '.join(NETWORKS)}")
