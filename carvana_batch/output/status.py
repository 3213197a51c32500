"""Whether all runs of ``predict`` on an out folder have finished."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.lock import is_locked
from carvana_batch.output.paths import STATE_FOLDER, OutPaths


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of an out folder; counts are photos of all runs and shards together.

    Attributes:
        masked: photos with a mask that a run has made.
        failed: photos that failed and have no mask.
        left: photos that have neither, as far as it is known.
        running: whether a run holds the folder.
        cut_short: whether the last run ended without its report; also true during the first run.
        shards: (begun, all), None if it is not known.
        kept: keys of the photos with a mask that is not of a run but of the user.
    """

    masked: int
    failed: int
    left: int
    running: bool
    cut_short: bool
    shards: tuple[int, int] | None
    kept: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether nothing indicates that work is left."""
        begun, all_shards = self.shards or (1, 1)
        return not (self.running or self.cut_short or self.left) and begun == all_shards


def read_run_state(folder: Path) -> RunState | None:
    """The state of an out folder of ``predict``; None for any other folder.

    Not everything can be seen from outside: a run that was killed before its first photo was done leaves no
    trace, and a killed shard is only noticed if it has done less than the shard that ended last. Nothing is
    written, but the locks of the folder are held for a moment.
    """
    state = folder / STATE_FOLDER
    try:
        entries = list(read_entries(state).values()) if state.is_dir() else []
    except (CarvanaBatchError, OSError):  # an unreadable journal tells nothing
        entries = []
    if not entries:
        return None
    report = _read_json(folder / "run.json")
    shards = _count_shards(state)
    paths = OutPaths(folder)
    others = [entry for entry in entries if not entry.masked]
    kept = tuple(sorted(entry.key for entry in others if os.path.lexists(paths.mask(entry.key))))
    return RunState(
        masked=len(entries) - len(others),
        failed=len(others) - len(kept),
        left=_count_left(report, entries, shards),
        running=is_held(state),
        cut_short=report is None or _count_rows(folder / "report.csv") < len(entries),
        shards=shards,
        kept=kept,
    )


def _count_left(
    report: dict[str, int] | None, entries: Sequence[Entry], shards: tuple[int, int] | None
) -> int:
    """Lower limit of the number of photos left; ``report``: of the shard that ended last."""
    if report is None or shards is None:
        return 0
    if shards[1] == 1:
        return report["left"]
    # The other shards have as many photos as this one, or one fewer.
    least = report["found"] + (shards[1] - 1) * (report["found"] - 1)
    return max(least + report["masks_of_other_photos"] - len(entries), 0)


def _count_shards(state: Path) -> tuple[int, int] | None:
    """Number of shards that were begun, and of all; None if runs have divided the work differently."""
    parts = [path.name.removeprefix("lock-").split("-of-") for path in state.glob("lock-*-of-*")]
    counts = {count for _, count in parts}
    if len(counts) != 1 or not (count := counts.pop()).isdecimal():
        return None
    return len(parts), int(count)


def is_held(state: Path) -> bool:
    """Whether a run holds the out folder, or one of its shards."""
    for path in sorted(state.glob("lock-*-of-*")):
        try:
            if is_locked(path, patience=0):
                return True
        except OSError:  # for example on a read-only disk, where no run can be working
            continue
    return False


def _read_json(path: Path) -> dict[str, int] | None:
    """The counts in a ``run.json``; None if it is missing or not valid."""
    names = ("found", "left", "masks_of_other_photos")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: int(content[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _count_rows(report: Path) -> int:
    try:
        with report.open(encoding="utf-8", errors="replace", newline="") as file:
            return sum(1 for row in csv.reader(file) if row) - 1
    except (OSError, csv.Error):
        return 0
