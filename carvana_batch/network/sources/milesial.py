"""State dicts of https://github.com/milesial/Pytorch-UNet, a U-Net that is often trained on these photos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.blocks import AnySizeNetwork, halve, pad_to
from carvana_batch.network.model import Model, weights_digest
from carvana_batch.network.sources.tensors import fill, refuse_misfit
from carvana_batch.network.wrapped import Output, settings_digest
from carvana_batch.text import cut_short, shown

NAME, PROJECT = "milesial", "milesial/Pytorch-UNet"

LEVELS = 4

CONTEXT = 108
"""How many pixels away a logit depends on others: two 3x3 convolutions on each level, up and down."""

MARKS = ("inc.double_conv.0.weight", "outc.conv.weight")
"""Tensors that tell this network, and its width, channels and classes."""


class DoubleConvolution(nn.Module):
    """Twice a 3x3 convolution, batch norm and ReLU; the names of its tensors are those of the project."""

    def __init__(self, channels_in: int, channels_out: int, middle: int, bias: bool) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels_in, middle, 3, padding=1, bias=bias),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, channels_out, 3, padding=1, bias=bias),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.double_conv(features)
        return result


class Down(nn.Module):
    """2x2 max pooling, which leaves out an odd last row or column, and two convolutions."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool) -> None:
        super().__init__()
        convolutions = DoubleConvolution(channels_in, channels_out, channels_out, bias)
        self.maxpool_conv = nn.Sequential(nn.Identity(), convolutions)

    def forward(self, features: Tensor) -> Tensor:
        height, width = (side // 2 * 2 for side in features.shape[-2:])
        result: Tensor = self.maxpool_conv(halve(features[..., :height, :width]))
        return result


class Up(nn.Module):
    """Enlarges twice, pads with zeros to the size of the skip, and convolves both twice."""

    def __init__(self, channels_in: int, channels_out: int, bilinear: bool, bias: bool) -> None:
        super().__init__()
        middle = channels_in // 2 if bilinear else channels_out
        self.up = None if bilinear else nn.ConvTranspose2d(channels_in, channels_in // 2, 2, stride=2)
        self.conv = DoubleConvolution(channels_in, channels_out, middle, bias)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        if self.up is None:
            size = [2 * side for side in features.shape[-2:]]
            enlarged = functional.interpolate(features, size, mode="bilinear", align_corners=True)
        else:
            enlarged = self.up(features)
        rows, columns = (skip.shape[dim] - enlarged.shape[dim] for dim in (2, 3))
        padding = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
        result: Tensor = self.conv(torch.cat((skip, functional.pad(enlarged, padding)), dim=1))
        return result


class MilesialUNet(AnySizeNetwork):
    """The U-Net of milesial/Pytorch-UNet.

    Args:
        width: channels of the finest level.
        classes: channels of the output, 1 or 2.
        bilinear: enlarge by interpolation, aligned at the corners, instead of transposed convolutions.
        bias: its 3x3 convolutions have one, as in early versions.
        car_class: which of two classes is car.
    """

    def __init__(self, width: int, classes: int, bilinear: bool, bias: bool, car_class: int = 1) -> None:
        super().__init__(stride=2**LEVELS, unit=1)
        # Interpolation that is aligned at the corners depends on the size of the whole tile.
        self.context = math.inf if bilinear else CONTEXT
        self.output = Output(classes=classes, car_class=car_class)
        factor = 2 if bilinear else 1
        self.inc = DoubleConvolution(3, width, width, bias)
        self.down1 = Down(width, 2 * width, bias)
        self.down2 = Down(2 * width, 4 * width, bias)
        self.down3 = Down(4 * width, 8 * width, bias)
        self.down4 = Down(8 * width, 16 * width // factor, bias)
        self.up1 = Up(16 * width, 8 * width // factor, bilinear, bias)
        self.up2 = Up(8 * width, 4 * width // factor, bilinear, bias)
        self.up3 = Up(4 * width, 2 * width // factor, bilinear, bias)
        self.up4 = Up(2 * width, width, bilinear, bias)
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(width, classes, 1)})

    def padded_logits(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        # Smaller ones have no pixel left on the coarsest level.
        features = [self.inc(pad_to(images, max(height, self.stride), max(width, self.stride)))]
        for down in (self.down1, self.down2, self.down3, self.down4):
            features.append(down(features[-1]))
        result = features.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            result = up(result, features.pop())
        return self.output.to_logits(self.outc["conv"](result))[..., :height, :width]


def is_milesial(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights have the names that tell this network."""
    return all(mark in weights for mark in MARKS)


def expected_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict, on the meta device, of the variant of this network that is nearest to some weights."""
    with torch.device("meta"):
        return _build(weights).state_dict()


def _build(weights: Mapping[str, Tensor], car_class: int = 1) -> MilesialUNet:
    first, last = (weights.get(mark) for mark in MARKS)
    width = 64 if first is None or first.ndim != 4 else len(first)
    classes = 1 if last is None or last.ndim != 4 else len(last)
    bias = "inc.double_conv.0.bias" in weights
    return MilesialUNet(max(width, 2), classes, "up1.up.weight" not in weights, bias, car_class)


def from_weights(
    path: Path, weights: dict[str, Tensor], mask_values: list[Any] | None, settings: ModelSettings
) -> Model:
    """The model of a state dict of this network.

    Args:
        path: of the file.
        weights: by name, without prefixes.
        mask_values: values of the masks that its classes stand for, if the file has them.
        settings: what the weights do not say; mean 0 and deviation 1 are those of the project.

    Raises:
        ModelError: the weights are of another shape or number of classes, or not finite, or the values of
            the masks do not tell which class is car.
    """
    refuse_misfit(path, PROJECT, weights, expected_tensors(weights))
    classes = len(weights[MARKS[1]])
    if classes > 2:
        raise ModelError(f"{shown(path)}: has {classes} classes; train it for two, or for one (car)")
    if settings.classes not in (None, classes) or settings.output == "probability":
        raise ModelError(f"{shown(path)}: it has {classes} class(es) of logits; leave out output and classes")
    car_class = _car_class(path, mask_values, classes, settings)
    network = fill(path, PROJECT, _build(weights, car_class), weights)
    used = settings.over(ModelSettings(mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0)))
    mean, deviation = used.mean or (0.0, 0.0, 0.0), used.deviation or (1.0, 1.0, 1.0)
    digest = settings_digest(f"{weights_digest(weights)} {car_class}", network, used)
    by_project = "as milesial/Pytorch-UNet trains"
    origins = {key: by_project for key in ("mean", "deviation") if getattr(settings, key) is None}
    notes = {} if mask_values is None else {"mask-values": str(mask_values)}
    kind = "a state dict of milesial/Pytorch-UNet"
    return Model(NAME, network, mean, deviation, digest, notes, used.size, kind=kind, origins=origins)


def _car_class(path: Path, mask_values: list[Any] | None, classes: int, settings: ModelSettings) -> int:
    if settings.car_class is not None and classes == 2:
        return settings.car_class
    if mask_values is not None and mask_values not in ([0, 1], [0, 255]):
        raise ModelError(
            f"{shown(path)}: its masks had the values {shown(cut_short(str(mask_values)))}, which do not tell"
            " which class is car (0 and 1, or 0 and 255, do); say so: car-class = 0 or 1 in model.toml"
        )
    return 1
