"""The settings of a training run, and the TOML file that holds them."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from carvana_batch.errors import UsageError
from carvana_batch.text import shown

LOSS_NAMES = ("bce+dice", "bce", "dice", "boundary")
OPTIMIZER_NAMES = ("adamw", "adam")
SCHEDULE_NAMES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class AugmentationLimits:
    """How far each random change may go; 0 switches it off.

    Attributes:
        shift: as a fraction of width and height.
        scale: relative change of size.
        rotation: in degrees.
        flip: probability of a mirror image.
        brightness: relative change.
        contrast: relative change.
        saturation: relative change.
        grey: probability of a grey photo.
    """

    shift: float = 0.0625
    scale: float = 0.1
    rotation: float = 5.0
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3
    grey: float = 0.1


NO_AUGMENTATION = AugmentationLimits(0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class TrainingSettings:
    """The options of ``carvana-batch train``, whose help text explains them.

    ``size`` and ``crop`` are (width, height) in pixels. With a ``size`` of None, photos keep their own size;
    with a ``crop`` of None, they are not cropped. ``ema`` is the decay per step of the moving average of the
    weights.
    """

    model: str = "segunet-s"
    init: str | None = None
    also: tuple[str, ...] = ()
    val: str | None = None
    val_cars: str | None = None
    val_fraction: float = 0.1
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    crop_share: float = 1.0
    epochs: float = 30.0
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
    seed: int = 0
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
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {shown(path)} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UsageError(f"--config {shown(path)} is not TOML: {error}.") from error
    known = [
        *(item.name for item in fields(TrainingSettings)),
        *(item.name for item in fields(AugmentationLimits)),
    ]
    known.remove("augmentation")
    unknown = [shown(name) for name in content if name.replace("-", "_") not in known]
    if unknown:
        options = ", ".join(name.replace("_", "-") for name in known)
        raise UsageError(f"--config {shown(path)}: {', '.join(unknown)} is no setting; known are {options}.")
    return {name.replace("-", "_"): value for name, value in content.items()}


def make_settings(values: dict[str, Any]) -> TrainingSettings:
    """Make the settings from all options by name, including those of the augmentation."""
    limits = {item.name for item in fields(AugmentationLimits)}
    augmentation = AugmentationLimits(**{name: value for name, value in values.items() if name in limits})
    others = {name: value for name, value in values.items() if name not in limits}
    return TrainingSettings(augmentation=augmentation, **others)
