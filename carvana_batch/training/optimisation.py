"""Optimizer, schedule of the learning rate, and moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from carvana_batch.training.settings import TrainingSettings

LOWEST_SHARE = 0.01
"""The learning rate that a falling schedule ends with, relative to the highest."""


def make_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Adam or AdamW; biases and batch norms are not decayed."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.lr)


def learning_rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """The rate of a step, counted from 0: linear warm-up, in a tenth of the steps at most, then the schedule
    down to 1 % of the peak."""
    warm_up = min(settings.warm_up, steps // 10)
    if step < warm_up:
        return settings.lr * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    if settings.schedule == "constant":
        return settings.lr
    left = 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (LOWEST_SHARE + (1 - LOWEST_SHARE) * left)


class WeightAverage:
    """Exponential moving average of a network's weights and buffers; ``state`` is its state dict.

    The first steps weigh less: after n steps the decay is at most (1 + n) / (10 + n), so that the random
    weights of the beginning are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.state[name].copy_(value)
