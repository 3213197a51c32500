"""What a run is asked for, and what it chose where it was asked for ``auto``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from carvana_batch import __version__
from carvana_batch.colours import RGB, format_colour
from carvana_batch.errors import UsageError
from carvana_batch.model_settings import NO_SETTINGS, ModelSettings

DEFAULT_THRESHOLD = 0.5
"""Probability above which a pixel is car."""

DEFAULT_OVERLAP = 256
"""Pixels that neighbouring tiles share at least."""

DEFAULT_PIXEL_LIMIT = 200_000_000
"""Images with more pixels are refused by default: their pixels alone would take more than 600 MB."""

DEFAULT_DECODE_TIMEOUT = 120.0
"""Seconds: many times what the largest photo takes, and short compared with a night lost to a hang."""

PRECISION_NAMES = ("auto", "fp16", "bf16", "fp32")

EXTRA_FILES = {
    "prob": ("_prob", ".tif"),
    "overlay": ("_overlay", ".jpg"),
    "panel": ("_panel", ".jpg"),
    "cutout": ("_cutout", ".png"),
    "recolour": ("_recolour", ".jpg"),
    "background": ("_background", ".jpg"),
}
"""What can be written in addition to the masks: kind -> folder at the top of the out folder, and suffix."""

PROBABILITY_EXTRAS = {"prob", "background"}
"""Those that are made from the probability map, which is only kept for them."""

EXTRA_SETTINGS = {"recolour": "colour", "background": "background"}
"""Settings that concern a kind of extra file alone."""

BYTES_PER_PIXEL = 8
"""Of 16 bits in four channels, without compression."""

REVIEW_WORST, REVIEW_SAMPLE = 48, 24
"""How many masks the page of a review shows by default: the most doubtful, and some of the others."""

NetworkSize = tuple[int, int] | Literal["native"] | None
"""In which size the network sees photos: (width, height), as they are, or None for the one that the weights
were trained for."""


def most_bytes(pixel_limit: int) -> int:
    """The size of a file that holds so many pixels without compression, and much besides."""
    return BYTES_PER_PIXEL * pixel_limit + 2**26


@dataclass(frozen=True)
class Options:
    """The options of ``carvana-batch predict``; its help text explains them.

    ``size`` and ``tile`` are (width, height) in pixels and ``memory`` is in bytes; None stands for ``auto``.
    ``size`` may be ``"native"`` as well. ``images`` is IN, None for a list of photos, and ``given`` what was
    given of the options, by name; both are only recorded. ``model_settings`` are those of a network of the
    user's own; those of its file are added as it is loaded.
    """

    device: str = "auto"
    precision: str = "auto"
    memory: int | None = None
    size: NetworkSize = None
    tile: tuple[int, int] | None = None
    overlap: int = DEFAULT_OVERLAP
    batch: int | None = None
    threshold: float = DEFAULT_THRESHOLD
    flip: bool = False
    clean: bool = True
    extras: tuple[str, ...] = ()
    colour: RGB | None = None
    background: RGB | Path | None = None
    shadow: bool = False
    mask_bits: int = 1
    apply_exif: bool = False
    accept_damage: bool = False
    pixel_limit: int = DEFAULT_PIXEL_LIMIT
    workers: int | None = None
    decode_timeout: float = DEFAULT_DECODE_TIMEOUT
    rle_file: Path | None = None
    images: Path | None = None
    truth: Path | None = None
    car_values: tuple[int, ...] = ()
    ignored_values: tuple[int, ...] = ()
    shard: tuple[int, int] = (1, 1)
    overwrite: bool = False
    verify: bool = False
    given: dict[str, Any] = field(default_factory=dict, compare=False)
    model_settings: ModelSettings = NO_SETTINGS

    def settings(self, model: str) -> dict[str, Any]:
        """What all runs of one job must have in common, as it is compared and shown to the user.

        Options that only affect speed are left out, and so is ``accept_damage``: it changes no mask, and
        photos that were refused can be masked later.

        Args:
            model: name and digest of the weights.
        """
        settings = {
            "version": __version__,
            "model": model,
            "precision": self.precision,
            "memory": self.memory or "auto",
            "batch": self.batch or "auto",
            "size": describe_size(self.size),
            "tile": describe_size(self.tile),
            "overlap": self.overlap,
            "threshold": self.threshold,
            "tta": "flip" if self.flip else "none",
            "clean": "auto" if self.clean else "none",
            "save": sorted(self.extras),
            "mask-bits": self.mask_bits,
            "exif": "apply" if self.apply_exif else "ignore",
        }
        own = replace(self.model_settings, overlap=None, threshold=None)
        settings |= {f"model-{name}": value for name, value in own.describe().items()}
        if self.colour is not None:
            settings["colour"] = format_colour(self.colour)
        if isinstance(self.background, Path):
            settings["background"] = _describe_file(self.background)
        elif self.background is not None:
            settings["background"] = format_colour(self.background)
        if self.shadow:
            settings["shadow"] = True
        return settings


def _describe_file(path: Path) -> str:
    """The name of a file, and the beginning of the digest of its content.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        raise UsageError(f"Cannot read --background {path}: {error.strerror or error}.") from error


def describe_size(size: NetworkSize) -> str:
    """A size as it is given on the command line."""
    if size is None:
        return "auto"
    return size if isinstance(size, str) else "{}x{}".format(*size)


@dataclass(frozen=True)
class Choice:
    """What the first run of a job chose for ``auto``, and later ones have to choose again.

    Attributes:
        device: type of the device, such as ``cpu`` or ``cuda``.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        batch: tiles that go through the network together.
        most_pixels: most pixels of a tile of automatic size.
        tile: whether tiles have the size that was asked for; they no longer do once memory ran out.
        map_share: see :class:`Tiling`; 0 in jobs of versions that did not count maps.
        threads: of torch on a CPU, on which the last bits of float32 depend; 0 if it is not known.
        hardware: name of the processor or GPU, and instruction set; "" if it is not known.
        torch: version of torch; "" if it is not known.
    """

    device: str
    precision: str
    batch: int
    most_pixels: int
    tile: bool = True
    map_share: float = 0.0
    threads: int = 0
    hardware: str = ""
    torch: str = ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Choice | None:
        """The choice that an earlier run wrote down; None if it had not chosen yet.

        Raises:
            UsageError: the values are damaged.
        """
        if not values:
            return None
        kinds = {"device": str, "precision": str, "batch": int, "most_pixels": int}
        missing = kinds.keys() - values.keys()
        kinds |= {"tile": bool, "map_share": float, "threads": int, "hardware": str, "torch": str}
        for name, value in (values | dict.fromkeys(sorted(missing))).items():
            if type(value) is not kinds.get(name):
                raise damaged_choice(name, value)
        return cls(**values)


def damaged_choice(name: str, value: object) -> UsageError:
    """What to raise for a value of an earlier run's choice that cannot be."""
    return UsageError(
        f"the settings of the earlier run are damaged ({name}: {value!r}); use --overwrite to start"
        " afresh, or another OUT"
    )
