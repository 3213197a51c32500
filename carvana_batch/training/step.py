"""One step of training: forward and backward passes, then the update of the weights and their average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference.memory import FreedMemory, is_out_of_memory
from carvana_batch.inference.precision import PRECISIONS
from carvana_batch.text import shown
from carvana_batch.training.losses import LOSSES
from carvana_batch.training.optimisation import learning_rate_at
from carvana_batch.training.pairs import Pair
from carvana_batch.training.passes import Pass
from carvana_batch.training.processes import Processes
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.settings import TrainingSettings
from carvana_batch.training.state import TrainingState

MIN_GRADIENT_SCALE = 1e-3
"""Lowest scale of fp16 gradients. It starts at 65,536 and is halved after each overflow, so a lower scale
means that the overflow has another cause."""


class StepRunner:
    """Takes the steps of a training run, one at a time.

    Args:
        state: what a step changes.
        steps: number of steps of the run, on which the learning rate depends.
        pairs: photos to train on; their ids appear in error messages.
        run: the folder of the run; error messages refer to its weights.
        settings: settings of the run.
        device: where the network runs.
        processes: the processes of the run, over which gradients are averaged.
        compiled: compile the network.

    Attributes:
        freed_memory: main memory that is kept for reuse between passes.
    """

    def __init__(
        self,
        state: TrainingState,
        steps: int,
        pairs: Sequence[Pair],
        run: RunFolder,
        settings: TrainingSettings,
        device: torch.device,
        processes: Processes,
        compiled: bool = False,
    ) -> None:
        self.state, self.steps, self.pairs, self.run = state, steps, pairs, run
        self.settings, self.device, self.processes = settings, device, processes
        self.freed_memory = FreedMemory(device)
        network = cast(nn.Module, torch.compile(state.network)) if compiled else state.network
        self.wrapped = processes.wrap(network, device)
        # Made once, because copying them to a device waits for it.
        self._mean, self._deviation = (
            255 * torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (state.model.mean, state.model.deviation)
        )

    def take_step(self, passes: Sequence[Pass]) -> float:
        """Take one step of the optimizer.

        Args:
            passes: those of this process.

        Returns:
            The mean loss of the passes.

        Raises:
            UsageError: the samples are too small for batch norm.
            CarvanaBatchError: the loss or a gradient is not finite, or memory ran out.
        """
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate_at(state.step)
        state.optimizer.zero_grad()
        try:
            total = self._accumulate_gradients(passes)
            state.scaler.unscale_(state.optimizer)
            norm = nn.utils.clip_grad_norm_(state.network.parameters(), self.settings.clip or math.inf)
            if not (state.scaler.is_enabled() or torch.isfinite(norm)):  # the scaler skips such a step
                raise self._not_finite("a gradient", passes)
            state.scaler.step(state.optimizer)
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
                f"Out of memory on {self.device} at step {state.step + 1}. Begin another RUN with a smaller"
                f" --batch, more --accumulate or a --crop{self._init_hint()}."
            ) from error
        state.scaler.update()
        if state.scaler.is_enabled() and state.scaler.get_scale() < MIN_GRADIENT_SCALE:
            raise self._not_finite("a gradient", passes)
        state.average.update(state.network, state.step)
        state.step += 1
        return total / len(passes)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0, if it were taken now."""
        minutes = self.settings.minutes
        share = 0.0 if minutes is None else self.state.seconds / (60 * minutes)
        return learning_rate_at(step, self.steps, self.settings, share)

    def _accumulate_gradients(self, passes: Sequence[Pass]) -> float:
        """Run the passes forward and backward and return the sum of their losses."""
        total = 0.0
        for number, one in enumerate(passes, start=1):
            last = number == len(passes)
            with contextlib.nullcontext() if last else self.processes.without_averaging(self.wrapped):
                total += self._add_gradients(one)
        return total

    def _add_gradients(self, one: Pass) -> float:
        """Run a pass forward and backward and return its loss."""
        self.freed_memory.prepare_for(tuple(one.images.shape))
        images = one.images.to(self.device, non_blocking=True)
        masks = one.masks.to(self.device, non_blocking=True)
        known = one.known.to(self.device, non_blocking=True)
        precision = self.state.precision
        half = precision != "fp32"
        with torch.autocast(self.device.type, PRECISIONS[precision] if half else None, enabled=half):
            logits = self.wrapped(self._normalised(images))
        loss: Tensor = LOSSES[self.settings.loss](logits.float(), masks.float() / 255, known.float() / 255)
        value = loss.item()
        if not math.isfinite(value):
            raise self._not_finite("the loss", [one])
        self.state.scaler.scale(loss / self.settings.accumulate).backward()
        return value

    def _normalised(self, images: Tensor) -> Tensor:
        """Normalise (N, 3, h, w) uint8 to float32."""
        normalised = (images.float() - self._mean) / self._deviation
        return normalised.contiguous(memory_format=torch.channels_last)

    def _not_finite(self, what: str, passes: Sequence[Pass]) -> CarvanaBatchError:
        ids = ", ".join(shown(self.pairs[draw.index].id) for one in passes for draw in one.draws)
        return CarvanaBatchError(
            f"At step {self.state.step + 1} {what} is not finite; the photos were {ids}. The last checkpoint"
            f" is kept. Begin another RUN with a lower --lr or --precision fp32{self._init_hint()}."
        )

    def _init_hint(self) -> str:
        return f" and --init {shown(self.run.last)}" if self.run.last.exists() else ""


def is_too_small_for_batch_norm(error: ValueError) -> bool:
    """Whether batch norm refused a feature map with a single value per channel.

    torch has no class for it; this part of its message was seen in torch 2.13.0.
    """
    return "more than 1 value per channel" in str(error)
