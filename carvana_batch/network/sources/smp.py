"""Networks of segmentation_models_pytorch: saved folders, and state dicts with ``--network smp:Unet``.

Source: https://smp.readthedocs.io. Nothing is ever downloaded: encoders are built without weights.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.model import Model, weights_digest
from carvana_batch.network.sources.tensors import fill, read_safetensors, refuse_misfit
from carvana_batch.network.wrapped import wrap_module
from carvana_batch.text import cut_short, shown

PREFIX = "smp:"

ARCHITECTURES = ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3Plus")

CONFIG, WEIGHTS = "config.json", "model.safetensors"

HEAD = "segmentation_head.0.weight"
"""The tensor that tells the number of classes in a state dict."""

ACTIVATIONS = {None: "logits", "identity": "logits", "sigmoid": "probability", "softmax2d": "probability"}
"""What the output is with each activation."""


class Normalisation(NamedTuple):
    """How photos were normalised for an encoder in its training.

    Attributes:
        mean: of the red, green and blue channel, scaled to [0, 1].
        deviation: the same.
        origin: where that is from, in words.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    origin: str


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

IMAGENET_FAMILIES = (
    *("resnet", "resnext", "se_resnet", "se_resnext", "densenet", "vgg"),
    *("efficientnet-b", "mobilenet_v2", "mit_b"),
)
"""Beginnings of the names of encoders whose trained weights are for photos normalised with the statistics of
ImageNet. smp itself would look on the network for what the files of those weights say."""


