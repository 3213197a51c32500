"""What a training run reports while it runs, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from carvana_batch.scoring.scores import Summary


@dataclass
class TrainingListener:
    """Callbacks for the progress of a run.

    Attributes:
        on_step: called after each step with the step, the number of steps, the loss, and samples per second.
        on_log: called with each line of the log.
        on_work: called with the kind of work, the photos done and their total while photos are checked, read
            or validated.
        on_say: called with each line for the user.
    """

    on_step: Callable[[int, int, float, float], object] = lambda *_: None
    on_log: Callable[[dict[str, Any]], object] = lambda _: None
    on_work: Callable[[str, int, int], object] = lambda *_: None
    on_say: Callable[[str], object] = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: the last step that was taken.
        steps: number of steps of the whole run.
        best: the best validation.
        stopped_by: number of the signal that stopped the run, or None.
        pictures: names of the pictures of the results that were drawn.
        is_time_up: whether the run ended because its minutes were over.
    """

    step: int
    steps: int
    best: Summary | None
    stopped_by: int | None = None
    pictures: tuple[str, ...] = ()
    is_time_up: bool = False

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended early because validation no longer improved."""
        return self.stopped_by is None and self.step < self.steps and not self.is_time_up
