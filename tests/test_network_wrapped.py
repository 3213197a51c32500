"""Modules of any origin as networks: what is measured of them, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import WHOLE, make_predictor, predict_one, random_photo
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.inference.tiles import Tiling
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.wrapped import wrap_module

SETTINGS = ModelSettings(mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5))


class Hourglass(nn.Module):
    """A small U-Net without padding: it takes sides that are multiples of 2 ** levels only."""

    def __init__(self, levels: int = 2, classes: int = 1, kernel: int = 3) -> None:
        super().__init__()
        torch.manual_seed(levels)
        padding = kernel // 2
        self.down = nn.ModuleList(
            nn.Conv2d(3 if level == 0 else 8, 8, kernel, padding=padding) for level in range(levels)
        )
        self.middle = nn.Conv2d(8 if levels else 3, 8, kernel, padding=padding)
        self.up = nn.ModuleList(nn.Conv2d(16, 8, kernel, padding=padding) for _ in range(levels))
        self.last = nn.Conv2d(8, classes, 1)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        skips = []
        features = images
        for convolution in self.down:
            features = functional.relu(convolution(features))
            skips.append(features)
            features = functional.max_pool2d(features, 2)
        features = functional.relu(self.middle(features))
        for convolution in self.up:
            enlarged = functional.interpolate(features, scale_factor=2.0)
            features = functional.relu(convolution(torch.cat((skips.pop(), enlarged), dim=1)))
        return self.last(features)


class Changed(nn.Module):
    """What a function makes of the output of another module."""

    def __init__(self, module: nn.Module, change) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, images: Tensor):
        return self.change(self.module(images))


@pytest.mark.parametrize("levels", [0, 1, 2, 3, 4])
def test_the_stride_is_measured(levels):
    assert wrap_module(Hourglass(levels), SETTINGS).network.stride == 2**levels


def test_masks_of_tiles_on_the_measured_stride_are_those_of_the_whole_photo():
    model = wrap_module(Hourglass(2), SETTINGS)
    photo = random_photo(150, 202)
    overlap = math.ceil(model.network.context * 16 / 7)
    whole = predict_one(make_predictor(model, WHOLE, keep_probability=True), photo)
    tiles = Tiling((overlap + 16, overlap + 16), 10**9, overlap)
    predictor = make_predictor(model, tiles, keep_probability=True)
    cut = predict_one(predictor, photo)
    assert predictor.runner.plan(photo, tiles).tile_count > 4
    assert predictor.warnings == []
    np.testing.assert_allclose(cut.probability, whole.probability, atol=2e-3)
