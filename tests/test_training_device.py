"""Photos kept on a device: the same samples and the same training as from main memory, tried on the CPU."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_pairs
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.demo import draw_photo
from carvana_batch.errors import UsageError
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.stopping import StopFlag
from carvana_batch.training import device_samples, job, loop
from carvana_batch.training.augmentation import augment
from carvana_batch.training.device_augmentation import augment_on_device
from carvana_batch.training.device_degradation import as_if_compressed, average_down
from carvana_batch.training.device_samples import DeviceSamples
from carvana_batch.training.listener import Outcome
from carvana_batch.training.loop import Training
from carvana_batch.training.optimisation import learning_rate_at
from carvana_batch.training.pairs import Pair, find_pairs, load_pair
from carvana_batch.training.processes import Processes
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.samples import Draw, Samples
from carvana_batch.training.settings import (
    NO_AUGMENTATION,
    PRESETS,
    AugmentationLimits,
    TrainingSettings,
)
from carvana_batch.training.starting import check_cache

CPU = torch.device("cpu")
SIZE = (121, 83)
LIMITS = [item.name for item in fields(AugmentationLimits) if not item.name.endswith("_share")]
SETTINGS = TrainingSettings(
    model="tiny", epochs=3, batch=2, warm_up=2, lr=0.01, size=(64, 32), precision="fp32", cache="device"
)
MOST_DIFFERENT = {"blur": 0.8, "jpeg": 1.5}
"""Levels by which pixels may differ in the mean; Pillow's Gaussian and JPEG file are not quite those."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a network that takes milliseconds."""
    monkeypatch.setitem(NETWORKS, "tiny", lambda: SegUNet((4, 8), 8, 1))


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return find_pairs(write_pairs(tmp_path / "data"))


@cache
def drawn() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A photo, its mask, and a mask of known pixels with a hole."""
    photo, car = draw_photo(3, 4, SIZE)
    known = np.full(car.shape, 255, np.uint8)
    known[20:30, 10:50] = 0
    return photo, car.astype(np.uint8) * 255, known


def augment_both(limits: AugmentationLimits, seed: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Image, mask and known pixels: those of Pillow, and those of a device in the same layout."""
    photo, mask, known = drawn()
    pictures = [Image.fromarray(array) for array in (photo, mask, known)]
    expected = augment(pictures[0], pictures[1], pictures[2], limits, np.random.default_rng(seed))
    image, *masks = augment_on_device(
        torch.from_numpy(photo).permute(2, 0, 1),
        torch.from_numpy(mask),
        torch.from_numpy(known),
        limits,
        np.random.default_rng(seed),
    )
    results = [image.permute(1, 2, 0), *masks]
    for picture, result in zip(expected, results, strict=True):
        assert result is not None
        assert result.dtype == torch.uint8
        yield np.asarray(picture).astype(int), result.numpy().astype(int)


@pytest.mark.parametrize("name", [name for name in LIMITS if name != "noise"])
def test_a_device_changes_samples_as_pillow_does(name: str) -> None:
    limits = replace(NO_AUGMENTATION, degrade_share=1.0, **{name: getattr(PRESETS["photos"], name)})
    changed = 0
    for seed in range(12):
        (image, image_there), (mask, mask_there), (known, known_there) = augment_both(limits, seed)
        assert np.abs(image - image_there).mean() <= MOST_DIFFERENT.get(name, 0.6)
        assert np.abs(mask - mask_there).mean() <= 0.1
        assert np.mean(known != known_there) <= 1e-3
        changed += not np.array_equal(image_there, drawn()[0])
    assert changed >= 1


def test_all_changes_together_keep_image_and_mask_together() -> None:
    """A photo that equals its mask still does so after every geometric change."""
    _, mask, _ = drawn()
    limits = replace(NO_AUGMENTATION, flip=0.5, scale=1, zoom_out=7, rotation=180, perspective=0.3, shift=0.3)
    moved = 0
    for seed in range(20):
        image, changed, _ = augment_on_device(
            torch.from_numpy(mask).expand(3, -1, -1),
            torch.from_numpy(mask),
            None,
            limits,
            np.random.default_rng(seed),
        )
        torch.testing.assert_close(image[1], changed)
        moved += not np.array_equal(changed.numpy(), mask)
    assert moved > 10


