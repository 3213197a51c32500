"""Training: pairs, draws, augmentation, losses, and a run that goes on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from carvana_batch.commands.train import LOSS_NAMES, NETWORK_NAMES, command
from carvana_batch.models import NETWORKS
from carvana_batch.models.checkpoints import load_model
from carvana_batch.records import CarvanaBatchError, ImageError, UsageError
from carvana_batch.training import loop
from carvana_batch.training.augmentation import AugmentationLimits, augment
from carvana_batch.training.data import Draw, Samples, draw_batches, find_pairs, load_pair
from carvana_batch.training.loop import TrainingSettings, learning_rate_at, train
from carvana_batch.training.losses import LOSSES, bce, boundary_loss, dice_loss, outline_band


def write_pairs(folder: Path, cars: int = 3, views: int = 2, size: tuple[int, int] = (128, 64)) -> Path:
    """Photos with a bright rectangle on a dark ground, and its mask."""
    generator = np.random.default_rng(5)
    width, height = size
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for car in range(cars):
        for view in range(views):
            mask = np.zeros((height, width), np.uint8)
            top, left = generator.integers(4, height // 2), generator.integers(4, width // 2)
            mask[top : top + height // 3, left : left + width // 3] = 1
            pixels = np.repeat(mask[:, :, None] * 150, 3, axis=2) + generator.integers(
                0, 60, (height, width, 3), np.uint8
            )
            Image.fromarray(pixels).save(folder / "images" / f"car{car}_{view:02}.jpg", quality=95)
            Image.fromarray(mask).save(folder / "masks" / f"car{car}_{view:02}_mask.png")
    return folder


def test_pairs_are_matched_by_id(tmp_path: Path) -> None:
    pairs = find_pairs(write_pairs(tmp_path))
    assert [pair.id for pair in pairs] == [f"car{car}_{view:02}" for car in range(3) for view in range(2)]
    assert {pair.car for pair in pairs} == {"car0", "car1", "car2"}


def test_a_photo_without_mask_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "masks" / "car1_01_mask.png").unlink()
    with pytest.raises(UsageError, match="car1_01"):
        find_pairs(tmp_path)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    Image.fromarray(np.ones((10, 10), np.uint8)).save(tmp_path / "masks" / "car0_00_mask.png")
    with pytest.raises(ImageError, match="car0_00_mask"):
        load_pair(find_pairs(tmp_path)[0], None)


def test_smaller_targets_are_area_averages(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    pair = find_pairs(tmp_path)[0]
    _, full = load_pair(pair, None)
    _, half = load_pair(pair, (64, 32))
    averages = np.asarray(full, np.float64).reshape(32, 2, 64, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(half), averages, atol=1)


def test_every_epoch_draws_every_sample_once_and_a_later_start_draws_the_same() -> None:
    whole = list(draw_batches(10, 4, range(15), seed=3, crop=(8, 8), crop_share=0.4))
    numbers = [draw.number for batch in whole for draw in batch]
    assert numbers == list(range(60))
    indices = [draw.index for batch in whole for draw in batch]
    for epoch in range(6):
        assert sorted(indices[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert list(draw_batches(10, 4, range(7, 15), seed=3, crop=(8, 8), crop_share=0.4)) == whole[7:]
    assert {len({draw.crop for draw in batch}) for batch in whole} == {1}
    assert {batch[0].crop for batch in whole} == {None, (8, 8)}


def test_image_and_mask_move_together() -> None:
    """A photo that is its own mask stays its own mask under every change of geometry."""
    shape = np.zeros((64, 96), np.uint8)
    shape[10:40, 20:70] = 255
    mask = Image.fromarray(shape)
    image = Image.fromarray(np.repeat(shape[:, :, None], 3, axis=2))
    limits = AugmentationLimits(
        shift=0.1, scale=0.2, rotation=20, brightness=0, contrast=0, saturation=0, grey=0
    )
    moved = 0
    for seed in range(20):
        changed, changed_mask = augment(image, mask, limits, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(changed)[:, :, 1], np.asarray(changed_mask))
        moved += not np.array_equal(np.asarray(changed_mask), shape)
        assert abs(float(np.asarray(changed_mask).mean()) / shape.mean() - 1) < 0.65
    assert moved > 10


def test_no_limits_change_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    limits = AugmentationLimits(0, 0, 0, 0, 0, 0, 0, 0)
    for seed in range(5):
        image, _ = augment(
            Image.fromarray(pixels), Image.new("L", (30, 20)), limits, np.random.default_rng(seed)
        )
        np.testing.assert_allclose(np.asarray(image).astype(int), pixels, atol=1)


def test_a_crop_is_cut_from_image_and_mask_alike(tmp_path: Path) -> None:
    pairs = find_pairs(write_pairs(tmp_path))
    limits = AugmentationLimits(0, 0, 0, 0, 0, 0, 0, 0)
    samples = Samples(pairs, None, limits, seed=1, keep_in_memory=False)
    image, mask = samples[Draw(4, 2, (48, 32))]
    assert image.shape == (3, 32, 48)
    assert mask.shape == (1, 32, 48)
    assert (image.float().mean(dim=0)[mask[0] > 0] > 100).all()
    assert (image.float().mean(dim=0)[mask[0] == 0] < 100).float().mean() > 0.98


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]]])
    targets = torch.tensor([[[[1.0, 0.0]]]])
    high = 1 / (1 + np.exp(-2.0))
    expected_bce = (np.log(2) - np.log(1 - high)) / 2
    expected_dice = 1 - (2 * 0.5 + 1) / (0.5 + high + 1 + 1)
    assert bce(logits, targets).item() == pytest.approx(expected_bce, rel=1e-5)
    assert dice_loss(logits, targets).item() == pytest.approx(expected_dice, rel=1e-5)
    assert LOSSES["bce+dice"](logits, targets).item() == pytest.approx(expected_bce + expected_dice, rel=1e-5)


def test_the_band_follows_the_outline() -> None:
    targets = torch.zeros((1, 1, 64, 64))
    targets[..., 16:48, :] = 1
    band = outline_band(targets)
    assert band.shape == targets.shape
    assert band[..., 12:20, :].min() == 1
    assert band[..., :4, :].max() == 0
    assert band[..., 28:36, :].max() == 0


def test_boundary_loss_weighs_mistakes_at_the_outline_more() -> None:
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


def test_learning_rate_warms_up_and_falls() -> None:
    settings = TrainingSettings(steps=100, warm_up=10, learning_rate=1.0)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=0.005)


def small_settings(**changes: object) -> TrainingSettings:
    values: dict[str, object] = {"steps": 6, "batch": 2, "warm_up": 2, "workers": 0, "size": (128, 64)}
    return TrainingSettings(**(values | changes))  # type: ignore[arg-type]


class InterruptedTrainingError(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = find_pairs(write_pairs(tmp_path / "data"))
    whole = load_model(train(pairs, pairs[:1], tmp_path / "whole", small_settings(save_minutes=0.0)))

    def interrupt(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        if arguments[-1] == 3:
            raise InterruptedTrainingError

    save = loop._save_checkpoint
    monkeypatch.setattr(loop, "_save_checkpoint", interrupt)
    with pytest.raises(InterruptedTrainingError):
        train(pairs, pairs[:1], tmp_path / "broken", small_settings(save_minutes=0.0))
    monkeypatch.undo()
    resumed = load_model(train(pairs, pairs[:1], tmp_path / "broken", small_settings(save_minutes=0.0)))
    assert resumed.digest == whole.digest
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines()[-1] for run in ("whole", "broken")]
    assert json.loads(logs[0]) == json.loads(logs[1])


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    pairs = find_pairs(write_pairs(tmp_path / "data"))
    train(pairs, pairs[:1], tmp_path / "run", small_settings(steps=1))
    with pytest.raises(UsageError, match="other settings"):
        train(pairs, pairs[:1], tmp_path / "run", small_settings(steps=2))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = find_pairs(write_pairs(tmp_path / "data"))
    monkeypatch.setitem(LOSSES, "bce+dice", lambda logits, targets: logits.sum() * float("nan"))
    with pytest.raises(CarvanaBatchError, match="not finite at step 1"):
        train(pairs, pairs[:1], tmp_path / "run", small_settings())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    pairs = find_pairs(write_pairs(tmp_path / "data"))
    weights = train(pairs, pairs[:1], tmp_path / "run", small_settings(steps=1))
    with pytest.raises(UsageError, match="segunet-s"):
        train(pairs, pairs[:1], tmp_path / "other", small_settings(network="unet", init=str(weights)))


@pytest.mark.slow
def test_the_loss_falls_and_the_command_writes_weights(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data")
    arguments = [str(data), str(tmp_path / "run"), "--val", str(data), "--steps", "60", "--warm-up", "5"]
    result = CliRunner().invoke(
        command, [*arguments, "--size", "128x64", "--batch", "2"], catch_exceptions=False
    )
    assert result.exit_code == 0
    model = load_model(tmp_path / "run")
    assert json.loads(model.notes["val"])["val_dice"] > 0.7
    assert str(tmp_path / "run" / "best.safetensors") in result.output


def test_the_command_offers_what_there_is() -> None:
    assert set(LOSS_NAMES) == set(LOSSES)
    assert set(NETWORK_NAMES) == set(NETWORKS)
