"""The report of a run: counts, throughput, the bottleneck, the exit code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carvana_batch import __version__
from carvana_batch.errors import EXIT_SOME_FAILED
from carvana_batch.files import atomic_writer, table_cell, write_row
from carvana_batch.notes import TRUE_MASK, Note
from carvana_batch.output.journal import Entry
from carvana_batch.text import counted
from carvana_batch.values import Failure, ImageRef


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Compute Spearman's rank correlation; equal values share their mean rank.

    Returns:
        The correlation in [-1, 1]; None if it is not defined, because there are fewer than two pairs or all
        values of one sequence are equal.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """The rank of each value, counted from 1; equal values share their mean rank."""
    _, indexes, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return ranks[indexes]


MOST_DOUBT = 0.03
"""Masks of more doubt are counted as doubtful: their Dice is estimated to be less than 0.97."""

COLUMNS = (
    "image",
    "status",
    "expected_dice",
    "doubt",
    "dice",
    "car_share",
    "width",
    "height",
    "stage",
    "reason",
    "notes",
)


@dataclass
class RunReport:
    """The result of a run. Counts are of photos, times are in seconds, memory is in bytes.

    Attributes:
        found: photos of this run.
        already_done: photos that earlier runs have masked.
        done: photos that this run has masked.
        failures: journal entries of the photos without a mask.
        kept: journal entries of the photos with a mask that is not of a run but of the user.
        drawn: photos of earlier runs that have got further extra files.
        undrawn: why photos of earlier runs have not got them.
        without_truth: journal entries of the photos that could not be compared with a true mask.
        empty: journal entries of the photos whose masks have no car.
        notes: number of masked photos with each kind of note, without those of 0.
        foreign: number of masks of other photos in the out folder.
        expected_dice: expected Dice of each mask, in [0, 1]; see :class:`Prediction`.
        doubtful: number of masks whose doubt is more than ``MOST_DOUBT``.
        has_doubt: whether there are masks, and the doubt of each is known.
        dice: Dice of each mask with its true mask, in [0, 1].
        correlation: rank correlation of true Dice and what the table is sorted by; None without truth.
        seconds: time from the start of the first photo to the last mask.
        stages: time of the main thread by what it waited for (decode, write) or did (predict).
        decode_seconds: total time of all workers, which decode in parallel.
        write_seconds: total time of all writer threads.
        peak_memory: the most main memory that a process with a network, or the main process, has held.
        device: description of the device.
        engine: what masked the photos; see :class:`Summary` of the engines.
        chosen: the fields of the :class:`Choice` of this run.
        settings: see :meth:`Options.settings`.
        options: see :attr:`Options.given`.
        images: absolute path of IN; "" if the photos were listed.
        directory: where relative paths of photos start; "" if it is not known.
        warnings: warnings that were printed.
        stopped_by: number of the signal that stopped the run, None if none did.
    """

    found: int
    already_done: int
    done: int = 0
    failures: list[Entry] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    drawn: int = 0
    undrawn: list[Failure] = field(default_factory=list)
    without_truth: list[Entry] = field(default_factory=list)
    empty: list[Entry] = field(default_factory=list)
    notes: dict[Note, int] = field(default_factory=dict)
    foreign: int = 0
    expected_dice: list[float] = field(default_factory=list)
    doubtful: int = 0
    has_doubt: bool = False
    dice: list[float] = field(default_factory=list)
    correlation: float | None = None
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    decode_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_memory: int = 0
    device: str = ""
    engine: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    images: str = ""
    directory: str = ""
    warnings: list[str] = field(default_factory=list)
    stopped_by: int | None = None

    def __repr__(self) -> str:
        """The counts; all the rest is in :meth:`describe`."""
        counts = {
            "masked": self.done,
            "done before": self.already_done,
            "failed": len(self.failures),
            "kept": len(self.kept),
            "left": self.left,
            "doubtful": self.doubtful,
        }
        words = [f"{count:,} {name}" for name, count in counts.items() if count or name == "masked"]
        return f"<RunReport of {counted(self.found, 'photo')}: {', '.join(words)}>"

    @property
    def left(self) -> int:
        """Number of photos that a stopped run did not reach, without those that failed in an earlier run."""
        return max(self.found - self.already_done - self.done - len(self.failures) - len(self.kept), 0)

    @property
    def photos_per_second(self) -> float:
        """Masks per second since the first photo of this run; 0 if it made none."""
        return self.done / self.seconds if self.done else 0.0

    @property
    def bottleneck(self) -> str:
        """The stage that took the most time of the main thread; empty if there was none."""
        return max(self.stages, key=lambda stage: self.stages[stage]) if self.stages else ""

    @property
    def exit_code(self) -> int:
        """The exit code of the command; 128 + signal number for a stopped run."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return EXIT_SOME_FAILED if self.failures or self.without_truth or self.undrawn else 0

    @property
    def dice_summary(self) -> dict[str, float] | None:
        """Mean and 5th, 50th and 95th percentiles of the Dice with the true masks; None without truth."""
        if not self.dice:
            return None
        low, middle, high = np.percentile(self.dice, [5, 50, 95]).tolist()
        return {"mean": float(np.mean(self.dice)), "p05": low, "p50": middle, "p95": high}

    def describe(self) -> dict[str, Any]:
        """The content of ``run.json`` and of ``--json``."""
        return {
            "version": __version__,
            "exit_code": self.exit_code,
            "found": self.found,
            "already_done": self.already_done,
            "done": self.done,
            "failed": len(self.failures),
            "left": self.left,
            "failures": [
                {"image": entry.source, "stage": entry.stage, "reason": entry.reason}
                for entry in self.failures
            ],
            "kept": [entry.key for entry in self.kept],
            "drawn": self.drawn,
            "undrawn": [{"image": failure.source, "reason": failure.reason} for failure in self.undrawn],
            "without_truth": [entry.key for entry in self.without_truth],
            "empty": [entry.key for entry in self.empty],
            "notes": self.notes,
            "masks_of_other_photos": self.foreign,
            "mean_expected_dice": float(np.mean(self.expected_dice)) if self.expected_dice else None,
            "doubtful": self.doubtful,
            "dice": self.dice_summary,
            "doubt_rank_correlation": self.correlation,
            "seconds": round(self.seconds, 3),
            "photos_per_second": round(self.photos_per_second, 3),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.stages.items()},
            "decode_seconds": round(self.decode_seconds, 3),
            "write_seconds": round(self.write_seconds, 3),
            "bottleneck": self.bottleneck,
            "peak_memory_bytes": self.peak_memory,
            "device": self.device,
            "engine": self.engine,
            "chosen": self.chosen,
            "settings": self.settings,
            "options": self.options,
            "images": self.images or None,
            "directory": self.directory or None,
            "warnings": self.warnings,
        }

    def complete(
        self,
        journal: Mapping[str, Entry],
        own: Sequence[ImageRef],
        refs: Sequence[ImageRef],
        with_truth: bool,
    ) -> list[Entry]:
        """Fill in what the journal says.

        Args:
            journal: the entries of all photos by key.
            own: the photos of this shard.
            refs: the photos of all shards.
            with_truth: whether masks were compared with true ones.

        Returns:
            The entries of this shard's masks.
        """
        entries = [journal[ref.key] for ref in own if ref.key in journal]
        masked = [entry for entry in entries if entry.masked]
        all_masks = sum(not entry.failed for entry in journal.values())
        self.foreign = all_masks - sum(not journal[ref.key].failed for ref in refs if ref.key in journal)
        self.kept = [entry for entry in entries if entry.kept]
        self.failures = [entry for entry in entries if entry.failed]
        self.empty = [entry for entry in masked if entry.car_share == 0]
        counts = Counter(note for entry in masked for note in entry.notes)
        said = [note for note in Note if with_truth or note not in TRUE_MASK]
        self.notes = {note: counts[note] for note in said if counts[note]}
        self.expected_dice = [entry.expected_dice for entry in masked if entry.expected_dice is not None]
        self.doubtful = sum(entry.doubt is not None and entry.doubt > MOST_DOUBT for entry in masked)
        self.has_doubt = bool(masked) and all(entry.doubt is not None for entry in masked)
        if with_truth:
            scored = [entry for entry in masked if entry.dice is not None]
            self.dice = [entry.dice or 0.0 for entry in scored]
            self.correlation = rank_correlation([-doubt_of(entry) for entry in scored], self.dice)
            self.without_truth = [entry for entry in masked if entry.dice is None]
        return masked

    def write(self, path: Path) -> None:
        """Write ``run.json``, completely or not at all.

        Raises:
            CarvanaBatchError: see :func:`atomic_writer`.
        """
        with atomic_writer(path, "w") as file:
            json.dump(self.describe(), file, indent=2)


