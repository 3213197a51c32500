"""What `predict` prints: a progress bar on a terminal, plain lines elsewhere, and the final summary."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.commands.lines import fit, say
from carvana_batch.commands.notebook_bar import NotebookBar, in_notebook
from carvana_batch.commands.predict_input import STANDARD
from carvana_batch.inputs.find import take_shard
from carvana_batch.notes import SUMMARIES
from carvana_batch.options import Options
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.remote import Remote
from carvana_batch.text import counted, shown
from carvana_batch.values import ImageRef

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from carvana_batch.output.report import RunReport
    from carvana_batch.run import Listener, Progress

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_DRAWINGS = 0.1
NAMES_SHOWN = 10
PLANNED_SHOWN = 5
WARNING = "Warning: "
SHOW_CURSOR = b"\x1b[?25h"
STAGE_WORDS = {"decode": "waiting for photos", "predict": "network", "write": "waiting for writers"}


class Screen:
    """Prints lines above a progress bar on stderr; a context manager that removes the bar at its end.

    Args:
        quiet: print nothing but errors.
        to_stderr: print lines to stderr, so that stdout only holds JSON.
        in_words: puts a line into the words of the user, such as the paths of temporary files.
    """

    def __init__(self, quiet: bool, to_stderr: bool = False, in_words: Callable[[str], str] = str) -> None:
        self.quiet, self.to_stderr, self.in_words = quiet, to_stderr, in_words
        self._bar: RichProgress | None = None
        self._last_told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def say(self, line: str) -> None:
        """Print a line; one that begins with ``WARNING`` goes to stderr, as those of all commands do."""
        if self.quiet:
            return
        line = self.in_words(line)
        if self._bar is not None:
            line = fit(line, err=True)
            self._bar.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            say(line, err=self.to_stderr or line.startswith(WARNING))

    def complain(self, line: str) -> None:
        """Print a line to stderr, even if this is quiet."""
        say(self.in_words(line), err=True)

    def restore_terminal(self) -> None:
        """Show the cursor, which the progress bar hides, before the process exits at once."""
        if self._bar is not None:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(sys.stderr.fileno(), SHOW_CURSOR)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Reporter(Screen):
    """Prints the progress of a run of `predict`."""

    def __init__(self, quiet: bool, to_stderr: bool, in_words: Callable[[str], str] = str) -> None:
        super().__init__(quiet, to_stderr, in_words)
        self._began = self._last_told
        self._notebook: NotebookBar | None = None

    @property
    def listener(self) -> Listener:
        """Callbacks that print the progress of a run."""
        from carvana_batch.run import Listener

        return Listener(self.say, self._start, self._show)

    def _start(self, line: str, progress: Progress) -> None:
        self.say(line)
        self._began = self._last_told = time.monotonic()
        if self.quiet:
            return
        if in_notebook():
            self._notebook = NotebookBar(progress.total)
        elif sys.stderr.isatty():
            self._bar = self._start_bar(progress.total)

    def _start_bar(self, total: int) -> RichProgress:
        """Start a bar on the terminal, with a single task."""
        # Where there is no bar, there is no need to wait for this import either.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[failures]}"),
            TextColumn("{task.fields[nodes]}"),
            console=Console(stderr=True),
            expand=True,
            auto_refresh=False,  # a drawing thread could hold a lock while a worker is forked
        )
        bar.add_task("", total=total, rate="", failures="", nodes="")
        bar.start()
        return bar

    def _show(self, progress: Progress) -> None:
        finished = progress.finished
        now = time.monotonic()
        rate = finished / max(now - self._began, 1e-9)
        failures = f"{progress.failed:,} failed" if progress.failed else ""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=finished, rate=f"{rate:.1f}/s", failures=failures)
            if now - self._last_told >= SECONDS_BETWEEN_DRAWINGS:
                self._bar.update(task, nodes=progress.describe_nodes())
                self._last_told = now
                self._bar.refresh()
        elif self._notebook is not None:
            if now - self._last_told >= SECONDS_BETWEEN_DRAWINGS or finished == progress.total:
                self._last_told = now
                self._notebook.update(finished, f"{rate:.1f}/s {failures}".rstrip())
        elif now - self._last_told >= SECONDS_BETWEEN_LINES:
            self._last_told = now
            left = timedelta(seconds=round((progress.total - finished) / rate))
            words = [f"{finished:,} of {progress.total:,} photos", f"{rate:.1f}/s", f"{left} left", failures]
            words.append(progress.describe_nodes())
            if not self.quiet:
                click.echo(", ".join(word for word in words if word), err=True)


def print_plan(
    refs: Sequence[ImageRef],
    out: Path,
    mask_file: bool,
    options: Options,
    reporter: Reporter,
    as_json: bool,
    remote: Remote,
) -> None:
    """Print what a run would do, without loading a model or writing anything."""
    own = take_shard(refs, *options.shard)
    folder = OutFolder(out, options.settings("unknown"), options.shard, options.overwrite, remote=remote)
    if not (mask_file or options.overwrite):
        folder.read_settings(skipped=["model"])
    todo = own if mask_file else folder.find_missing(own, ["model"], options.verify)
    todo = todo.select(i for i, ref in enumerate(todo) if ref.key not in folder.undrawn)
    done = len(own) - len(todo)
    if as_json:
        click.echo(json.dumps({"found": len(own), "already_done": done, "to_do": len(todo)}))
    reporter.say(f"{counted(len(own), 'photo')}, {done:,} of them done already, {len(todo):,} to do")
    if folder.undrawn:
        drawn = counted(len(folder.undrawn), "photo")
        reporter.say(f"Only extra files, from photo and mask, without the network: {drawn}")
    if folder.overwriting is not None and (line := folder.overwriting.describe()):
        reporter.say(line)
    for ref in todo[:PLANNED_SHOWN]:
        mask = out if mask_file else folder.paths.mask(ref.key)
        reporter.say(f"  {shown(ref.path)} -> {shown(mask)}")
    if len(todo) > PLANNED_SHOWN:
        reporter.say(f"  ... and {len(todo) - PLANNED_SHOWN:,} more")
    reporter.say("Dry run: nothing was written; the model was not looked at.")


def print_report(
    report: RunReport, out: Path | BucketUrl, reporter: Reporter, mask_file: bool = False
) -> None:
    """Print the summary of a run. The names of failed photos are printed even with --quiet.

    Args:
        report: the summary.
        out: OUT.
        reporter: prints.
        mask_file: OUT is the file of a mask, or - for the standard output, so that no report is written.
    """
    see = "" if mask_file else f"; see {shown(out / 'report.csv')}"
    for warning in report.warnings:
        reporter.say(f"Warning: {warning}")
    for entry in report.failures[:NAMES_SHOWN]:
        reporter.complain(f"failed: {shown(entry.source)} ({entry.stage}): {shown(entry.reason)}")
    if len(report.failures) > NAMES_SHOWN:
        reporter.complain(
            f"failed: {len(report.failures) - NAMES_SHOWN:,} more, all in {shown(out / 'report.csv')}"
        )
    for failure in report.undrawn[:NAMES_SHOWN]:
        reporter.complain(f"no extra files: {shown(failure.source)}: {shown(failure.reason)}")
    if len(report.undrawn) > NAMES_SHOWN:
        reporter.complain(f"no extra files: {len(report.undrawn) - NAMES_SHOWN:,} more")
    for entry in report.without_truth[:NAMES_SHOWN]:
        reporter.complain(f"not scored: {shown(entry.key)}: {shown(entry.reason)}")
    if len(report.without_truth) > NAMES_SHOWN:
        reporter.complain(f"not scored: {len(report.without_truth) - NAMES_SHOWN:,} more")
    if report.kept:
        names = ", ".join(shown(f"{entry.key}.png") for entry in report.kept[:NAMES_SHOWN])
        more = ", ..." if len(report.kept) > NAMES_SHOWN else ""
        reporter.say(
            f"Warning: kept, because predict did not make {'it' if len(report.kept) == 1 else 'them'}:"
            f" {names}{more}. --overwrite replaces such masks."
        )
    counts = [f"{report.done:,} masked", f"{len(report.failures):,} failed"]
    if report.already_done:
        counts.insert(1, f"{report.already_done:,} done before")
    if report.kept:
        counts.append(f"{len(report.kept):,} kept")
    if report.left:
        counts.append(f"{report.left:,} left")
    where = "standard output" if out == STANDARD else shown(out)
    doubt = "; none is doubtful" if report.has_doubt and not report.doubtful else ""
    reporter.say(", ".join(counts) + f" -> {where}{doubt}")
    if report.drawn:
        reporter.say(
            f"Extra files made from photo and mask, without the network: {counted(report.drawn, 'photo')}"
        )
    if report.foreign:
        reporter.say(f"{shown(out)} also holds masks of {counted(report.foreign, 'other photo')}")
    if report.empty:
        names = ", ".join(shown(Path(entry.source).name) for entry in report.empty[:NAMES_SHOWN])
        more = ", ..." if len(report.empty) > NAMES_SHOWN else ""
        reporter.say(f"Masks without any car: {counted(len(report.empty), 'photo')} ({names}{more})")
    for note, number in report.notes.items():
        reporter.say(SUMMARIES[note].format(photos=counted(number, "photo"), see=see))
    if report.dice_summary is not None:
        dice = report.dice_summary
        reporter.say(
            f"Dice: mean {dice['mean']:.4f},"
            f" 5 % {dice['p05']:.4f}, 50 % {dice['p50']:.4f}, 95 % {dice['p95']:.4f}"
        )
        if report.correlation is not None:
            reporter.say(f"rank correlation of Dice and the order in report.csv: {report.correlation:.2f}")
    if report.doubtful:
        masked = report.done + report.already_done
        verb = "looks" if report.doubtful == 1 else "look"
        reporter.say(
            f"{report.doubtful:,} of {counted(masked, 'photo')} {verb} unlike those that the model was"
            f" trained on{see}"
        )
    if report.done:
        total = sum(report.stages.values())
        shares = ", ".join(
            f"{STAGE_WORDS[stage]} {seconds / total:.0%}" for stage, seconds in report.stages.items()
        )
        reporter.say(f"{report.photos_per_second:.2f} photos/s; time: {shares}")
        reporter.say(
            f"bottleneck: {STAGE_WORDS[report.bottleneck]}; peak memory {report.peak_memory / 1e9:.2f} GB"
        )
