"""The settings of a training run, and the TOML file that holds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from carvana_batch.settings_file import read_settings_file

LOSS_NAMES = ("bce+dice", "bce", "dice", "boundary")
OPTIMIZER_NAMES = ("adamw", "adam")
SCHEDULE_NAMES = ("cosine", "linear", "constant")
CACHE_NAMES = ("main", "device")


@dataclass(frozen=True)
class AugmentationLimits:
    """How far each random change may go; 0 switches it off.

    The defaults suit photos of one studio. Those below ``degrade_share`` change what a photo looks like after
    it was taken; they are applied only to that part of the samples, each to a third of it.

    Attributes:
        shift: as a fraction of width and height.
        scale: relative change of size.
        zoom_out: the same for smaller sizes only; the larger of both counts.
        rotation: in degrees.
        perspective: farthest shift of a corner, as a fraction of width and height.
        flip: probability of a mirror image.
        background_share: probability of another background, if there are any.
        brightness: relative change.
        contrast: relative change.
        saturation: relative change.
        grey: probability of a grey photo.
        degrade_share: probability that the changes below are applied at all.
        darken: relative loss of brightness.
        gamma: relative change of the exponent of the tone curve.
        tint: relative change of each channel.
        shadow: relative loss of brightness in a shadow.
        blur: radius in pixels of defocus.
        motion: length in pixels of motion blur.
        resample: relative loss of resolution.
        noise: standard deviation of noise, in levels of 255.
        jpeg: 100 - quality of JPEG compression.
    """

    shift: float = 0.0625
    scale: float = 0.1
    zoom_out: float = 0.0
    rotation: float = 5.0
    perspective: float = 0.0
    flip: float = 0.5
    background_share: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3
    grey: float = 0.1
    degrade_share: float = 0.75
    darken: float = 0.0
    gamma: float = 0.0
    tint: float = 0.0
    shadow: float = 0.0
    blur: float = 0.0
    motion: float = 0.0
    resample: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0


NO_AUGMENTATION = AugmentationLimits(**dict.fromkeys([item.name for item in fields(AugmentationLimits)], 0.0))

PRESETS = {
    "studio": AugmentationLimits(),
    "photos": AugmentationLimits(
        scale=1.0,
        zoom_out=3.0,
        rotation=30.0,
        perspective=0.1,
        brightness=0.6,
        contrast=0.4,
        saturation=0.5,
        darken=0.75,
        gamma=0.7,
        tint=0.3,
        shadow=0.7,
        blur=4.0,
        motion=12.0,
        resample=3.0,
        noise=30.0,
        jpeg=95.0,
    ),
}
"""Named groups of limits: "photos" is for photos that come from anywhere, not from one studio."""


@dataclass(frozen=True)
class TrainingSettings:
    """The options of ``carvana-batch train``, whose help text explains them.

    ``size`` and ``crop`` are (width, height) in pixels. With a ``size`` of None, photos keep their own size;
    with a ``crop`` of None, they are not cropped. ``ema`` is the decay per step of the moving average of the
    weights. With ``minutes`` of None, only ``epochs`` ends the run. ``cache`` says whose memory keeps photos.
    """

    model: str = "segunet-s"
    init: str | None = None
    also: tuple[str, ...] = ()
    val: str | None = None
    val_cars: str | None = None
    val_fraction: float = 0.1
    car_value: tuple[int, ...] = ()
    ignore_value: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    crop_share: float = 1.0
    epochs: float = 30.0
    minutes: float | None = None
    batch: int = 4
    accumulate: int = 1
    lr: float = 1e-3
    loss: str = "bce+dice"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warm_up: int = 200
    clip: float = 1.0
    ema: float = 0.998
    patience: int = 0
    validate_every: int = 1
    precision: str = "auto"
    cache: str = "main"
    seed: int = 0
    backgrounds: str | None = None
    augmentation: AugmentationLimits = field(default_factory=AugmentationLimits)


def describe_settings(settings: TrainingSettings) -> dict[str, Any]:
    """Return the settings as a file holds them: option name -> value, without those that are None."""
    flat = asdict(settings)
    flat.update(flat.pop("augmentation"))
    named = {name.replace("_", "-"): value for name, value in flat.items() if value is not None}
    for name in ("size", "crop"):
        if name in named:
            named[name] = "{}x{}".format(*named[name])
    if settings.size is None:
        named["size"] = "full"
    return named


def format_settings(settings: TrainingSettings) -> str:
    """Return the text of the TOML file of a run."""
    return tomli_w.dumps(describe_settings(settings))


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML file as option name, with underscores -> value. Values are not checked.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has a key that is not a setting.
    """
    known = [
        "augment",
        *(item.name for item in fields(TrainingSettings)),
        *(item.name for item in fields(AugmentationLimits)),
    ]
    known.remove("augmentation")
    return read_settings_file(path, known)


def make_settings(values: dict[str, Any]) -> TrainingSettings:
    """Make the settings from all options by name, including those of the augmentation."""
    limits = {item.name for item in fields(AugmentationLimits)}
    augmentation = AugmentationLimits(**{name: value for name, value in values.items() if name in limits})
    others = {name: value for name, value in values.items() if name not in limits}
    return TrainingSettings(augmentation=augmentation, **others)
