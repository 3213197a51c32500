"""Reading tensors from files of any origin, within limits, and putting them into a network."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from torch import Tensor, nn

from carvana_batch.errors import ModelError
from carvana_batch.network.pickled import OversizedError, load_pickled
from carvana_batch.text import counted, shown

Network = TypeVar("Network", bound=nn.Module)

MAX_WEIGHTS_BYTES = 2**31
"""The largest network of ours has 240 MB in float32; those of others may have eight times as much."""

MAX_TENSORS = 10_000
"""The network of ours with the most tensors has 224."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What DataParallel, torch.compile and modules around a network put before all names."""

INSIDE = ("state_dict", "model_state_dict", "model", "net")
"""Entries of a checkpoint that may hold the state dict."""

NAMED_TENSORS = 3
"""Tensors that a refusal names."""


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a safetensors file.

    Raises:
        ModelError: it is damaged or too large, or a tensor is odd.
    """
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
        advice = "fetch or train it again"
        if path.suffix.lower() != ".safetensors":
            advice = "files of other kinds have to end in .pt, .pth, .ckpt, .bin, .onnx or .pt2"
        raise ModelError(
            f"{shown(path)}: not a whole safetensors file ({shown(str(error))}); {advice}"
        ) from error
    refuse_odd(path, weights)
    return header, weights


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict that another tool saved, and what else is in the file; only tensors are unpickled.

    Raises:
        ModelError: the file is damaged, has code or anything else but a state dict in it, or is too large.
    """
    try:
        content = load_pickled(path)
    except OversizedError as error:
        raise ModelError(f"{shown(path)}: not loaded, because {error}") from error
    except Exception as error:  # a damaged pickle raises anything, from IndexError to struct.error
        # The message of the error is not shown, because it explains how to load the file unsafely.
        if isinstance(error, pickle.UnpicklingError) and "Unsupported " in str(error):
            raise ModelError(
                f"{shown(path)}: not a plain checkpoint of tensors, but a pickled object, such as a whole"
                " model; it is not loaded, as that would run code; save the network's state_dict(), or export"
                " the network (torch.export, ONNX)"
            ) from error
        raise ModelError(
            f"{shown(path)}: damaged, or not a plain checkpoint of tensors ({type(error).__name__}), so it is"
            f" not loaded; save the network's state_dict(), or export the network (torch.export, ONNX)"
        ) from error
    rest: dict[str, Any] = {}
    if isinstance(content, dict):
        for key in INSIDE:
            if isinstance(content.get(key), dict):
                rest = {name: value for name, value in content.items() if name != key}
                content = content[key]
                break
    if isinstance(content, dict) and content:
        mask_values = content.get("mask_values")  # which the training of milesial/Pytorch-UNet adds
        if isinstance(mask_values, list):
            rest["mask_values"] = mask_values
            content = {key: value for key, value in content.items() if key != "mask_values"}
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{shown(path)}: not a state dict of tensors; save the network's state_dict()")
    weights = {str(key): value for key, value in content.items()}
    refuse_odd(path, weights)
    return weights, rest


def strip_prefixes(weights: Mapping[str, Tensor], is_lightning: bool = False) -> dict[str, Tensor]:
    """The weights without prefixes that all names share, however many there are.

    In a checkpoint of Lightning, the prefix of the network is the one that most names have, and what has
    another name is left out: losses, and statistics of the input.
    """
    stripped = dict(weights)
    while stripped:
        starts = Counter(prefix for key in stripped for prefix in PREFIXES if key.startswith(prefix))
        prefix, number = starts.most_common(1)[0] if starts else ("", 0)
        if not (number == len(stripped) or (is_lightning and 2 * number > len(stripped))):
            break
        kept = {key: value for key, value in stripped.items() if key.startswith(prefix)}
        stripped = {key.removeprefix(prefix): value for key, value in kept.items()}
    return stripped


def refuse_odd(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise ModelError if a tensor is not a plain array of real numbers."""
    for key, value in weights.items():
        plain = value.layout == torch.strided and not (value.is_nested or value.is_quantized)
        if not plain or value.is_complex() or value.device.type != "cpu":
            raise ModelError(
                f"{shown(path)}: {shown(key)} is no plain tensor of real numbers; save it as float32"
            )


def fill(path: Path, name: str, network: Network, weights: dict[str, Tensor]) -> Network:
    """Put weights into a network, in evaluation mode.

    Raises:
        ModelError: they are of another shape, not finite, missing, or too many.
    """
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


def refuse_misfit(
    path: Path, name: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise ModelError if names and shapes are not those of the network ``name``, whose are ``expected``."""
    shapes = {key: value.shape for key, value in weights.items()}
    if shapes != {key: value.shape for key, value in expected.items()}:
        misfit = describe_misfit(weights, {name: expected})
        raise ModelError(f"{shown(path)}: not weights of the network {name}: {misfit}")


def describe_misfit(weights: Mapping[str, Tensor], candidates: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Which network is nearest to weights that fit none, how many names match, and some that do not.

    Args:
        weights: by name.
        candidates: names of networks -> their state dicts, whose tensors may lie on the meta device.
    """

    def common(name: str) -> tuple[int, int]:
        """Tensors of the same name and shape as in a network, and of the same name."""
        names = weights.keys() & candidates[name].keys()
        return sum(weights[key].shape == candidates[name][key].shape for key in names), len(names)

    name = max(candidates, key=lambda name: (sum(common(name)), -len(candidates[name])))
    _, same_names = common(name)
    if not same_names:
        return "no name of a tensor is one of theirs"
    expected = candidates[name]
    odd = [f"{key} {tuple(value.shape)}" for key, value in weights.items() if key not in expected]
    odd += [
        f"{key} {tuple(value.shape)}, not {tuple(expected[key].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    odd += [f"{key} missing" for key in expected if key not in weights]
    examples = "; ".join(map(shown, odd[:NAMED_TENSORS]))
    return (
        f"nearest is {name}, with {same_names} of its {len(expected)} names; the first of"
        f" {len(odd)} that do not fit: {examples}"
    )