def doubt_of(entry: Entry) -> float:
    """What the table is sorted by, in [0, 1]: the doubt, or that of the probability map if there is none."""
    return 1 - (entry.expected_dice or 0.0) if entry.doubt is None else entry.doubt


def _describe(note: Note, entry: Entry) -> str:
    return f"{note}: {entry.damage}" if note is Note.DAMAGED and entry.damage else note


def write_table(path: Path, entries: Iterable[Entry]) -> None:
    """Write ``report.csv``, one row per photo: failures first, then by decreasing doubt.

    Without a second network there is no doubt, and the order is that of increasing expected Dice.

    The status is done, failed, or kept, if the mask is not of a run but of the user.
    ``car_share`` is the part of the photo that the mask covers, in [0, 1]; several notes are separated by
    semicolons. See :func:`table_cell` for what may differ in names and reasons.

    Raises:
        CarvanaBatchError: see :func:`atomic_writer`.
    """
    with atomic_writer(path, "w") as file:
        write_row(file, COLUMNS)
        for entry in sorted(entries, key=lambda entry: (not entry.failed, -doubt_of(entry), entry.key)):
            write_row(
                file,
                (
                    table_cell(entry.key),
                    "failed" if entry.failed else "kept" if entry.kept else "done",
                    *(
                        _decimal(value)
                        for value in (entry.expected_dice, entry.doubt, entry.dice, entry.car_share)
                    ),
                    entry.width or "",
                    entry.height or "",
                    entry.stage,
                    table_cell(entry.reason),
                    table_cell("; ".join(_describe(note, entry) for note in entry.notes)),
                ),
            )


def _decimal(value: float | None) -> str:
    """A number with six decimals; empty for None."""
    return "" if value is None else f"{value:.6f}"
