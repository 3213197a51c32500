"""What a run is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carvana_batch import __version__

DEFAULT_OVERLAP = 256

DEFAULT_PIXEL_LIMIT = 200_000_000
"""Images with more pixels are refused unless asked for: their pixels alone would take over 600 MB."""

DEFAULT_DECODE_TIMEOUT = 120.0
"""Seconds: many times what the largest photo takes, and short beside the night that a hang would cost."""

PRECISION_NAMES = ("auto", "fp16", "bf16", "fp32")

EXTRA_FILES = {
    "prob": ("_prob", ".tif"),
    "overlay": ("_overlay", ".jpg"),
    "panel": ("_panel", ".jpg"),
    "cutout": ("_cutout", ".png"),
}
"""What can be written beside the masks: kind -> folder at the top of the out folder, and suffix."""


@dataclass(frozen=True)
class Options:
    """The options of ``carvana-batch predict``; its help text says what they mean.

    ``tile`` is (width, height) in pixels and ``memory`` is in bytes; None stands for ``auto``.
    """

    device: str = "auto"
    precision: str = "auto"
    memory: int | None = None
    tile: tuple[int, int] | None = None
    overlap: int = DEFAULT_OVERLAP
    batch: int | None = None
    threshold: float = 0.5
    flip: bool = False
    extras: tuple[str, ...] = ()
    mask_bits: int = 1
    apply_exif: bool = False
    pixel_limit: int = DEFAULT_PIXEL_LIMIT
    workers: int | None = None
    decode_timeout: float = DEFAULT_DECODE_TIMEOUT
    runs_file: Path | None = None
    truth: Path | None = None
    shard: tuple[int, int] = (1, 1)
    overwrite: bool = False

    def settings(self, model: str) -> dict[str, Any]:
        """What the runs of one job must share, as it is compared and shown to the user.

        What only changes speed is left out; ``model`` names the weights.
        """
        return {
            "version": __version__,
            "model": model,
            "precision": self.precision,
            "memory": self.memory or "auto",
            "batch": self.batch or "auto",
            "tile": "auto" if self.tile is None else "{}x{}".format(*self.tile),
            "overlap": self.overlap,
            "threshold": self.threshold,
            "tta": "flip" if self.flip else "none",
            "save": sorted(self.extras),
            "mask-bits": self.mask_bits,
            "exif": "apply" if self.apply_exif else "ignore",
        }
