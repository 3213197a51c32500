"""The training loop: learning, interruptions, the best weights, and error messages."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_pairs
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carvana_batch import run as pipeline
from carvana_batch.errors import CarvanaBatchError, ImageError, UsageError
from carvana_batch.inputs.find import find_images
from carvana_batch.masks.values import MaskValues
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.model import weights_digest
from carvana_batch.network.segunet import SegUNet
from carvana_batch.options import Options
from carvana_batch.orientation import Layout
from carvana_batch.scoring.scores import Score
from carvana_batch.stopping import StopFlag
from carvana_batch.training import loop, starting
from carvana_batch.training.listener import Outcome, TrainingListener
from carvana_batch.training.loop import Training
from carvana_batch.training.losses import LOSSES
from carvana_batch.training.pairs import Pair, find_pairs, load_pair
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.samples import Draw, Samples
from carvana_batch.training.settings import NO_AUGMENTATION, TrainingSettings
from carvana_batch.training.starting import input_statistics, training_scale
from carvana_batch.training.validation import predict_pairs, validate

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(
    model="tiny", epochs=3, batch=2, warm_up=2, lr=0.01, size=(64, 32), precision="fp32"
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a network that takes milliseconds."""
    monkeypatch.setitem(NETWORKS, "tiny", lambda: SegUNet((4, 8), 8, 1))


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return find_pairs(write_pairs(tmp_path / "data"))


def run_training(
    folder: Path,
    pairs: list[Pair],
    settings: TrainingSettings = SETTINGS,
    stop_at: int | None = None,
    workers: int = 0,
) -> Outcome:
    """Start or resume a run in ``folder``; with ``stop_at``, a signal arrives during that step."""
    with RunFolder(folder) as run:
        if not run.config.exists():
            run.begin(settings)
        training = Training(pairs, pairs[:2], run, settings, CPU, workers=workers)
        training.stop = SignalAtStep(training, stop_at)
        return training.run_to_end()


class SignalAtStep(StopFlag):
    """Holds a signal as soon as the run has taken ``stop_at`` steps; with None, it never does."""

    def __init__(self, training: Training, stop_at: int | None) -> None:
        self.training, self.stop_at = training, stop_at

    @property
    def signal(self) -> int | None:  # type: ignore[override]
        reached = self.stop_at is not None and self.training.state.step >= self.stop_at
        return signal.SIGINT if reached else None


def log_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log without the values that depend on time."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


@pytest.mark.parametrize("stop_at", [1, 3, 4, 9])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "crop": (32, 32), "crop_share": 0.5, "optimizer": "adam", "ema": 0.0},
        {"precision": "bf16", "validate_every": 2, "schedule": "linear", "loss": "boundary"},
        {"precision": "fp16", "patience": 5},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, pairs: list[Pair], changes: dict[str, Any], stop_at: int
) -> None:
    settings = replace(SETTINGS, **changes)
    whole = run_training(tmp_path / "whole", pairs, settings)
    assert (whole.step, whole.stopped_by) == (9, None)
    broken = run_training(tmp_path / "broken", pairs, settings, stop_at)
    assert broken.step == stop_at
    assert broken.stopped_by == signal.SIGINT
    assert run_training(tmp_path / "broken", pairs, settings).best == whole.best
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")
    for name in ("best", "last"):
        digests = {load_model(tmp_path / run / f"{name}.safetensors").digest for run in ("whole", "broken")}
        assert len(digests) == 1


def test_the_number_of_workers_does_not_matter(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "alone", pairs)
    run_training(tmp_path / "helped", pairs, stop_at=4, workers=2)
    run_training(tmp_path / "helped", pairs, workers=1)
    assert log_of(tmp_path / "helped") == log_of(tmp_path / "alone")


