"""The losses, compared with values calculated by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carvana_batch.training.losses import LOSSES, bce, boundary_loss, dice_loss, outline_band
from carvana_batch.training.settings import LOSS_NAMES

ALL = torch.ones((1, 1, 64, 64))


def test_the_settings_name_all_losses() -> None:
    assert set(LOSS_NAMES) == set(LOSSES)


def test_losses_have_the_values_of_a_manual_calculation() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]]])
    targets = torch.tensor([[[[1.0, 0.0]]]])
    high = 1 / (1 + np.exp(-2.0))
    expected_bce = (np.log(2) - np.log(1 - high)) / 2
    expected_dice = 1 - (2 * 0.5 + 1) / (0.5 + high + 1 + 1)
    assert bce(logits, targets, ALL[..., :1, :2]).item() == pytest.approx(expected_bce, rel=1e-5)
    assert dice_loss(logits, targets, ALL[..., :1, :2]).item() == pytest.approx(expected_dice, rel=1e-5)
    assert LOSSES["bce+dice"](logits, targets, ALL[..., :1, :2]).item() == pytest.approx(
        expected_bce + expected_dice, rel=1e-5
    )


def test_the_band_lies_along_the_outline() -> None:
    targets = torch.zeros((1, 1, 64, 64))
    targets[..., 16:48, :] = 1
    band = outline_band(targets, ALL)
    assert band.shape == targets.shape
    assert band[..., 12:20, :].min() == 1
    assert band[..., :4, :].max() == 0
    assert band[..., 28:36, :].max() == 0


def test_the_edge_of_what_is_known_is_no_outline() -> None:
    """A car whose middle is unknown has a band along its outline only."""
    targets = torch.zeros((1, 1, 64, 64))
    targets[..., 8:56, 8:56] = 1
    known = torch.ones_like(targets)
    known[..., 22:42, 22:42] = 0
    for unknown in (0.0, 1.0):
        band = outline_band(torch.where(known > 0, targets, unknown), known)
        assert band.equal(outline_band(targets, ALL))


def test_boundary_loss_weights_errors_at_the_outline_more() -> None:
    targets = torch.zeros((1, 1, 64, 64))
    targets[..., 16:48, :] = 1
    right = (targets - 0.5) * 20
    at_outline, far_away = right.clone(), right.clone()
    at_outline[..., 15, :] *= -1
    far_away[..., 2, :] *= -1
    plain = LOSSES["bce+dice"]
    added_at_outline = boundary_loss(at_outline, targets, ALL) - plain(at_outline, targets, ALL)
    added_far_away = boundary_loss(far_away, targets, ALL) - plain(far_away, targets, ALL)
    assert added_at_outline > 100 * added_far_away > 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_unknown_pixels_do_not_count(name: str) -> None:
    """Neither their logits nor their targets change the loss, and their gradients are exactly 0."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 1, 37, 50), generator=generator) * 3
    targets = torch.zeros_like(logits)
    targets[..., 8:28, 10:35] = 1
    known = torch.ones_like(logits)
    known[..., 20:33, 5:22] = 0
    known[1, :, :4] = 0
    values, gradients = [], []
    for unknown_logit, unknown_target in ((0.0, 0.0), (50.0, 0.0), (-3.0, 1.0)):
        changed = torch.where(known > 0, logits, unknown_logit).requires_grad_()
        loss = LOSSES[name](changed, torch.where(known > 0, targets, unknown_target), known)
        loss.backward()
        assert changed.grad is not None
        assert (changed.grad[known == 0] == 0).all()
        assert (changed.grad[known > 0] != 0).any()
        values.append(loss.item())
        gradients.append(changed.grad)
    assert values[0] == values[1] == values[2]
    assert gradients[0].equal(gradients[1])
    assert gradients[0].equal(gradients[2])


@pytest.mark.parametrize("name", ["bce", "dice", "bce+dice"])
def test_a_loss_is_that_of_the_known_pixels_alone(name: str) -> None:
    """The known pixels are a crop, so the loss is that of the crop."""
    logits = torch.randn((2, 1, 30, 40), generator=torch.Generator().manual_seed(2))
    targets = (torch.arange(40) < 25).float().expand_as(logits)
    known = torch.zeros_like(logits)
    known[..., 6:20, 10:36] = 1
    crop = (..., slice(6, 20), slice(10, 36))
    alone = LOSSES[name](logits[crop], targets[crop], torch.ones_like(logits[crop]))
    assert LOSSES[name](logits, targets, known).item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_photo_of_which_nothing_is_known_costs_nothing(name: str) -> None:
    logits = torch.randn((1, 1, 8, 8), requires_grad=True)
    loss = LOSSES[name](logits, torch.ones_like(logits), torch.zeros_like(logits))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
