"""Optimizer, learning rate schedule, and moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from carvana_batch.training.settings import TrainingSettings

FINAL_RATE_SHARE = 0.01
"""Learning rate at the end of a falling schedule, relative to the highest."""


def make_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Make Adam or AdamW, without weight decay for biases and batch norms."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr)


def learning_rate_at(step: int, steps: int, settings: TrainingSettings, share: float = 0.0) -> float:
    """Return the learning rate of a step.

    It rises linearly during the warm-up, which takes at most a tenth of all steps. Then it falls according to
    the schedule, down to 1 % of the highest rate.

    Args:
        step: the step, counted from 0.
        steps: number of steps of the whole run.
        settings: settings of the run.
        share: of its time that has passed, if it ends after some minutes; counts if it is more than that of
            the steps.
    """
    warm_up = min(settings.warm_up, steps // 10)
    if step < warm_up:
        return settings.lr * (step + 1) / warm_up
    progress = min(1.0, max(share, (step - warm_up) / max(1, steps - warm_up)))
    if settings.schedule == "constant":
        return settings.lr
    remaining = 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * remaining)


class WeightAverage:
    """Exponential moving average of a network's weights and buffers.

    After n steps, the decay is at most (1 + n) / (10 + n), so that the random initial weights are soon
    forgotten.

    Args:
        network: the network, with its initial weights.
        decay: weight of the previous average per step.

    Attributes:
        state: state dict of the averaged weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        """Update the average with the weights after ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def load(self, state: dict[str, Tensor]) -> None:
        """Replace the average by ``state``."""
        for name, value in state.items():
            self.state[name].copy_(value)
