"""What a training run reports while it goes on, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from carvana_batch.scoring.scores import Summary


@dataclass
class TrainingListener:
    """What the caller wants to hear while a run goes on.

    on_step(step, steps, loss, samples a second); on_log(line of the log); on_work(what, done, total) while
    photos are read or validated; on_say(a line for the user).
    """

    on_step: Callable[[int, int, float, float], object] = lambda *_: None
    on_log: Callable[[dict[str, Any]], object] = lambda _: None
    on_work: Callable[[str, int, int], object] = lambda *_: None
    on_say: Callable[[str], object] = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: at which of its steps, its best validation, and the signal that stopped it, if any."""

    step: int
    steps: int
    best: Summary | None
    stopped_by: int | None = None

    @property
    def stopped_early(self) -> bool:
        """Whether validation had not improved for long enough."""
        return self.stopped_by is None and self.step < self.steps
