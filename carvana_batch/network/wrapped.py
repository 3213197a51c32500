"""Any module (N, 3, h, w) -> (N, 1 or 2, h, w) as a network, after it was tried and measured."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings, format_value
from carvana_batch.network import measuring
from carvana_batch.network.blocks import AnySizeNetwork
from carvana_batch.network.model import MissingSettingsError, Model, weights_digest
from carvana_batch.text import cut_short, shown

Result = TypeVar("Result")

ROUNDING = 1e-3
"""How far probabilities of a network may lie outside of [0, 1]."""

SMALLEST_PROBABILITY = 1e-6
"""Probabilities become logits of at most 14."""

DIFFERENCE = 1e-3
"""Relative difference of two outputs that should be the same, above which they are not."""


@dataclass(frozen=True)
class Output:
    """What the output of a module means.

    Attributes:
        is_probability: its values are probabilities rather than logits.
        classes: its channels: 1, or 2 of which softmax makes probabilities.
        car_class: which of two channels is car.
    """

    is_probability: bool = False
    classes: int = 1
    car_class: int = 1

    def to_logits(self, values: Tensor) -> Tensor:
        """Logits (N, 1, h, w) of the output (N, classes, h, w) of the module.

        Probabilities that are none become NaN, which the finite check of a run finds.
        """
        if self.is_probability:
            car = values[:, self.car_class : self.car_class + 1] if self.classes == 2 else values
            car = car.float()
            valid = (car >= -ROUNDING) & (car <= 1 + ROUNDING)
            return torch.where(valid, torch.logit(car, eps=SMALLEST_PROBABILITY), torch.nan)
        if self.classes == 2:
            return values[:, self.car_class : self.car_class + 1] - values[:, 1 - self.car_class, None]
        return values


class WrappedNetwork(AnySizeNetwork):
    """A module of any origin as a network.

    Args:
        module: (N, 3, h, w) to (N, classes, h, w), in evaluation mode; its weights are not fused or folded.
        stride: see :class:`AnySizeNetwork`.
        unit: see :class:`AnySizeNetwork`.
        output: what its output means.
        one_at_a_time: it takes batches of one image only.
    """

    def __init__(
        self,
        module: nn.Module,
        stride: int,
        unit: int | None = None,
        output: Output | None = None,
        one_at_a_time: bool = False,
    ) -> None:
        super().__init__(stride, unit)
        self.module, self.output, self.one_at_a_time = module, output or Output(), one_at_a_time
        self.is_foreign = True

    def padded_logits(self, images: Tensor) -> Tensor:
        # A copy that is laid out as modules expect it, and that those may change which do so in place.
        images = images.clone(memory_format=torch.contiguous_format)
        parts = images.split(1) if self.one_at_a_time else (images,)
        outputs = [self.module(part) for part in parts]
        if not torch.compiler.is_compiling():  # an exported network must not depend on the number of images
            for part, output in zip(parts, outputs, strict=True):
                check_output(output, part, self.output.classes)
        return self.output.to_logits(outputs[0] if len(outputs) == 1 else torch.cat(outputs))


def check_output(output: object, images: Tensor, classes: int | None = None) -> Tensor:
    """The output of a module, if it is one tensor of 1 or 2 classes and of the size of the images.

    Raises:
        ModelError: it is something else.
    """
    advice = "; wrap it in a module whose forward returns logits (N, 1, h, w) for images (N, 3, h, w)"
    if not isinstance(output, Tensor):
        raise ModelError(f"the network returns a {type(output).__name__}, not a tensor{advice}")
    shape, size = tuple(output.shape), tuple(images.shape[-2:])
    if output.ndim != 4 or len(output) != len(images):
        raise ModelError(f"the network returns the shape {shape} for {tuple(images.shape)}{advice}")
    if shape[-2:] != size:
        raise ModelError(
            f"the network returns {shape[-1]}x{shape[-2]} pixels for images of {size[1]}x{size[0]}; enlarge"
            " its output to the size of the input in a module around it"
        )
    if shape[1] not in (1, 2):
        raise ModelError(
            f"the network has {shape[1]} classes; one (car) or two (background, car) can be used. Choose or"
            " join channels in a module around it"
        )
    if classes is not None and shape[1] != classes:
        raise ModelError(
            f"the network has {shape[1]} channels of output, not the {classes} that were declared (classes)"
        )
    return output


def wrap_module(
    module: nn.Module,
    settings: ModelSettings,
    *,
    name: str | None = None,
    kind: str = "a module of your own",
    digest: str | None = None,
    opaque: bool = False,
    unit: int | None = None,
    origins: dict[str, str] | None = None,
) -> Model:
    """Any module as a model: its output is checked, and what the settings leave open is measured.

    Args:
        module: (N, 3, h, w) float32 to (N, 1 or 2, h, w). It is copied, unless it is opaque.
        settings: mean and deviation are needed; ``output`` as well, if all values lie within [0, 1].
        name: of the network, for messages; the name of the module's class by default.
        kind: what it was loaded from, in words.
        digest: of all that the output depends on besides settings; that of its weights by default.
        opaque: it is no Python code of torch, but for example a session of another runtime: it is neither
            copied nor converted, runs in float32 only, and its memory is measured by a trial.
        unit: see :class:`AnySizeNetwork`; the stride by default.
        origins: see :class:`Model`.

    Raises:
        MissingSettingsError: mean, deviation or the meaning of the output was not said.
        ModelError: weights are not finite; the module fails, or returns something else than one map of
            logits; its output depends on chance or on other images; its stride cannot be measured.
    """
    name = name or type(module).__name__
    missing = tuple(key for key in ("mean", "deviation") if getattr(settings, key) is None)
    if missing or settings.mean is None or settings.deviation is None:
        options = " and ".join(f"--{key} R,G,B" for key in missing)
        raise MissingSettingsError(
            f"{name}: say how its input was normalised in training: {options}, of channels scaled to [0, 1]"
            " (0,0,0 and 1,1,1 if nothing was subtracted and divided)",
            missing,
        )
    refuse_not_finite(module.state_dict(), name)
    if not opaque:
        module = copy.deepcopy(module).cpu().float().eval()
    try:
        network = _try_and_measure(module, settings, opaque, unit)
    except MissingSettingsError as error:
        raise MissingSettingsError(f"{name}: {error}", error.missing) from error
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    digest = digest or weights_digest(module.state_dict(), {"network": name})
    return Model(
        name,
        network,
        settings.mean,
        settings.deviation,
        settings_digest(digest, network, settings),
        size=settings.size,
        kind=kind,
        origins=origins or {},
    )


def settings_digest(digest: str, network: AnySizeNetwork, settings: ModelSettings) -> str:
    """The digest of a network, and of everything besides that its masks depend on."""
    values: list[object] = [settings.mean, settings.deviation, settings.size]
    values += [network.stride, network.unit, network.fixed_size]
    if isinstance(network, WrappedNetwork):
        values.append(tuple(map(int, asdict(network.output).values())))
    described = [digest, *("" if value is None else format_value(value) for value in values)]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()


def refuse_not_finite(weights: dict[str, Tensor], name: str) -> None:
    """Raise ModelError if a weight is infinite, not a number, or no number that float32 has."""
    for key, value in weights.items():
        if isinstance(value, Tensor) and not torch.isfinite(value.float()).all():
            raise ModelError(
                f"{name}: {shown(key)} holds values that are not finite; use an earlier checkpoint"
            )


def _try_and_measure(
    module: nn.Module, settings: ModelSettings, opaque: bool, unit: int | None
) -> WrappedNetwork:
    fixed = None if settings.fixed_size is None else settings.fixed_size[::-1]
    step = settings.stride or 1
    side = measuring.TRIAL_SIDE + -measuring.TRIAL_SIDE % step
    height, width = fixed or (side, side)
    images = measuring.noise(height, width)
    values = check_output(_run(module, images), images, settings.classes)
    classes = values.shape[1]
    meaning = _meaning(values, settings, classes)
    if not torch.isfinite(values).all():
        raise ModelError("its output for noise is not finite; use other weights")
    if not _same(_run(module, images), values):
        raise ModelError(
            "its output differs from one call to the next; leave dropout and noise out in evaluation mode"
        )
    network = WrappedNetwork(module, step, unit, meaning, _takes_one_at_a_time(module, images, values))
    network.fixed_size = fixed
    network.only_float32 = opaque
    network.context = settings.context
    if fixed is None:
        if settings.stride is None:
            network.stride = _measured(measuring.measure_stride, network)
            network.unit = unit or network.stride
        else:
            _measured(measuring.check_stride, network)
    else:
        network.unit = 1
    if opaque:
        network.values_per_pixel = _measured(measuring.trial_values_per_pixel, network)
    return network.eval() if not opaque else network


def _run(module: nn.Module, images: Tensor) -> object:
    """The output of a module for a copy of the images."""
    try:
        with torch.inference_mode():
            return module(images.clone())
    except ModelError:
        raise
    except Exception as error:  # code of others raises anything
        size = f"{images.shape[3]}x{images.shape[2]}"
        raise ModelError(
            f"fails on {len(images)} image(s) of {size} pixels ({type(error).__name__}:"
            f" {shown(cut_short(str(error), 300))}); if it takes images of one size only, say so:"
            ' fixed-size = "WIDTHxHEIGHT" in model.toml'
        ) from error


def _measured(measure: Callable[[AnySizeNetwork], Result], network: AnySizeNetwork) -> Result:
    """What a measurement gives; errors of the network become ModelError."""
    try:
        return measure(network)
    except ModelError:
        raise
    except Exception as error:  # code of others raises anything
        raise ModelError(
            f"fails on images of other sizes ({type(error).__name__}: {shown(cut_short(str(error), 300))});"
            " give --stride N if its sides must be multiples of N"
        ) from error


def _meaning(values: Tensor, settings: ModelSettings, classes: int) -> Output:
    """What the output means, from the settings and from what it is for noise."""
    inside = bool(((values >= 0) & (values <= 1)).all())
    if settings.output is None and inside:
        raise MissingSettingsError(
            "all values of its output for noise lie within [0, 1]; say what they are: --output probability"
            " or --output logits",
            ("output",),
        )
    probable = bool(((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all())
    if settings.output == "probability" and not probable:
        raise ModelError(
            f"its output for noise lies between {values.min():.3g} and {values.max():.3g}, so it is no"
            " probability; give --output logits"
        )
    if settings.car_class is not None and classes == 1:
        raise ModelError("car-class is for networks of two classes, and it has one; leave it out")
    car_class = 1 if settings.car_class is None else settings.car_class
    return Output(settings.output == "probability", classes, car_class)


def _takes_one_at_a_time(module: nn.Module, images: Tensor, values: Tensor) -> bool:
    """Whether the module takes batches of one image only.

    Raises:
        ModelError: what it gives for an image depends on the other images of the batch.
    """
    both = torch.cat((images.flip(3), images))
    try:
        output = check_output(_run(module, both), both)
    except ModelError:
        return True
    if not _same(output[1:], values):
        raise ModelError(
            "its output for an image depends on the other images of a batch; keep running statistics in its"
            " batch norms, or export it for batches of one image"
        )
    return False


def _same(first: object, second: Tensor) -> bool:
    if not isinstance(first, Tensor) or first.shape != second.shape:
        return False
    scale = max(1e-6, float(second.abs().max()))
    return float((first - second).abs().max()) <= DIFFERENCE * scale
