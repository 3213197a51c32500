"""Progress of a training run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from carvana_batch.commands.reporting import SECONDS_BETWEEN_DRAWINGS, SECONDS_BETWEEN_LINES, Screen

if TYPE_CHECKING:
    from carvana_batch.scoring.scores import Summary
    from carvana_batch.training.listener import TrainingListener

SMOOTHING = 0.95
"""Weight of the earlier losses in the moving average that is shown."""


class TrainingReporter(Screen):
    """Shows the progress of a training run to the user."""

    _work = ""
    _loss: float | None = None

    @property
    def listener(self) -> TrainingListener:
        """The callbacks to pass to the run."""
        from carvana_batch.training.listener import TrainingListener

        return TrainingListener(
            on_step=self._show_step, on_log=self._show_log, on_work=self._show_work, on_say=self.say
        )

    def _show_step(self, step: int, steps: int, loss: float, rate: float) -> None:
        self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        self._show("training", step, steps, f"loss {self._loss:.4f}, {rate:.1f} photos/s")

    def _show_work(self, work: str, done: int, total: int) -> None:
        self._show(work, done, total, "")

    def _show_log(self, line: dict[str, Any]) -> None:
        if "val" in line:
            self._end_bar()
            summary = line["val"]
            quantiles = "/".join(f"{summary[f'dice_{percent}']:.4f}" for percent in ("05", "50", "95"))
            self.say(
                f"epoch {line['epoch']:.2f}, step {line['step']:,}: val Dice {summary['dice']:.4f}"
                f" (5/50/95 %: {quantiles})"
            )
        elif self._bar is None and time.monotonic() - self._last_told >= SECONDS_BETWEEN_LINES:
            self._last_told = time.monotonic()
            self.say(
                f"epoch {line['epoch']:.2f}, step {line['step']:,}: loss {line['loss']:.4f},"
                f" {line['samples_per_second']:.1f} photos/s"
            )

    def _show(self, work: str, done: int, total: int, words: str) -> None:
        now = time.monotonic()
        if self.quiet or not sys.stderr.isatty():
            return
        if work != self._work or self._bar is None:
            self._end_bar()
            self._work = work
            self._bar = Progress(
                TextColumn(work),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[words]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(stderr=True),
                expand=True,
                transient=True,
                auto_refresh=False,  # a drawing thread could hold a lock while a worker is forked
            )
            self._task = self._bar.add_task("", total=total, words=words)
            self._bar.start()
        self._bar.update(self._task, completed=done, words=words)
        if done == total or now - self._last_told >= SECONDS_BETWEEN_DRAWINGS:
            self._last_told = now
            self._bar.refresh()


def describe_best(summary: Summary) -> str:
    """Format the table of a run's best validation."""
    rows = [
        ("Dice", f"{summary.dice:.4f}"),
        ("IoU", f"{summary.iou:.4f}"),
        ("pixel accuracy", f"{summary.pixel_accuracy:.4f}"),
        ("precision", f"{summary.precision:.4f}"),
        ("recall", f"{summary.recall:.4f}"),
        ("Dice 5 / 50 / 95 %", f"{summary.dice_05:.4f} / {summary.dice_50:.4f} / {summary.dice_95:.4f}"),
    ]
    lines = [f"best validation, {summary.images:,} photos at full resolution:"]
    return "\n".join(lines + [f"  {name:<20}{value}" for name, value in rows])
