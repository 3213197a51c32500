"""The losses, compared with values calculated by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carvana_batch.training.losses import LOSSES, bce, boundary_loss, dice_loss, outline_band
from carvana_batch.training.settings import LOSS_NAMES


def test_the_settings_name_all_losses() -> None:
    assert set(LOSS_NAMES) == set(LOSSES)


def test_losses_have_the_values_of_a_manual_calculation() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]]])
    targets = torch.tensor([[[[1.0, 0.0]]]])
    high = 1 / (1 + np.exp(-2.0))
    expected_bce = (np.log(2) - np.log(1 - high)) / 2
    expected_dice = 1 - (2 * 0.5 + 1) / (0.5 + high + 1 + 1)
    assert bce(logits, targets).item() == pytest.approx(expected_bce, rel=1e-5)
    assert dice_loss(logits, targets).item() == pytest.approx(expected_dice, rel=1e-5)
    assert LOSSES["bce+dice"](logits, targets).item() == pytest.approx(expected_bce + expected_dice, rel=1e-5)


def test_the_band_lies_along_the_outline() -> None:
    targets = torch.zeros((1, 1, 64, 64))
    targets[..., 16:48, :] = 1
    band = outline_band(targets)
    assert band.shape == targets.shape
    assert band[..., 12:20, :].min() == 1
    assert band[..., :4, :].max() == 0
    assert band[..., 28:36, :].max() == 0


def test_boundary_loss_weights_errors_at_the_outline_more() -> None:
    targets = torch.zeros((1, 1, 64, 64))
    targets[..., 16:48, :] = 1
    right = (targets - 0.5) * 20
    at_outline, far_away = right.clone(), right.clone()
    at_outline[..., 15, :] *= -1
    far_away[..., 2, :] *= -1
    plain = LOSSES["bce+dice"]
    added_at_outline = boundary_loss(at_outline, targets) - plain(at_outline, targets)
    added_far_away = boundary_loss(far_away, targets) - plain(far_away, targets)
    assert added_at_outline > 100 * added_far_away > 0