def test_losses_not_logged_yet_survive_an_interruption(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "log_interval", 4)
    run_training(tmp_path / "whole", pairs)
    run_training(tmp_path / "broken", pairs, stop_at=6)
    run_training(tmp_path / "broken", pairs)
    assert [line["step"] for line in log_of(tmp_path / "whole") if "loss" in line] == [4, 8, 9]
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_a_resumed_run_keeps_its_precision(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = iter([torch.bfloat16, torch.float32])
    monkeypatch.setattr(starting, "choose_precision", lambda *_: (next(chosen), "as given"))
    settings = replace(SETTINGS, precision="auto")
    run_training(tmp_path / "run", pairs, settings, stop_at=2)
    with RunFolder(tmp_path / "run") as run:
        assert Training(pairs, pairs[:2], run, settings, CPU, workers=0).state.precision == "bf16"


def test_a_resumed_run_keeps_its_gradient_scale(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, precision="fp16")
    plain = LOSSES["bce+dice"]
    calls = iter(range(100))
    # The overflow of a gradient in the first step halves the scale.
    monkeypatch.setitem(LOSSES, "bce+dice", lambda *both: plain(*both) * (1e38 if next(calls) == 0 else 1.0))
    run_training(tmp_path / "run", pairs, settings, stop_at=2)
    with RunFolder(tmp_path / "run") as run:
        training = Training(pairs, pairs[:2], run, settings, CPU, workers=0)
    assert training.state.scaler.get_scale() == 32768


def test_gradients_are_clipped(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def note(optimizer: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [
            one.grad.flatten()
            for group in optimizer.param_groups
            for one in group["params"]
            if one.grad is not None
        ]
        norms.append(torch.cat(gradients).norm().item())
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    run_training(tmp_path / "free", pairs, replace(SETTINGS, clip=0.0, epochs=1))
    free = norms.copy()
    norms.clear()
    run_training(tmp_path / "clipped", pairs, replace(SETTINGS, clip=0.01, epochs=1))
    assert min(free) > 0.02
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


def test_a_checkpoint_is_written_every_few_minutes(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    saved: list[int] = []
    save = RunFolder.save_checkpoint

    def note(run: RunFolder, state: dict[str, Any]) -> None:
        saved.append(state["step"])
        save(run, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", note)
    run_training(tmp_path / "run", pairs)
    assert sorted(set(saved)) == list(range(10))


def test_an_interrupted_validation_is_repeated_on_resume(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "whole", pairs)
    stop = StopFlag()

    def interrupt(work: str, *_: int) -> None:
        if work == "validating":
            stop.signal = signal.SIGTERM

    with RunFolder(tmp_path / "broken") as run:
        run.begin(SETTINGS)
        training = Training(
            pairs,
            pairs[:2],
            run,
            SETTINGS,
            CPU,
            listener=TrainingListener(on_work=interrupt),
            stop=stop,
            workers=0,
        )
        outcome = training.run_to_end()
    assert (outcome.step, outcome.stopped_by) == (3, signal.SIGTERM)
    run_training(tmp_path / "broken", pairs)
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_validation_scores_the_masks_of_predict(tmp_path: Path, pairs: list[Pair]) -> None:
    outcome = run_training(tmp_path / "run", pairs, replace(SETTINGS, epochs=20, validate_every=20))
    images = tmp_path / "images"
    images.mkdir()
    for pair in pairs[:2]:
        shutil.copy(pair.image, images)
    options = Options(precision="fp32", device="cpu", workers=0)
    pipeline.run(find_images(images).refs, tmp_path / "out", load_model(tmp_path / "run"), options)
    dice = []
    for pair in pairs[:2]:
        predicted = np.asarray(Image.open(tmp_path / "out" / f"{pair.id}.png")).astype(bool)
        assert pair.mask is not None
        true = np.asarray(Image.open(pair.mask)).astype(bool)
        dice.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    assert outcome.best is not None
    assert outcome.best.dice == pytest.approx(np.mean(dice), abs=1e-12)
    assert 0.01 < outcome.best.dice < 0.999


def with_ignored(path: Path, pair: Pair, ignored: NDArray[np.bool_], value: int) -> Pair:
    """Return the pair with a mask file that has ``value`` in the ignored pixels."""
    car = pair.read_mask(Layout(128, 64)).mask.to_bool()
    Image.fromarray(np.where(ignored, value, np.where(car, 255, 0)).astype(np.uint8)).save(path)
    return replace(pair, mask=path, values=MaskValues(ignored_codes=frozenset({100, 200})))


def test_validation_ignores_unknown_pixels(tmp_path: Path, pairs: list[Pair]) -> None:
    """If only the pixels where a mask is right are known, its Dice is 1."""
    run_training(tmp_path / "run", pairs, replace(SETTINGS, epochs=1))
    model = load_model(tmp_path / "run")
    wrong = {
        pair.id: prediction.mask.to_bool() != pair.read_mask(Layout(128, 64)).mask.to_bool()
        for pair, prediction in predict_pairs(model, pairs, CPU, "fp32")
    }
    assert all(errors.any() for errors in wrong.values())
    ignoring = [with_ignored(tmp_path / f"{pair.id}.png", pair, wrong[pair.id], 100) for pair in pairs]
    for score in validate(model, ignoring, CPU, "fp32"):
        assert score.dice == score.pixel_accuracy == 1
    assert all(score.dice < 1 for score in validate(model, pairs, CPU, "fp32"))


def test_unknown_pixels_do_not_affect_training(tmp_path: Path, pairs: list[Pair]) -> None:
    """Masks that differ only where they are unknown lead to the same losses, known ones to others."""
    ignored = np.zeros((64, 128), bool)
    ignored[10:30, 20:70] = True
    logs = []
    for value in (100, 200, 255):
        changed = [with_ignored(tmp_path / f"{value}_{pair.id}.png", pair, ignored, value) for pair in pairs]
        run_training(tmp_path / str(value), changed, replace(SETTINGS, size=None, epochs=1))
        logs.append(log_of(tmp_path / str(value)))
    assert logs[0] == logs[1] != logs[2]


def test_a_run_can_be_resumed_before_its_first_step(tmp_path: Path, pairs: list[Pair]) -> None:
    """Neither the initial weights nor the input statistics are needed again."""
    run_training(tmp_path / "init", pairs, replace(SETTINGS, epochs=1))
    settings = replace(SETTINGS, init=str(tmp_path / "init"))
    run_training(tmp_path / "whole", pairs, settings)
    with RunFolder(tmp_path / "broken") as run:
        run.begin(settings)
        Training(pairs, pairs[:2], run, settings, CPU, workers=0)
    shutil.rmtree(tmp_path / "init")
    run_training(tmp_path / "broken", pairs, settings)
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_a_checkpoint_of_another_network_is_refused(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(tmp_path / "run", pairs, stop_at=2)
    monkeypatch.setitem(NETWORKS, "tiny", lambda: SegUNet((4, 12), 8, 1))
    with pytest.raises(UsageError, match="another version or network"):
        run_training(tmp_path / "run", pairs)


@pytest.mark.parametrize("entry", ["mean", "precision", "optimizer", "losses"])
def test_a_checkpoint_without_an_entry_is_refused(tmp_path: Path, pairs: list[Pair], entry: str) -> None:
    run_training(tmp_path / "run", pairs, stop_at=2)
    path = tmp_path / "run" / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[entry]
    torch.save(checkpoint, path)
    with pytest.raises(UsageError, match=rf"another version or network \(KeyError: '{entry}'"):
        run_training(tmp_path / "run", pairs)


def test_a_checkpoint_of_an_unknown_precision_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "run", pairs, stop_at=2)
    path = tmp_path / "run" / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), "precision": "fp8"}, path)
    with pytest.raises(UsageError, match=r"another version or network .*fp8"):
        run_training(tmp_path / "run", pairs)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_damaged_during_the_run_is_named(tmp_path: Path, pairs: list[Pair], workers: int) -> None:
    run_training(tmp_path / "run", pairs, replace(SETTINGS, size=None), stop_at=2)
    for pair in pairs:
        pair.image.write_bytes(pair.image.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"^\S*car\d_0\d\.jpg ") as caught:
        run_training(tmp_path / "run", pairs, replace(SETTINGS, size=None), workers=workers)
    assert "\n" not in str(caught.value)


def test_log_lines_after_the_checkpoint_are_removed(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "whole", pairs)
    run_training(tmp_path / "broken", pairs, stop_at=4)
    with (tmp_path / "broken" / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "epoch": 1.67, "loss": 99.0}\n{"step": 6, "lo')  # killed while writing
    run_training(tmp_path / "broken", pairs)
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_training_reduces_the_loss(tmp_path: Path, pairs: list[Pair]) -> None:
    settings = replace(SETTINGS, epochs=80, validate_every=80, lr=0.03, ema=0.9)
    outcome = run_training(tmp_path / "run", pairs, replace(settings, augmentation=NO_AUGMENTATION))
    losses = [line["loss"] for line in log_of(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0] / 2
    assert outcome.best is not None
    assert outcome.best.dice > 0.8


def test_best_weights_are_those_of_the_best_validation(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = iter([0.5, 0.8, 0.7])
    steps = fake_validation(monkeypatch, dice)
    outcome = run_training(tmp_path / "run", pairs)
    best, last = (load_model(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert outcome.best is not None
    assert outcome.best.dice == 0.8
    assert json.loads(best.notes["val"])["dice"] == 0.8
    assert json.loads(last.notes["val"])["dice"] == 0.7
    assert best.digest == steps[1]
    assert last.digest == steps[2]
    assert best.size == (64, 32)
    assert best.notes["data"] == "6 photos of 3 cars"


def test_a_run_ends_early_without_improvement(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_validation(monkeypatch, iter([0.5, 0.8, 0.7, 0.8, 0.6, 0.9]))
    outcome = run_training(tmp_path / "run", pairs, replace(SETTINGS, epochs=6, patience=3))
    assert (outcome.step, outcome.steps, outcome.stopped_early) == (15, 18, True)
    assert run_training(tmp_path / "run", pairs, replace(SETTINGS, epochs=6, patience=3)).step == 15


def fake_validation(monkeypatch: pytest.MonkeyPatch, dice: Any) -> list[str]:
    """Replace validation by given Dice values; return the digests of the validated weights."""
    digests: list[str] = []

    def validate(model: Any, val: list[Pair], *_: Any) -> Generator[Score]:
        digests.append(digest_of(model))
        value = next(dice)
        yield from (Score(pair.id, value, value, value, value, value, 1, 1) for pair in val)

    monkeypatch.setattr(loop, "validate", validate)
    return digests


def digest_of(model: Any) -> str:
    header = {
        "network": model.name,
        "mean": json.dumps(model.mean),
        "deviation": json.dumps(model.deviation),
        "size": json.dumps(model.size),
    }
    return weights_digest(model.network.state_dict(), header)


def test_a_loss_of_nan_names_photos_and_keeps_the_checkpoint(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(tmp_path / "run", pairs, stop_at=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    seen: list[str] = []
    monkeypatch.setitem(LOSSES, "bce+dice", lambda logits, *_: logits.sum() * float("nan"))
    get = Samples.__getitem__

    def note(samples: Any, draw: Any) -> Any:
        seen.append(pairs[draw.index].id)
        return get(samples, draw)

    monkeypatch.setattr(Samples, "__getitem__", note)
    with pytest.raises(CarvanaBatchError, match="step 5 the loss is not finite") as caught:
        run_training(tmp_path / "run", pairs)
    assert ", ".join(seen[:2]) in str(caught.value)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_non_finite_gradient_stops_the_run(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    # At 0, the square root has a finite value but an infinite gradient.
    monkeypatch.setitem(LOSSES, "bce+dice", lambda logits, *_: (logits * 0).abs().sqrt().sum())
    with pytest.raises(CarvanaBatchError, match="a gradient is not finite"):
        run_training(tmp_path / "run", pairs, replace(SETTINGS, precision=precision, epochs=30))


def test_out_of_memory_suggests_options(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(LOSSES, "bce+dice", run_out)
    with pytest.raises(CarvanaBatchError, match=r"--batch.*--accumulate"):
        run_training(tmp_path / "run", pairs)


def test_samples_too_small_for_batch_norm_are_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    with pytest.raises(UsageError, match="larger --size"):
        run_training(tmp_path / "run", pairs, replace(SETTINGS, size=(4, 4), batch=1))


def test_passes_of_a_step_equal_the_whole_batch(tmp_path: Path, pairs: list[Pair]) -> None:
    """The mean loss of the first step is the same whether the batch is divided into two passes or not.

    Batch norm sees each pass separately, so the batch contains one photo twice.
    """
    twin = [replace(pairs[0], id=f"{name}_01") for name in "ab"]
    settings = replace(SETTINGS, epochs=1, augmentation=NO_AUGMENTATION)
    runs = {}
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        run_training(folder, twin, replace(settings, accumulate=accumulate))
        runs[accumulate] = (log_of(folder)[0]["loss"], load_model(folder).network.state_dict())
    assert runs[1][0] == pytest.approx(runs[2][0], rel=1e-5)
    for name, value in runs[1][1].items():
        if not name.endswith(("num_batches_tracked", "running_mean", "running_var")):
            torch.testing.assert_close(value, runs[2][1][name], rtol=1e-3, atol=1e-5)


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    with pytest.raises(UsageError, match="multiple of 3"):
        run_training(tmp_path / "run", pairs, replace(SETTINGS, accumulate=3))


def test_weights_of_another_network_are_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "first", pairs, replace(SETTINGS, epochs=1))
    settings = replace(SETTINGS, model="unet", init=str(tmp_path / "first"))
    with pytest.raises(UsageError, match="weights of tiny, but --model is unet"):
        run_training(tmp_path / "second", pairs, settings)


def test_a_run_starts_from_the_initial_weights(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "first", pairs, replace(SETTINGS, epochs=1))
    first = load_model(tmp_path / "first")
    settings = replace(SETTINGS, epochs=1, init=str(tmp_path / "first"), lr=1e-12, ema=0.0, weight_decay=0.0)
    run_training(tmp_path / "second", pairs, settings)
    second = load_model(tmp_path / "second")
    assert (second.mean, second.deviation) == (first.mean, first.deviation)
    for name, parameter in first.network.named_parameters():
        torch.testing.assert_close(
            second.network.state_dict()[name], parameter.detach(), rtol=1e-5, atol=1e-7
        )


def test_notes_of_weights_name_the_initial_weights(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "first", pairs, replace(SETTINGS, epochs=1))
    settings = replace(SETTINGS, epochs=1, init=str(tmp_path / "first"))
    run_training(tmp_path / "second", pairs, settings)
    run_training(tmp_path / "third", pairs, replace(settings, init=str(tmp_path / "second")))
    first, second, third = (load_model(tmp_path / name) for name in ("first", "second", "third"))
    assert "init" not in first.notes
    digest = first.digest[:16]
    description = f"{tmp_path / 'first'}, sha256 {digest}, trained on {first.notes['data']}"
    assert second.notes["init"] == description
    assert third.notes["init"].startswith(f"{tmp_path / 'second'}, sha256 {second.digest[:16]}, trained on ")
    assert third.notes["init"].endswith(f", from {description}")


def test_input_statistics_are_those_of_the_photos(pairs: list[Pair]) -> None:
    mean, deviation = input_statistics(pairs)
    pixels = np.concatenate([np.asarray(load_pair(pair, (96, 64))[0]).reshape(-1, 3) for pair in pairs])
    assert mean == pytest.approx(pixels.mean(axis=0) / 255, abs=1e-3)
    assert deviation == pytest.approx(pixels.std(axis=0) / 255, abs=1e-3)


def write_pair(folder: Path, name: str, size: tuple[int, int]) -> Pair:
    """Write a photo of (width, height) and an empty mask."""
    photo, mask = folder / f"{name}.png", folder / f"{name}_mask.png"
    Image.new("RGB", size, "grey").save(photo)
    Image.new("L", size).save(mask)
    return Pair(name, photo, mask)


def test_the_scale_is_that_of_the_photos(tmp_path: Path) -> None:
    sizes = [(100, 60), (60, 110), (90, 90), (100, 99), (120, 2)]
    pairs = [write_pair(tmp_path, str(number), size) for number, size in enumerate(sizes)]
    assert training_scale(pairs, replace(SETTINGS, size=None)) == 100
    assert training_scale(pairs, replace(SETTINGS, size=(64, 64))) is None
    different = [*pairs, write_pair(tmp_path, "large", (200, 50))]
    assert training_scale(different, replace(SETTINGS, size=None)) is None


def test_weights_record_the_scale_of_their_photos(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "run", pairs, replace(SETTINGS, size=None), stop_at=2)
    run_training(tmp_path / "run", pairs, replace(SETTINGS, size=None))
    with Image.open(pairs[0].image) as photo:
        assert load_model(tmp_path / "run").scale == max(photo.size)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, pairs: list[Pair]) -> None:
    run_training(tmp_path / "run", pairs, stop_at=2)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"checkpoint\.pt is damaged"):
        run_training(tmp_path / "run", pairs)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_ends_the_run_with_its_checkpoint(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def make_or_die(samples: Samples, draw: Draw) -> Any:
        if draw.number == 3:
            os._exit(1)
        return make(samples, draw)

    make = Samples.make
    with monkeypatch.context() as patch:
        patch.setattr(Samples, "make", make_or_die)
        with pytest.raises(CarvanaBatchError, match=r"A process that reads photos died; .*--resume"):
            run_training(tmp_path / "run", pairs, workers=workers)
    run_training(tmp_path / "run", pairs, workers=workers)
    run_training(tmp_path / "whole", pairs)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