def test_noise_on_a_device_has_at_most_the_given_deviation() -> None:
    limits = replace(NO_AUGMENTATION, degrade_share=1.0, noise=20.0)
    grey = torch.full((3, 120, 160), 128, dtype=torch.uint8)
    deviations = []
    for seed in range(60):
        image, *_ = augment_on_device(grey, grey[0], None, limits, np.random.default_rng(seed))
        again, *_ = augment_on_device(grey, grey[0], None, limits, np.random.default_rng(seed))
        assert torch.equal(image, again)
        assert abs(image.float().mean().item() - 128) < 2
        deviations.append(image.float().std().item())
    assert 12 < max(deviations) <= 20.5
    assert min(deviations) == 0


def test_box_averages_by_hand() -> None:
    row = torch.tensor([[[0, 10, 20, 30, 50, 70]]], dtype=torch.uint8)
    assert average_down(row, 1, 3).tolist() == [[[5, 25, 60]]]
    # Centres at 0.5, 1.5 ... 5.5; the four parts end at 1.5, 3, 4.5 and 6.
    assert average_down(row, 1, 4).tolist() == [[[5, 20, 40, 70]]]
    assert average_down(row.float() / 3, 1, 2)[0, 0].tolist() == pytest.approx([10 / 3, 50 / 3])


def test_compression_of_quality_100_changes_little_and_of_0_much() -> None:
    image = torch.from_numpy(drawn()[0]).permute(2, 0, 1)
    grey = image[:1].expand(3, -1, -1)  # whose colours lose nothing when their resolution is halved
    assert (as_if_compressed(grey, 100).int() - grey.int()).abs().max() <= 3
    assert (as_if_compressed(image, 0).int() - image.int()).abs().float().mean() > 5


def test_samples_without_changes_are_the_photos(pairs: list[Pair]) -> None:
    settings = replace(SETTINGS, size=None, augmentation=NO_AUGMENTATION)
    here = Samples(pairs, None, NO_AUGMENTATION, settings.seed)
    there = DeviceSamples(pairs, settings, CPU)
    there.load(1)
    draws = [Draw(number, number % 6, (32, 16)) for number in range(8)]
    made = there.make_pass(draws)
    for number, draw in enumerate(draws):
        for expected, tensor in zip(here.make(draw), (made.images, made.masks, made.known), strict=True):
            np.testing.assert_array_equal(tensor[number].permute(1, 2, 0).numpy().squeeze(), expected)


def test_processes_share_the_samples_of_a_step(pairs: list[Pair]) -> None:
    samples = DeviceSamples(pairs, replace(SETTINGS, batch=4, accumulate=2), CPU)
    samples.load(1)
    drawn_by = [
        [draw.number for one in next(samples.passes_of_steps(range(5), processes)) for draw in one.draws]
        for processes in (Processes(), Processes(0, 2), Processes(1, 2))
    ]
    assert drawn_by == [[0, 1, 2, 3], [0, 2], [1, 3]]


class SignalAtStep(StopFlag):
    def __init__(self, training: Training, stop_at: int | None) -> None:
        self.training, self.stop_at = training, stop_at

    @property
    def signal(self) -> int | None:  # type: ignore[override]
        reached = self.stop_at is not None and self.training.state.step >= self.stop_at
        return signal.SIGINT if reached else None


def run_training(
    folder: Path, pairs: list[Pair], settings: TrainingSettings = SETTINGS, stop_at: int | None = None
) -> Outcome:
    with RunFolder(folder) as run:
        if not run.config.exists():
            run.begin(settings)
        training = Training(pairs, pairs[:2], run, settings, CPU, workers=0)
        training.stop = SignalAtStep(training, stop_at)
        return training.run_to_end()


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, pairs: list[Pair]) -> None:
    settings = replace(SETTINGS, augmentation=PRESETS["photos"], crop=(32, 32), crop_share=0.5)
    assert run_training(tmp_path / "whole", pairs, settings).step == 9
    assert run_training(tmp_path / "broken", pairs, settings, stop_at=4).step == 4
    run_training(tmp_path / "broken", pairs, settings)
    digests = {load_model(tmp_path / run / "best.safetensors").digest for run in ("whole", "broken")}
    assert len(digests) == 1


