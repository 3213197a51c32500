"""The training loop: forward, backward, step, average, validate, save."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference.memory import FreedMemory, is_out_of_memory
from carvana_batch.inference.precision import PRECISIONS, choose_precision
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import Model, save_model
from carvana_batch.scoring.scores import Score, Summary, summarise, write_scores
from carvana_batch.stopping import StopFlag
from carvana_batch.text import shown
from carvana_batch.training.listener import Outcome, TrainingListener
from carvana_batch.training.losses import LOSSES
from carvana_batch.training.optimisation import WeightAverage, learning_rate_at, make_optimizer
from carvana_batch.training.pairs import Pair
from carvana_batch.training.passes import Pass, passes_of_steps
from carvana_batch.training.processes import Processes
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.samples import Samples
from carvana_batch.training.settings import TrainingSettings, describe_settings
from carvana_batch.training.starting import (
    check_batch,
    model_of_checkpoint,
    start_model,
    unusable_checkpoint,
)
from carvana_batch.training.validation import validate

WORST_KEPT = 6
"""Number of photos with the lowest Dice that are drawn at the end."""

MOST_LOGGED_STEPS = 50
"""Most steps between two lines of the log; fewer in a run of less than 5,000 steps."""

SECONDS_BETWEEN_CHECKPOINTS = 180.0

LOWEST_SCALE = 1e-3
"""Lowest scale of fp16 gradients. It starts at 65,536 and is halved after overflow, so below this the
overflow has another cause."""


class Training:
    """A training run: the network, and everything else that changes with each step and is saved.

    Interruptions do not affect the result: samples depend on the step only, and everything that steps change
    is in the checkpoint. With several processes, each takes its part of the samples of every step.

    Args:
        pairs: photos to train on, with their masks.
        val: those to validate on.
        run: the folder of the run; only the first process reads and writes it.
        settings: what was asked for.
        device: where the network runs.
        processes: the processes of the run, by default this one.
        listener: what to call during the run.
        stop: when its signal is set, the run saves and ends.
        workers: processes that read and augment photos.

    Raises:
        UsageError: settings that do not fit together, or a checkpoint that cannot be read.
        ModelError: initial weights that cannot be loaded.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        val: Sequence[Pair],
        run: RunFolder,
        settings: TrainingSettings,
        device: torch.device,
        *,
        processes: Processes | None = None,
        listener: TrainingListener | None = None,
        stop: StopFlag | None = None,
        workers: int = 1,
    ) -> None:
        self.pairs, self.val, self.run, self.settings, self.device = pairs, val, run, settings, device
        self.processes = processes or Processes()
        self.listener = listener or TrainingListener()
        self.stop = stop or StopFlag()
        self.workers = workers
        self.steps = math.ceil(settings.epochs * len(pairs) / settings.batch)
        check_batch(settings, self.processes.count)
        state = self.processes.share(run.load_checkpoint() if self.processes.first else None)
        if state is None:
            self.model = start_model(pairs, settings)
            self.precision: str = self.processes.share(self._pick_precision())
        else:
            self.model = model_of_checkpoint(state, settings)
            self.precision = state["precision"]
        self.network = self.model.network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.average = WeightAverage(self.network, settings.ema)
        self.step = self.validated = self.validations_since_best = 0
        self.best: Summary | None = None
        self.worst: list[str] = []  # ids of the best validation
        self._freed = FreedMemory(device)
        self.losses: list[float] = []  # since the last line of the log
        if state is not None:
            self._restore(state)
        else:
            self._save()  # so that the run can be resumed from its beginning
        self.wrapped = self.processes.wrap(self.network, device)
        self.samples = Samples(pairs, settings.size, settings.augmentation, settings.seed)

    def run_to_end(self) -> Outcome:
        """Train from the present step to the last one, and validate in between.

        Raises:
            CarvanaBatchError: the loss or a gradient is not finite, or memory ran out. The last checkpoint is
                kept.
        """
        self.samples.keep_in_memory(
            self.processes.local_count, lambda done, total: self.listener.on_work("reading", done, total)
        )
        stopping = (
            self._is_validation_due() and not self._validate()
        )  # the run was stopped before this validation
        spent, first, saved = 0.0, self.step, time.monotonic()
        with contextlib.closing(
            passes_of_steps(
                self.samples,
                self.settings,
                range(self.step, self.steps),
                self.processes,
                self.device,
                self.workers,
            )
        ) as steps:
            while not (self._is_over() or stopping):
                began = time.monotonic()
                loss, stopping = self._agree(self._take_step(next(steps)))
                spent += time.monotonic() - began
                rate = (self.step - first) * self.settings.batch / spent
                self.losses.append(loss)
                self.listener.on_step(self.step, self.steps, loss, rate)
                if self.step % self.logged_steps == 0 or self.step == self.steps:
                    self._log_loss(rate)
                due = self._is_validation_due()
                if stopping or due or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()
                    saved = time.monotonic()
                if due and not stopping:
                    stopping = not self._validate()
        self._freed.give_back()
        stopped_by = (self.stop.signal or signal.SIGTERM) if stopping else None
        return Outcome(self.step, self.steps, self.best, stopped_by)

    def describe(self) -> str:
        """One line about what is trained, on what and how."""
        settings = self.settings
        size = "full size" if settings.size is None else "{}x{}".format(*settings.size)
        words = [
            f"{self.model.name} at {size} from {settings.init or 'random weights'}",
            f"{self.steps:,} {'step' if self.steps == 1 else 'steps'} of {settings.batch}",
            f"{self.device} in {self.precision}",
        ]
        if self.processes.count > 1:
            words.append(f"{self.processes.count} processes")
        if self._is_over():
            words.append(f"has ended already, after step {self.step:,}")
        elif self.step:
            words.append(f"going on after step {self.step:,}")
        return "; ".join(words)

    def averaged_model(self) -> Model:
        """A model with the averaged weights."""
        network = NETWORKS[self.model.name]()
        network.load_state_dict(self.average.state)
        return Model(
            self.model.name, network.eval(), self.model.mean, self.model.deviation, "", size=self.model.size
        )

    def _take_step(self, passes: list[Pass]) -> float:
        """Take one step of the optimizer and return its mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad()
        try:
            total = 0.0
            for number, one in enumerate(passes, start=1):
                last = number == len(passes)
                with contextlib.nullcontext() if last else self.processes.without_averaging(self.wrapped):
                    total += self._add_gradients(one)
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip or math.inf)
            if not (self.scaler.is_enabled() or torch.isfinite(norm)):  # the scaler skips such a step
                raise self._not_finite("a gradient", passes)
            self.scaler.step(self.optimizer)
        except ValueError as error:
            if not is_too_small_for_batch_norm(error):
                raise
            raise UsageError(
                "One sample this small is not enough for batch norm, whose coarsest level has a single pixel."
                " Use a larger --size or --crop, or more photos in a pass (--batch, --accumulate)."
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CarvanaBatchError(
                f"Out of memory on {self.device} at step {self.step + 1}. Begin another RUN with a smaller"
                f" --batch, more --accumulate or a --crop{self._init_hint()}."
            ) from error
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < LOWEST_SCALE:
            raise self._not_finite("a gradient", passes)
        self.average.update(self.network, self.step)
        self.step += 1
        return total / len(passes)

    def _add_gradients(self, one: Pass) -> float:
        """Run a pass forward and backward and return its loss."""
        self._freed.prepare_for(tuple(one.images.shape))
        images = one.images.to(self.device, non_blocking=True)
        masks = one.masks.to(self.device, non_blocking=True)
        half = self.precision != "fp32"
        with torch.autocast(self.device.type, PRECISIONS[self.precision] if half else None, enabled=half):
            logits = self.wrapped(self._normalised(images))
        loss: Tensor = LOSSES[self.settings.loss](logits.float(), masks.float() / 255)
        value = loss.item()
        if not math.isfinite(value):
            raise self._not_finite("the loss", [one])
        self.scaler.scale(loss / self.settings.accumulate).backward()
        return value

    def _normalised(self, images: Tensor) -> Tensor:
        """Normalise (N, 3, h, w) uint8 to float32."""
        mean = torch.tensor(self.model.mean, device=self.device).view(1, 3, 1, 1) * 255
        deviation = torch.tensor(self.model.deviation, device=self.device).view(1, 3, 1, 1) * 255
        return ((images.float() - mean) / deviation).contiguous(memory_format=torch.channels_last)

    def _not_finite(self, what: str, passes: Sequence[Pass]) -> CarvanaBatchError:
        ids = ", ".join(shown(self.pairs[draw.index].id) for one in passes for draw in one.draws)
        return CarvanaBatchError(
            f"At step {self.step + 1} {what} is not finite; the photos were {ids}. The last checkpoint"
            f" is kept. Begin another RUN with a lower --lr or --precision fp32{self._init_hint()}."
        )

    def _init_hint(self) -> str:
        return f" and --init {shown(self.run.last)}" if self.run.last.exists() else ""

    def _pick_precision(self) -> str:
        if self.settings.precision != "auto":
            return self.settings.precision
        dtype, _ = choose_precision(self.model.network, self.device)
        return next(name for name, value in PRECISIONS.items() if value == dtype)

    def _learning_rate(self) -> float:
        return learning_rate_at(self.step, self.steps, self.settings)

    def _epochs(self, step: int) -> float:
        return step * self.settings.batch / len(self.pairs)

    def _is_validation_due(self) -> bool:
        """Whether to validate now: after every ``validate_every`` epochs and at the end."""
        if self.validated == self.step:
            return False
        every = self.settings.validate_every
        crossed = self._epochs(self.step) // every > self._epochs(self.step - 1) // every
        return crossed or self.step == self.steps

    @property
    def logged_steps(self) -> int:
        return min(MOST_LOGGED_STEPS, max(1, self.steps // 100))

    def _is_over(self) -> bool:
        return self.step >= self.steps or 0 < self.settings.patience <= self.validations_since_best

    def _validate(self) -> bool:
        """Validate the averaged weights, write them, and keep the best ones so far.

        Returns:
            False if a signal came in the meantime; the resumed run validates again.
        """
        scores = self.processes.share(self._measure() if self.processes.first else None)
        if scores is None:
            return False
        summary = summarise(scores)
        if summary is None:
            raise UsageError("There is no photo to validate on.")
        self.validated = self.step
        better = self.best is None or summary.dice > self.best.dice
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        if better:
            self.best = summary
            self.worst = [score.image for score in sorted(scores, key=lambda score: score.dice)[:WORST_KEPT]]
        if self.processes.first:
            self._log({"val": asdict(summary)})
            self._write_weights(self.run.last, summary)
            if better:
                write_scores(scores, self.run.scores)
                self._write_weights(self.run.best, summary)
        self._save()
        return True

    def _measure(self) -> list[Score] | None:
        """The scores of the averaged weights; None if a signal came in the meantime."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # memory that training has cached would not count as free
        scores: list[Score] = []
        validating = validate(self.averaged_model(), self.val, self.device, self.precision)
        with contextlib.closing(validating):
            for score in validating:
                scores.append(score)
                self.listener.on_work("validating", len(scores), len(self.val))
                if self.stop.signal is not None:
                    return None
        return sorted(scores, key=lambda score: score.image)

    def _write_weights(self, path: Path, summary: Summary | None) -> None:
        cars = len({pair.car for pair in self.pairs})
        notes = {
            "data": f"{len(self.pairs):,} photos of {cars:,} cars",
            "settings": json.dumps(describe_settings(self.settings)),
            "step": f"{self.step} of {self.steps}",
            **self.model.notes,
        }
        if summary is not None:
            val_cars = len({pair.car for pair in self.val})
            notes["val"] = json.dumps({"photos": len(self.val), "cars": val_cars, **asdict(summary)})
        model = self.model
        save_model(path, model.name, self.average.state, model.mean, model.deviation, notes, model.size)

    def _save(self) -> None:
        """Write the checkpoint, from which a run resumes as if it had not been interrupted."""
        if not self.processes.first:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state,
            "mean": self.model.mean,
            "deviation": self.model.deviation,
            "notes": self.model.notes,
            "precision": self.precision,
            "step": self.step,
            "validated": self.validated,
            "validations_since_best": self.validations_since_best,
            "best": None if self.best is None else asdict(self.best),
            "worst": self.worst,
            "losses": self.losses,
        }
        self.run.save_checkpoint(state)
        if self.validated != self.step:
            self._write_weights(self.run.last, None)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.average.load(state["average"])
            self.step, self.validated = state["step"], state["validated"]
            self.validations_since_best = state["validations_since_best"]
            self.best = None if state["best"] is None else Summary(**state["best"])
            self.worst, self.losses = list(state["worst"]), list(state["losses"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise unusable_checkpoint(error) from error

    def _agree(self, loss: float) -> tuple[float, bool]:
        """The mean loss of all processes, and whether any of them received a signal."""
        parts = self.processes.gather((loss, self.stop.signal is not None))
        return sum(loss for loss, _ in parts) / len(parts), any(stopped for _, stopped in parts)

    def _log_loss(self, rate: float) -> None:
        loss = float(np.mean(self.losses))
        self.losses = []
        learning_rate = learning_rate_at(self.step - 1, self.steps, self.settings)
        self._log({"loss": loss, "learning_rate": learning_rate, "samples_per_second": rate})

    def _log(self, values: dict[str, Any]) -> None:
        if not self.processes.first:
            return
        line = {"step": self.step, "epoch": round(self._epochs(self.step), 4), **values}
        self.run.add_to_log(line)
        self.listener.on_log(line)


def is_too_small_for_batch_norm(error: ValueError) -> bool:
    """Whether batch norm refused a feature map with a single value per channel.

    torch has no class for it; this part of its message was seen in torch 2.13.0.
    """
    return "more than 1 value per channel" in str(error)