def is_saved_folder(path: Path) -> bool:
    """Whether it is a folder that ``save_pretrained`` wrote."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def load(path: Path, settings: ModelSettings) -> Model:
    """Load a folder that ``save_pretrained`` wrote; see :func:`load_model`.

    Raises:
        ModelError: the configuration is damaged or not of a network that can be used; see
            :func:`from_weights` for the rest.
    """
    if settings.network is not None or settings.encoder is not None:
        raise ModelError(
            f"{shown(path)}: its {CONFIG} names network and encoder; leave out --network and --encoder"
        )
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{shown(path / CONFIG)} is not JSON ({shown(str(error))}); save it again"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("encoder_name"), str):
        raise ModelError(
            f"{shown(path / CONFIG)}: not of segmentation_models_pytorch, as it has no encoder_name"
        )
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    _, weights = read_safetensors(path / WEIGHTS)
    return _load(path / WEIGHTS, str(config.get("_model_class")), given, weights, settings)


def from_weights(path: Path, weights: dict[str, Tensor], settings: ModelSettings) -> Model:
    """The model of a state dict, whose network and encoder the settings name.

    Args:
        path: of the file.
        weights: by name, without prefixes.
        settings: all that is not said has the defaults of segmentation_models_pytorch.

    Raises:
        ModelError: the package is missing; there is no such network or encoder, or it cannot be used; the
            weights are not those of the network, or not finite.
        MissingSettingsError: it is not known how its input is normalised.
    """
    if settings.encoder is None:
        raise ModelError(f"{shown(path)}: --network {settings.network} needs --encoder, such as resnet34")
    classes = len(weights[HEAD]) if HEAD in weights else 1
    config = {"encoder_name": settings.encoder, "in_channels": 3, "classes": classes}
    return _load(path, str(settings.network).removeprefix(PREFIX), config, weights, settings)


def _load(
    path: Path, architecture: str, config: dict[str, Any], weights: dict[str, Tensor], settings: ModelSettings
) -> Model:
    encoder = str(config["encoder_name"])
    output = _check_config(path, architecture, config)
    if settings.output not in (None, output):
        raise ModelError(f"{shown(path)}: its output is {output}; leave out --output {settings.output}")
    smp = _package()
    name = f"{PREFIX}{architecture}, encoder {encoder}"
    module = _build(path, smp, architecture, config)
    refuse_misfit(path, name, weights, module.state_dict())
    stride = int(module.encoder.output_stride)  # type: ignore[union-attr, arg-type]
    normalisation = _normalisation(smp, encoder)
    used, origins = replace(settings, output=output, stride=settings.stride or stride), {}
    if normalisation is not None:
        for key in ("mean", "deviation"):
            if getattr(settings, key) is None:
                used = replace(used, **{key: getattr(normalisation, key)})
                origins[key] = normalisation.origin
    described = json.dumps({**config, "encoder_weights": None}, sort_keys=True, default=str)
    digest = hashlib.sha256((architecture + described + weights_digest(weights)).encode()).hexdigest()
    kind = f"segmentation_models_pytorch {smp.__version__}"
    return wrap_module(
        fill(path, name, module, weights),
        used,
        name=name,
        kind=kind,
        digest=digest,
        unit=stride,
        origins=origins,
    )


def _check_config(path: Path, architecture: str, config: dict[str, Any]) -> str:
    """What the output is: ``logits`` or ``probability``.

    Raises:
        ModelError: the network cannot be used.
    """
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{shown(path)}: there is no smp:{shown(architecture)} here, but {', '.join(ARCHITECTURES)}; use"
            " --network package.module:factory with code that builds it"
        )
    if config.get("in_channels", 3) != 3:
        raise ModelError(f"{shown(path)}: takes {config['in_channels']} channels; photos have 3")
    if config.get("classes", 1) not in (1, 2):
        raise ModelError(f"{shown(path)}: has {config['classes']} classes; train it for one (car) or two")
    if config.get("aux_params") is not None:
        raise ModelError(f"{shown(path)}: has a classification head as well (aux_params); save it without")
    activation = config.get("activation")
    if not isinstance(activation, str | None) or activation not in ACTIVATIONS:
        raise ModelError(
            f"{shown(path)}: its activation {shown(str(activation))} is neither sigmoid nor none"
        )
    if activation == "sigmoid" and config.get("classes", 1) == 2:
        raise ModelError(
            f"{shown(path)}: has two classes that are not exclusive (sigmoid); train it for one (car)"
        )
    return ACTIVATIONS[activation]


def _package() -> Any:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise ModelError(
            "networks of segmentation_models_pytorch need that package: pip install 'carvana-batch[smp]'"
            f" ({cut_short(str(error))})"
        ) from error
    return segmentation_models_pytorch


def _build(path: Path, smp: Any, architecture: str, config: dict[str, Any]) -> nn.Module:
    encoder = str(config["encoder_name"])
    known = list(smp.encoders.get_encoder_names())
    if encoder not in known and not encoder.startswith(("tu-", "timm-")):
        near = difflib.get_close_matches(encoder, known, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"{shown(path)}: smp has no encoder {shown(encoder)!r}{advice}")
    known = list(inspect.signature(getattr(smp, architecture).__init__).parameters)
    unknown = sorted(config.keys() - set(known))
    if unknown and not encoder.startswith("tu-"):  # whose encoders have options of their own
        raise ModelError(
            f"{shown(path)}: smp {smp.__version__} has no option {shown(unknown[0])} for {architecture}; use"
            " the version that saved it"
        )
    try:
        module: nn.Module = getattr(smp, architecture)(**{**config, "encoder_weights": None})
    except Exception as error:  # timm and smp raise anything for what they do not know
        raise ModelError(
            f"{shown(path)}: smp {smp.__version__} cannot build {architecture} with {shown(encoder)}"
            f" ({type(error).__name__}: {shown(cut_short(str(error), 200))})"
        ) from error
    return module


def _normalisation(smp: Any, encoder: str) -> Normalisation | None:
    """How photos were normalised for the trained weights of an encoder; None if that is not known here."""
    if encoder.startswith("tu-"):
        import timm

        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        if config is None:
            return None
        return _scaled({"mean": config.mean, "std": config.std}, f"timm's configuration of {encoder}")
    known = [
        _scaled(entry, f"the preprocessing of smp for {encoder}")
        for entry in smp.encoders.encoders[encoder]["pretrained_settings"].values()
        if "mean" in entry and "std" in entry
    ]
    if known and all(entry == known[0] for entry in known):
        return known[0]
    if not known and encoder.startswith(IMAGENET_FAMILIES):
        return Normalisation(*IMAGENET, f"ImageNet, for which the trained weights of {encoder} are")
    return None


def _scaled(entry: dict[str, Any], origin: str) -> Normalisation | None:
    """The statistics of an entry for channels scaled to [0, 1]; None if the order of channels is odd."""
    if entry.get("input_space", "RGB") != "RGB":
        return None
    most = float(list(entry.get("input_range") or (0, 1))[1])
    mean = [float(value) / most for value in entry["mean"]]
    deviation = [float(value) / most for value in entry["std"]]
    return Normalisation((mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2]), origin)
