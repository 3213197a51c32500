"""What the shell offers after Tab for options whose values are neither of a fixed list nor just any file.

Torch is not imported, so that the answer comes at once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

import carvana_batch

WEIGHTS_FOLDER = Path(carvana_batch.__file__).parent / "network" / "weights"

NETWORKS = ("segunet-s", "segunet-m", "segunet", "unet")
"""The keys of ``network.NETWORKS``, whose import takes seconds."""

OTHER_NETWORKS = ("milesial", "torchscript")
"""What else ``--network`` may name in one word."""

WEIGHTS_SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".bin",
    ".onnx",
    ".pt2",
    ".ts",
    ".torchscript",
)
"""Those of the files that ``network.sources`` tells apart."""

GPU_DEVICES = "/dev/nvidia[0-9]*"


def names_of_weights() -> list[str]:
    """The weights that come with the package, and ``auto``."""
    return ["auto", *sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))]


def complete_model(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Names of weights, and the weights files and folders of training runs that are near at hand."""
    return _matching([*names_of_weights(), *_models_on_disk(incomplete)], incomplete) or _files(incomplete)


def complete_network(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Names of networks that can be trained."""
    return _matching(NETWORKS, incomplete)


def complete_network_of_weights(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Names of networks that weights can be of."""
    return _matching((*NETWORKS, *OTHER_NETWORKS), incomplete)


def complete_device(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The kinds of devices, and the NVIDIA cards of this machine."""
    cards = [f"cuda:{number}" for number in range(len(glob.glob(GPU_DEVICES)))]  # noqa: PTH207 (from the root)
    return _matching(["auto", "cpu", "cuda", *cards, "mps"], incomplete)


def complete_file(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Any file, by the shell itself."""
    return _files(incomplete)


def complete_folder(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Any folder, by the shell itself."""
    return [CompletionItem(incomplete, type="dir")]


def _models_on_disk(incomplete: str) -> list[str]:
    """The weights files and the folders of training runs whose paths begin like this."""
    folder = os.path.dirname(incomplete)  # noqa: PTH120 (keeps ./ and the like as they were typed)
    found = []
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                path = Path(entry.path)
                if path.suffix in WEIGHTS_SUFFIXES or (path / "best.safetensors").is_file():
                    found.append(os.path.join(folder, entry.name))  # noqa: PTH118
    except OSError:  # no such folder: nothing to offer
        return []
    return sorted(found)


def _matching(values: Sequence[str], incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(value) for value in values if value.startswith(incomplete)]


def _files(incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(incomplete, type="file")]
