"""Whether run-length rows fit the size and the order of pixels that they are read with.

A row says neither. Read with the right ones, the runs of neighbouring lines of a mask lie next to each other;
otherwise the mask comes apart into stripes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from carvana_batch.masks import rle

SAMPLE = 24
"""Rows that are enough to judge all rows of a file."""

MIN_RUNS = 16
"""Fewer runs than these say little."""

MIN_LINE = 16
"""Shorter lines than these are not considered: small shifts of any mask fit well."""

MAX_MISFIT = 1.5
"""A line fits worse than another one if this many times as many pixels differ between neighbouring lines."""

MIN_SHARE = 0.6
"""Share of the rows that must agree."""

SIMILAR, MIN_SIMILAR = 0.05, 3
"""If two lengths differ by less than this share, a slanted mask may fit both: so many rows must agree."""

NEAR, MAX_NEAR_MISFIT, NOISE = 2, 1.05, 3
"""Lines that differ by so few pixels shear a mask a little, so less misfit than ``MAX_MISFIT`` counts if rows
agree; it must exceed this many standard deviations of what random pixels would cause."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """What rows fit better than the size and order that they are read with.

    Attributes:
        line: pixels from a line of the masks to the next.
        columns: whether that is the height, so that pixels seem to be counted down the columns.
        rows: number of rows that say so.
        judged: number of rows that were judged.
    """

    line: int
    columns: bool
    rows: int
    judged: int


def find_misfit(rows: Iterable[tuple[str, tuple[int, int]]]) -> Misfit | None:
    """Judge a sample of run-length rows together.

    Rows that are invalid, or have too few runs, are not judged.

    Args:
        rows: each row with the (width, height) that it is read with.

    Returns:
        What fits better, or None if they fit, or do not agree on anything else.
    """
    votes: Counter[tuple[bool, int]] = Counter()
    similar: Counter[tuple[bool, int]] = Counter()
    for text, (width, height) in rows:
        try:
            runs = rle.parse(text, height, width)
        except rle.RunLengthError:
            continue
        if len(runs) < MIN_RUNS:
            continue
        line = find_line(runs, width, height)
        vote = line == height != width, line if line != width else 0
        votes[vote] += 1
        similar[vote] += is_similar(line, width)
    judged = votes.total()
    if not judged:
        return None
    (columns, line), agreeing = votes.most_common(1)[0]
    enough = MIN_SIMILAR if similar[columns, line] else 1
    if not line or agreeing < max(MIN_SHARE * judged, enough):
        return None
    return Misfit(line, columns, agreeing, judged)


def find_line(runs: NDArray[np.int64], width: int, height: int) -> int:
    """Find the length of line for which the runs of neighbouring lines fit each other best.

    Args:
        runs: (N, 2), start and exclusive end of each run.
        width: the length that is preferred, unless another one fits clearly better.
        height: another length to try, beside those near ``width`` and the most frequent distances between
            runs.
    """
    starts = runs[:, 0]
    steps = np.concatenate([starts[lag:] - starts[:-lag] for lag in range(1, 5)])
    lengths, counts = np.unique(steps[steps >= MIN_LINE], return_counts=True)
    frequent = lengths[np.argsort(-counts, kind="stable")[:4]].tolist()
    near = range(max(width - NEAR, MIN_LINE), width + NEAR + 1)
    misfits = {length: measure_misfit(runs, length) for length in (width, height, *near, *frequent)}
    best = min(misfits, key=lambda length: misfits[length])
    least = misfits[best]
    if abs(best - width) <= NEAR:
        limit = max(MAX_NEAR_MISFIT * least, least + NOISE * sqrt(least))
    else:
        limit = max(MAX_MISFIT * least, least + len(runs))
    return best if misfits[width] > limit else width


def find_clear_line(runs: NDArray[np.int64], width: int, height: int) -> int:
    """The same for a single row, where no others agree: only a line that differs a lot is an alternative."""
    if len(runs) < MIN_RUNS:
        return width
    line = find_line(runs, width, height)
    return width if is_similar(line, width) else line


def fits_swapped(runs: NDArray[np.int64], width: int, height: int) -> bool:
    """Whether a row clearly is of a mask of ``height`` times ``width`` pixels, so that its sides are swapped.

    Such a row cannot be told from one that counts the pixels of ``width`` times ``height`` down the columns.
    """
    return width != height and find_clear_line(runs, width, height) == height


def is_similar(line: int, other: int) -> bool:
    """Whether a slanted mask may fit both lengths of line."""
    return abs(line - other) < SIMILAR * other


def measure_misfit(runs: NDArray[np.int64], line: int) -> int:
    """Count the pixels that differ from the one ``line`` pixels before or after, from the runs alone."""
    lengths = runs[:, 1] - runs[:, 0]
    total = lengths.sum()
    after = lengths.cumsum()
    # Foreground pixels before each end of a run, which in between grows linearly, or not at all.
    before_edges = np.stack([after - lengths, after], axis=1).ravel()
    starts, ends = (np.interp(edge + line, runs.ravel(), before_edges) for edge in runs.T)
    return 2 * int(total - (ends - starts).sum())
