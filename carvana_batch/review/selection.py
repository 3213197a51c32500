"""What a finished run left, and which of its masks are looked at."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from carvana_batch.errors import UsageError
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.report import MOST_DOUBT, doubt_of
from carvana_batch.text import shown

SAMPLE_SEED = 0
"""The sample is the same each time, so that a page that is made again shows the same masks."""

Z_95 = 1.96
"""Standard deviations on both sides of the mean that hold 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What the journals of an out folder say.

    Attributes:
        root: the out folder.
        masked: the entries of its masks, by decreasing doubt.
        failures: the entries of the photos without a mask, by key.
        kept: the entries of the photos with a mask that is not of a run but of the user, by key.
        upright: whether masks were turned upright by the EXIF orientation of their photos.
    """

    root: Path
    masked: Sequence[Entry] = field(repr=False)
    failures: Sequence[Entry] = field(repr=False)
    kept: Sequence[Entry] = field(repr=False)
    upright: bool = False

    @property
    def doubtful(self) -> int:
        """Number of masks that count as doubtful; see ``MOST_DOUBT``."""
        return sum(doubt_of(entry) > MOST_DOUBT for entry in self.masked)

    @property
    def has_doubt(self) -> bool:
        """Whether a second network has looked at the photos; otherwise doubt is that of the map alone."""
        return any(entry.doubt is not None for entry in self.masked)


@dataclass(frozen=True, slots=True)
class Selection:
    """The masks that are looked at.

    Attributes:
        worst: those of most doubt, by decreasing doubt.
        sample: some of the others, drawn at random.
        others: number of masks that are not among the worst.
        mean_doubt: mean doubt of these others; None if there are none.
    """

    worst: Sequence[Entry]
    sample: Sequence[Entry]
    others: int
    mean_doubt: float | None


def read_finished_run(root: Path) -> FinishedRun:
    """Read what a run, finished or not, has left in its out folder.

    Raises:
        UsageError: there is no such folder, or no run has masked anything there.
        CarvanaBatchError: a journal cannot be read.
    """
    paths = OutPaths(root)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UsageError(f"OUT {shown(root)} {what}. `carvana-batch predict` writes masks into `out`.")
    entries = sorted(read_entries(paths.state).values(), key=lambda entry: entry.key)
    if not entries:
        raise UsageError(
            f"There is no run of predict in {shown(root)}, so nothing says which masks are doubtful. Name the"
            " OUT of `carvana-batch predict`."
        )
    return FinishedRun(
        root,
        sorted((entry for entry in entries if entry.masked), key=lambda entry: -doubt_of(entry)),
        [entry for entry in entries if entry.failed],
        [entry for entry in entries if entry.kept],
        _read_exif_setting(paths) == "apply",
    )


def select(masked: Sequence[Entry], worst: int, sample: int) -> Selection:
    """Select masks to look at.

    Args:
        masked: the entries of all masks, by decreasing doubt.
        worst: how many of the most doubtful ones.
        sample: how many of the others; each of them is as likely to be drawn as any other.
    """
    others = masked[worst:]
    drawn = random.Random(SAMPLE_SEED).sample(range(len(others)), min(sample, len(others)))
    mean = fmean(map(doubt_of, others)) if others else None
    return Selection(masked[:worst], [others[index] for index in drawn], len(others), mean)


def wilson_interval(successes: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval for the share of successes, from a random sample of ``number``, at least 1."""
    share, spread = successes / number, Z_95**2 / number
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _read_exif_setting(paths: OutPaths) -> object:
    try:
        return json.loads(paths.settings.read_text(encoding="utf-8"))["settings"]["exif"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
