"""The available networks and weights; a new one is added to the dicts below and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from carvana_batch.network.blocks import AnySizeNetwork
from carvana_batch.network.segunet import SegUNet
from carvana_batch.network.unet import UNet

NETWORKS: dict[str, Callable[[], AnySizeNetwork]] = {
    "segunet-s": lambda: SegUNet((16, 32, 64, 96, 128, 160), center=160, decoder_convolutions=1, unshuffle=2),
    "segunet-m": lambda: SegUNet(
        (24, 48, 96, 128, 176, 224), center=224, decoder_convolutions=1, unshuffle=2
    ),
    "segunet": lambda: SegUNet((8, 24, 64, 128, 256, 512, 768), center=768, decoder_convolutions=3),
    "unet": lambda: UNet((64, 128, 256, 512), bottleneck=1024),
}
"""Architectures by name, each with random weights."""

WEIGHTS_FOLDER = Path(__file__).parent / "weights"

BUNDLED_WEIGHTS: dict[str, Path] = {
    name: WEIGHTS_FOLDER / f"{name}.safetensors" for name in ("segunet-s", "segunet-s-anywhere")
}
"""Weights that come with the package, by their name for ``--model``."""

AUTO_WEIGHTS = ("segunet-s", "segunet-s-anywhere")
"""The weights of ``--model auto``: those for photos of a studio, and those that check the masks."""