def test_a_device_learns_what_main_memory_does(tmp_path: Path, pairs: list[Pair]) -> None:
    """Without augmentation, the samples and therefore the weights are the same."""
    settings = replace(SETTINGS, augmentation=NO_AUGMENTATION)
    run_training(tmp_path / "there", pairs, settings)
    run_training(tmp_path / "here", pairs, replace(settings, cache="main"))
    there, here = (load_model(tmp_path / run).network.state_dict() for run in ("there", "here"))
    for name, value in there.items():
        torch.testing.assert_close(value, here[name])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that only goes on when a step is taken, by seven seconds."""
    now = [1000.0]
    step = loop.StepRunner.take_step

    def take_step(*arguments: Any) -> float:
        now[0] += 7
        return step(*arguments)

    monkeypatch.setattr(loop.StepRunner, "take_step", take_step)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    yield now


@pytest.mark.usefixtures("clock")
def test_minutes_end_a_run_with_a_validation(tmp_path: Path, pairs: list[Pair]) -> None:
    settings = replace(SETTINGS, epochs=1000, validate_every=1000, minutes=0.5)
    outcome = run_training(tmp_path / "run", pairs, settings)
    assert (outcome.step, outcome.is_time_up, outcome.stopped_early) == (5, True, False)
    assert outcome.best is not None
    best = load_model(tmp_path / "run")
    assert best.notes["step"] == "5 of 3000"
    again = run_training(tmp_path / "run", pairs, settings)
    assert (again.step, again.is_time_up) == (5, True)


def test_minutes_of_an_interrupted_run_count(tmp_path: Path, pairs: list[Pair], clock: list[float]) -> None:
    settings = replace(SETTINGS, epochs=1000, validate_every=1000, minutes=0.5)
    assert run_training(tmp_path / "run", pairs, settings, stop_at=3).step == 3
    clock[0] += 10_000  # between the two
    assert run_training(tmp_path / "run", pairs, settings).step == 5


def test_a_run_that_ends_before_its_minutes_does_not_notice_them(tmp_path: Path, pairs: list[Pair]) -> None:
    outcome = run_training(tmp_path / "run", pairs, replace(SETTINGS, minutes=60, validate_every=3))
    assert (outcome.step, outcome.is_time_up) == (9, False)


def test_the_learning_rate_falls_in_time() -> None:
    settings = replace(SETTINGS, schedule="linear", lr=1.0, warm_up=2)
    assert learning_rate_at(50, 1000, settings, 0.5) == pytest.approx(0.01 + 0.99 * 0.5)
    assert learning_rate_at(50, 1000, settings, 1.3) == pytest.approx(0.01)
    assert learning_rate_at(501, 1000, settings, 0.2) == learning_rate_at(501, 1000, settings)
    assert learning_rate_at(0, 1000, settings, 0.0) == 0.5


@pytest.mark.usefixtures("pairs")
def test_a_network_is_compiled_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_network(network: torch.nn.Module) -> torch.nn.Module:
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", compile_network)
    outcome = job.train(
        tmp_path / "data", tmp_path / "run", replace(SETTINGS, epochs=1), device=CPU, workers=0, compiled=True
    )
    assert outcome is not None
    assert len(compiled) == 1


def test_photos_of_different_sizes_are_refused(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data")
    for path in [*data.glob("*/*_00.jpg"), *data.glob("*/*_00_mask.png")]:
        Image.open(path).resize((96, 64), Image.Resampling.NEAREST).save(path)
    settings = replace(SETTINGS, size=None, crop=(32, 32))
    with pytest.raises(UsageError, match=r"different sizes\. Use --size"):
        job.train(data, tmp_path / "run", settings, device=CPU)
    pairs = find_pairs(data)
    with pytest.raises(UsageError, match=r"different sizes\. Use --size"):
        DeviceSamples(pairs, settings, CPU).load(1)


def test_photos_that_do_not_fit_are_refused(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    photos = 4 * 64 * 32 * len(pairs)
    monkeypatch.setattr(device_samples, "free_memory", lambda device: int(photos / 0.75) + 1)
    DeviceSamples(pairs, SETTINGS, CPU).load(1)
    with pytest.raises(UsageError, match="6 photos of 64x32 pixels and their masks take"):
        DeviceSamples(pairs, SETTINGS, CPU).load(2)


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [({"backgrounds": "streets"}, "cpu", "--backgrounds"), ({}, "mps", "Leave it out on mps")],
)
def test_what_a_device_cannot_do_is_refused(changes: dict[str, Any], device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_cache(replace(SETTINGS, **changes), torch.device(device))
    check_cache(replace(SETTINGS, cache="main", **changes), torch.device(device))


def test_unknown_pixels_stay_unknown(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data")
    for path in (data / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:9] = 2
        Image.fromarray(mask).save(path)
    pairs = find_pairs(data, [1], [2])
    settings = replace(SETTINGS, size=None, augmentation=NO_AUGMENTATION)
    samples = DeviceSamples(pairs, settings, CPU)
    samples.load(1)
    known = samples.make_pass([Draw(0, 0, None), Draw(1, 3, None)]).known
    assert (known[:, :, :9] == 0).all()
    assert (known[:, :, 9:] == 255).all()
    np.testing.assert_array_equal(known[0, 0].numpy(), np.asarray(load_pair(pairs[0], None)[2]))
