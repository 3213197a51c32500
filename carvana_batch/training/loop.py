"""The training loop: draw, augment, forward, backward, average, save."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from carvana_batch.atomic import atomic_writer
from carvana_batch.metrics import count
from carvana_batch.models import NETWORKS
from carvana_batch.models.blocks import AnySizeNetwork
from carvana_batch.models.checkpoints import Model, load_model, save_model
from carvana_batch.records import CarvanaBatchError, PackedMask, UsageError
from carvana_batch.training.augmentation import AugmentationLimits
from carvana_batch.training.data import Pair, Samples, draw_batches, load_pair
from carvana_batch.training.losses import LOSSES

STATISTICS_PHOTOS = 64
"""Photos from which mean and deviation of the input are taken."""

LOGGED_STEPS = 50


@dataclass(frozen=True)
class TrainingSettings:
    """``size`` and ``crop`` are (width, height) in pixels; a ``size`` of None trains at full resolution.

    ``crop_share`` is the part of the batches that see a random crop instead of the whole photo, and
    ``average`` the decay per step of the moving average of the weights.
    """

    network: str = "segunet-s"
    init: str | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    crop_share: float = 0.0
    steps: int = 3000
    batch: int = 4
    learning_rate: float = 3e-3
    warm_up: int = 200
    weight_decay: float = 0.01
    average: float = 0.998
    gradient_limit: float = 1.0
    loss: str = "bce+dice"
    seed: int = 0
    workers: int = 1
    save_minutes: float = 3.0
    augmentation: AugmentationLimits = field(default_factory=AugmentationLimits)


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < settings.warm_up:
        return settings.learning_rate * (step + 1) / settings.warm_up
    progress = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def input_statistics(pairs: list[Pair]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the red, green and blue channel over some photos, scaled to [0, 1]."""
    chosen = pairs[:: max(1, len(pairs) // STATISTICS_PHOTOS)]
    pixels = (
        np.concatenate([np.asarray(load_pair(pair, (96, 64))[0]).reshape(-1, 3) for pair in chosen]) / 255
    )
    return tuple(pixels.mean(axis=0).round(4).tolist()), tuple(pixels.std(axis=0).round(4).tolist())


def start_model(pairs: list[Pair], settings: TrainingSettings) -> Model:
    """The network of ``settings.init``, or a new one whose input statistics are those of the photos.

    Raises:
        UsageError: the initial weights are those of another network.
        ModelError: they cannot be loaded.
    """
    if settings.init is None:
        torch.manual_seed(settings.seed)
        mean, deviation = input_statistics(pairs)
        return Model(settings.network, NETWORKS[settings.network](), mean, deviation, "")  # type: ignore[arg-type]
    model = load_model(settings.init)
    if model.name != settings.network:
        raise UsageError(
            f"--init {settings.init}: weights of {model.name}, but --model is {settings.network}"
        )
    return model


def train(
    pairs: list[Pair],
    val: list[Pair],
    run: Path,
    settings: TrainingSettings,
    on_log: Callable[[dict[str, Any]], object] = lambda _: None,
) -> Path:
    """Train on the CPU in bfloat16 and write ``run/best.safetensors``, the averaged weights.

    Started again with the same settings, it goes on from the last checkpoint with the samples that an
    undisturbed run would have drawn.

    Raises:
        CarvanaBatchError: the loss is not finite; the last checkpoint is kept.
        UsageError: ``run`` holds a checkpoint of other settings.
    """
    model = start_model(pairs, settings)
    network = model.network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    normalise = _normaliser(model)
    optimizer = _make_optimizer(network, settings)
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    start = _restore(run, settings, network, optimizer, average)
    samples = Samples(pairs, settings.size, settings.augmentation, settings.seed, settings.size is not None)
    steps = range(start, settings.steps)
    batches = draw_batches(
        len(pairs), settings.batch, steps, settings.seed, settings.crop, settings.crop_share
    )
    loader = DataLoader(samples, batch_sampler=list(batches), num_workers=settings.workers)
    saved, losses = time.monotonic(), []
    began = saved
    for step, (images, masks) in enumerate(loader, start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(normalise(images))
        loss = LOSSES[settings.loss](logits.float(), masks.float() / 255)
        if not torch.isfinite(loss):
            raise CarvanaBatchError(
                f"the loss is not finite at step {step + 1}; {run} keeps the last checkpoint"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_limit)
        optimizer.step()
        _average_weights(average, network, min(settings.average, (1 + step) / (10 + step)))
        losses.append(loss.item())
        last = step + 1 == settings.steps
        if len(losses) == LOGGED_STEPS or last:
            rate = (step + 1 - start) * settings.batch / (time.monotonic() - began)
            _log(run, {"step": step + 1, "loss": float(np.mean(losses)), "samples_per_second": rate}, on_log)
            losses = []
        if last or time.monotonic() - saved > 60 * settings.save_minutes:
            _save_checkpoint(run, settings, network, optimizer, average, step + 1)
            saved = time.monotonic()
    network.load_state_dict(average)
    dice = validate(network, normalise, val, settings.size)
    low, middle, high = np.percentile(dice, [5, 50, 95]).tolist()
    result = {"val_dice": float(np.mean(dice)), "p05": low, "p50": middle, "p95": high}
    _log(run, result, on_log)
    notes = {"val": json.dumps(result), "settings": json.dumps(asdict(settings))}
    save_model(run / "best.safetensors", model.name, average, model.mean, model.deviation, notes)
    return run / "best.safetensors"


def validate(
    network: AnySizeNetwork,
    normalise: Callable[[Tensor], Tensor],
    pairs: list[Pair],
    size: tuple[int, int] | None,
) -> list[float]:
    """Hard Dice of each pair at full resolution; logits of a smaller ``size`` are upsampled first."""
    network.eval()
    dice = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for pair in pairs:
            image, _ = load_pair(pair, size)
            true = np.array(load_pair(pair, None)[1]) > 0
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            logits = network(normalise(pixels)).float()
            if size is not None:
                logits = functional.interpolate(logits, true.shape, mode="bilinear")
            predicted = PackedMask.from_bool((logits[0, 0] > 0).numpy())
            dice.append(count(predicted, PackedMask.from_bool(true)).dice)
    return dice


def _normaliser(model: Model) -> Callable[[Tensor], Tensor]:
    mean = torch.tensor(model.mean).view(1, 3, 1, 1) * 255
    deviation = torch.tensor(model.deviation).view(1, 3, 1, 1) * 255
    return lambda images: ((images.float() - mean) / deviation).contiguous(memory_format=torch.channels_last)


def _make_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW; biases and batch norms are not decayed."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _average_weights(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _checkpoint_path(run: Path) -> Path:
    return run / "checkpoint.pt"


def _save_checkpoint(
    run: Path,
    settings: TrainingSettings,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
) -> None:
    state = {
        "settings": json.dumps(asdict(settings)),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "step": step,
    }
    with atomic_writer(_checkpoint_path(run)) as file:
        torch.save(state, file)


def _restore(
    run: Path,
    settings: TrainingSettings,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> int:
    """Load the checkpoint of ``run``, if there is one; the step to go on with."""
    run.mkdir(parents=True, exist_ok=True)
    if not _checkpoint_path(run).exists():
        return 0
    state = torch.load(_checkpoint_path(run), weights_only=True)
    if state["settings"] != json.dumps(asdict(settings)):
        raise UsageError(f"{run} holds a run with other settings; choose another RUN, or repeat its settings")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.update(state["average"])
    return int(state["step"])


def _log(run: Path, line: dict[str, Any], on_log: Callable[[dict[str, Any]], object]) -> None:
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    on_log(line)
