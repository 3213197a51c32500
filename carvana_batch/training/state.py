"""What the steps of a training run change, which is what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from carvana_batch.network import NETWORKS
from carvana_batch.network.model import Model
from carvana_batch.scoring.scores import Score, Summary
from carvana_batch.training.optimisation import WeightAverage, make_optimizer
from carvana_batch.training.settings import TrainingSettings
from carvana_batch.training.starting import unusable_checkpoint

WORST_KEPT = 6
"""Number of photos with the lowest Dice that are drawn at the end."""


class TrainingState:
    """The state of a training run.

    Args:
        model: the network to train, and what its input must look like.
        precision: number format of the forward pass.
        settings: settings of the run.
        device: where the network runs.

    Attributes:
        network: the network in training mode, on the device.
        scaler: scales the gradients in fp16 and does nothing otherwise.
        average: the moving average of the weights, which is validated and written.
        step: number of steps taken.
        seconds: that the run has taken so far, those of earlier processes of it included.
        validated: the step after which the weights were last validated, 0 before the first validation.
        validations_since_best: number of validations since the best one.
        best: the best validation so far.
        worst: ids of the photos with the lowest Dice in the best validation.
        losses: those since the last line of the log.
    """

    def __init__(
        self, model: Model, precision: str, settings: TrainingSettings, device: torch.device
    ) -> None:
        self.model, self.precision = model, precision
        self.network = model.network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.average = WeightAverage(self.network, settings.ema)
        self.step = self.validated = self.validations_since_best = 0
        self.seconds = 0.0
        self.best: Summary | None = None
        self.worst: list[str] = []
        self.losses: list[float] = []

    def averaged_model(self) -> Model:
        """Return a copy of the model with the averaged weights, in evaluation mode."""
        model = self.model
        network = NETWORKS[model.name]()
        network.load_state_dict(self.average.state)
        return Model(
            model.name, network.eval(), model.mean, model.deviation, "", size=model.size, scale=model.scale
        )

    def add_validation(self, summary: Summary, scores: Sequence[Score]) -> bool:
        """Record the validation of the present weights.

        Returns:
            Whether it is the best so far.
        """
        self.validated = self.step
        better = self.best is None or summary.dice > self.best.dice
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        if better:
            self.best = summary
            self.worst = [score.image for score in sorted(scores, key=lambda score: score.dice)[:WORST_KEPT]]
        return better

    def to_checkpoint(self) -> dict[str, Any]:
        """Return what ``torch.save`` writes; see :meth:`restore`."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state,
            "mean": self.model.mean,
            "deviation": self.model.deviation,
            "scale": self.model.scale,
            "notes": self.model.notes,
            "precision": self.precision,
            "step": self.step,
            "seconds": self.seconds,
            "validated": self.validated,
            "validations_since_best": self.validations_since_best,
            "best": None if self.best is None else asdict(self.best),
            "worst": self.worst,
            "losses": self.losses,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Restore everything but the model and the precision, which the constructor takes.

        Raises:
            UsageError: the checkpoint is of another version or network.
        """
        try:
            self.network.load_state_dict(checkpoint["network"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.scaler.load_state_dict(checkpoint["scaler"])
            self.average.load(checkpoint["average"])
            self.step, self.validated = checkpoint["step"], checkpoint["validated"]
            self.seconds = checkpoint.get("seconds", 0.0)  # version 0.2.0 did not record it
            self.validations_since_best = checkpoint["validations_since_best"]
            self.best = None if checkpoint["best"] is None else Summary(**checkpoint["best"])
            self.worst, self.losses = list(checkpoint["worst"]), list(checkpoint["losses"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise unusable_checkpoint(error) from error
