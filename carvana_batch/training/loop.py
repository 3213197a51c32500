"""The training loop: take steps, validate, log, and save."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carvana_batch.errors import UsageError
from carvana_batch.network.checkpoints import save_model
from carvana_batch.scoring.scores import Score, Summary, summarise, write_scores
from carvana_batch.stopping import StopFlag
from carvana_batch.training.device_samples import DeviceSamples
from carvana_batch.training.listener import Outcome, TrainingListener
from carvana_batch.training.pairs import Pair
from carvana_batch.training.passes import Pass, passes_of_steps
from carvana_batch.training.processes import Processes
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.samples import Samples, make_samples
from carvana_batch.training.settings import TrainingSettings, describe_settings
from carvana_batch.training.starting import check_batch, start_from_checkpoint, start_model, start_precision
from carvana_batch.training.state import TrainingState
from carvana_batch.training.step import StepRunner
from carvana_batch.training.validation import validate

MAX_LOG_INTERVAL = 50
"""Largest number of steps between two lines of the log; it is lower in a run of fewer than 5,000 steps."""

SECONDS_BETWEEN_CHECKPOINTS = 180.0


class Training:
    """A training run: takes steps, validates, logs, and saves its state.

    Interruptions do not affect the result: samples depend only on the step, and everything that steps change
    is in the checkpoint. With several processes, each processes its share of the samples of every step.

    Args:
        pairs: photos to train on, with their masks.
        val: photos to validate on, with their masks.
        run: the folder of the run; only the first process reads and writes it.
        settings: settings of the run.
        device: where the network runs.
        processes: the processes of the run, by default this one.
        listener: callbacks for progress.
        stop: when its signal is set, the run saves its state and ends.
        workers: number of processes that read and augment photos.
        compiled: compile the network.
        started_at: when the run was started or resumed, by ``time.monotonic``; by default now.

    Attributes:
        state: what steps change.
        steps: number of steps of the whole run.

    Raises:
        UsageError: settings contradict each other, or the checkpoint cannot be used.
        ModelError: the initial weights cannot be loaded.
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
        compiled: bool = False,
        started_at: float | None = None,
    ) -> None:
        self._started_at = time.monotonic() if started_at is None else started_at
        self.pairs, self.val, self.run, self.settings, self.device = pairs, val, run, settings, device
        self.processes = processes or Processes()
        self.listener = listener or TrainingListener()
        self.stop = stop or StopFlag()
        self.workers = workers
        self.steps = math.ceil(settings.epochs * len(pairs) / settings.batch)
        check_batch(settings, self.processes.count)
        checkpoint = self.processes.share(run.load_checkpoint() if self.processes.first else None)
        if checkpoint is None:
            model = start_model(pairs, settings)
            precision = self.processes.share(start_precision(model, settings, device))
            self.state = TrainingState(model, precision, settings, device)
            self._save()  # so that the run can be resumed from its beginning
        else:
            model, precision = start_from_checkpoint(checkpoint, settings)
            self.state = TrainingState(model, precision, settings, device)
            self.state.restore(checkpoint)
        self.step_runner = StepRunner(
            self.state, self.steps, pairs, run, settings, device, self.processes, compiled
        )
        self._earlier_seconds = self.state.seconds
        self.samples: Samples | DeviceSamples
        if settings.cache == "device":
            self.samples = DeviceSamples(pairs, settings, device)
        else:
            self.samples = make_samples(pairs, settings)

    def run_to_end(self) -> Outcome:
        """Train from the current step to the last one, with the validations in between.

        Raises:
            CarvanaBatchError: the loss or a gradient is not finite, or memory ran out. The last checkpoint is
                kept.
        """
        state, listener = self.state, self.listener
        if not self._is_over():
            self._read_photos()
        # A validation is still due if a signal came before or during it.
        stopping = self._is_validation_due() and not self._validate()
        seconds, first_step, saved_at = 0.0, state.step, time.monotonic()
        steps = range(first_step, self.steps)
        with contextlib.closing(self._passes(steps)) as passes:
            while not (self._is_over() or stopping):
                started_at = time.monotonic()
                loss, stopping = self._agree(self.step_runner.take_step(next(passes)))
                seconds += time.monotonic() - started_at
                rate = (state.step - first_step) * self.settings.batch / seconds
                state.losses.append(loss)
                listener.on_step(state.step, self.steps, loss, rate)
                if state.step % self.log_interval == 0 or state.step == self.steps:
                    self._log_loss(rate)
                due = self._is_validation_due()
                if stopping or due or time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                    self._save()
                    saved_at = time.monotonic()
                if due and not stopping:
                    stopping = not self._validate()
        self.step_runner.freed_memory.give_back()
        stopped_by = (self.stop.signal or signal.SIGTERM) if stopping else None
        time_up = stopped_by is None and self._is_time_up() and state.step < self.steps
        return Outcome(state.step, self.steps, state.best, stopped_by, is_time_up=time_up)

    def _read_photos(self) -> None:
        """Keep the photos in memory, if they are to stay there."""

        def report(done: int, total: int) -> None:
            self.listener.on_work("reading", done, total)

        if isinstance(self.samples, DeviceSamples):
            self.samples.load(self.processes.local_count, report)
        else:
            self.samples.keep_in_memory(self.processes.local_count, report)

    def _passes(self, steps: range) -> Generator[list[Pass]]:
        if isinstance(self.samples, DeviceSamples):
            return self.samples.passes_of_steps(steps, self.processes)
        return passes_of_steps(
            self.samples,
            self.settings,
            steps,
            self.processes,
            self.device,
            self.workers,
            self.listener.on_say,
        )

    def describe(self) -> str:
        """Describe the run in one line for the user."""
        settings = self.settings
        size = "full size" if settings.size is None else "{}x{}".format(*settings.size)
        words = [
            f"{self.state.model.name} at {size} from {settings.init or 'random weights'}",
            f"{self.steps:,} {'step' if self.steps == 1 else 'steps'} of {settings.batch}",
            f"{self.device} in {self.state.precision}",
        ]
        if settings.minutes is not None:
            words.append(f"{settings.minutes:g} minutes at most")
        if self.processes.count > 1:
            words.append(f"{self.processes.count} processes")
        if self._is_over():
            words.append(f"has ended already, after step {self.state.step:,}")
        elif self.state.step:
            words.append(f"going on after step {self.state.step:,}")
        return "; ".join(words)

    def _epochs(self, step: int) -> float:
        return step * self.settings.batch / len(self.pairs)

    def _is_validation_due(self) -> bool:
        """Whether a validation is due: after every ``validate_every`` epochs and after the last step.

        The last one may also be that at which the time was up.
        """
        if self.state.validated == self.state.step:
            return False
        every = self.settings.validate_every
        crossed = self._epochs(self.state.step) // every > self._epochs(self.state.step - 1) // every
        return crossed or self.state.step == self.steps or (self._is_time_up() and self.state.step > 0)

    @property
    def log_interval(self) -> int:
        """Number of steps between two lines of the log."""
        return min(MAX_LOG_INTERVAL, max(1, self.steps // 100))

    def _is_over(self) -> bool:
        patience = self.settings.patience
        no_better = 0 < patience <= self.state.validations_since_best
        return self.state.step >= self.steps or no_better or self._is_time_up()

    def _is_time_up(self) -> bool:
        minutes = self.settings.minutes
        return minutes is not None and self.state.seconds >= 60 * minutes

    def _validate(self) -> bool:
        """Validate the averaged weights, write them, and keep the best ones so far.

        Returns:
            False if a signal came in the meantime; the resumed run then validates again.
        """
        scores = self.processes.share(self._measure() if self.processes.first else None)
        if scores is None:
            return False
        summary = summarise(scores)
        if summary is None:
            raise UsageError("There is no photo to validate on.")
        better = self.state.add_validation(summary, scores)
        if self.processes.first:
            self._log({"val": asdict(summary)})
            self._write_weights(self.run.last, summary)
            if better:
                write_scores(scores, self.run.scores)
                self._write_weights(self.run.best, summary)
        self._save()
        return True

    def _measure(self) -> list[Score] | None:
        """Return the scores of the averaged weights, sorted by id; None if a signal came in the meantime."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # memory that training has cached would not count as free
        scores: list[Score] = []
        validating = validate(self.state.averaged_model(), self.val, self.device, self.state.precision)
        with contextlib.closing(validating):
            for score in validating:
                scores.append(score)
                self.listener.on_work("validating", len(scores), len(self.val))
                if self.stop.signal is not None:
                    return None
        return sorted(scores, key=lambda score: score.image)

    def _write_weights(self, path: Path, summary: Summary | None) -> None:
        self.run.check_place()
        cars = len({pair.car for pair in self.pairs})
        notes = {
            "data": f"{len(self.pairs):,} photos of {cars:,} cars",
            "settings": json.dumps(describe_settings(self.settings)),
            "step": f"{self.state.step} of {self.steps}",
            **self.state.model.notes,
        }
        if summary is not None:
            val_cars = len({pair.car for pair in self.val})
            notes["val"] = json.dumps({"photos": len(self.val), "cars": val_cars, **asdict(summary)})
        model, weights = self.state.model, self.state.average.state
        size, scale = model.size, model.scale
        save_model(path, model.name, weights, model.mean, model.deviation, notes, size, scale)

    def _save(self) -> None:
        """Write the checkpoint, from which a run resumes as if it had not been interrupted."""
        if not self.processes.first:
            return
        self.run.save_checkpoint(self.state.to_checkpoint())
        if self.state.validated != self.state.step:
            self._write_weights(self.run.last, None)

    def _agree(self, loss: float) -> tuple[float, bool]:
        """Return the mean loss of all processes, and whether any of them received a signal.

        Also note the time that the run has taken, by the clock of the first process.
        """
        seconds = self._earlier_seconds + time.monotonic() - self._started_at
        parts = self.processes.gather((loss, self.stop.signal is not None, seconds))
        self.state.seconds = parts[0][2]
        return sum(part[0] for part in parts) / len(parts), any(part[1] for part in parts)

    def _log_loss(self, rate: float) -> None:
        loss = float(np.mean(self.state.losses))
        self.state.losses = []
        learning_rate = self.step_runner.learning_rate_at(self.state.step - 1)
        self._log({"loss": loss, "learning_rate": learning_rate, "samples_per_second": rate})

    def _log(self, values: dict[str, Any]) -> None:
        if not self.processes.first:
            return
        line = {"step": self.state.step, "epoch": round(self._epochs(self.state.step), 4), **values}
        self.run.add_to_log(line)
        self.listener.on_log(line)
