"""Cleaning: what is too small to be a part of a car, or a hole in it, is removed from a mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from carvana_batch.masks.morphology import find_pixels, shift_right
from carvana_batch.values import PackedMask

SMALLEST_PIECE = 1e-4
"""Connected pixels that are fewer than this share of the largest part are removed wherever they are."""

SMALLEST_PART = 1e-2
"""Parts that are smaller than this share of the largest one are removed."""

SMALLEST_HOLE = 1e-4
"""Holes that are smaller than this share of the largest part are filled."""

NEAR = 1 / 240
"""Pieces that are at most this share of the long side of the photo apart are one part, as an antenna is whose
foot is too thin to be seen: 8 of 1918 pixels."""

Numbers = NDArray[np.int64]


class Runs(NamedTuple):
    """Horizontal runs of pixels in row-major order, each array (N,).

    Attributes:
        row: in which the run is.
        start: its first column.
        end: the column after its last.
    """

    row: Numbers
    start: Numbers
    end: Numbers

    def select(self, chosen: NDArray[np.bool_]) -> Runs:
        """Some of the runs; ``chosen``: (N,)."""
        return Runs(self.row[chosen], self.start[chosen], self.end[chosen])


def clean(mask: PackedMask) -> PackedMask:
    """Remove specks from a mask, and fill holes that are specks.

    First, pieces of fewer pixels than ``SMALLEST_PIECE`` of the largest part are removed; then parts, which
    are pieces ``NEAR`` each other, of fewer than ``SMALLEST_PART``; then holes of fewer than
    ``SMALLEST_HOLE`` are filled. Pieces are connected at sides or corners, and holes at sides.

    Returns:
        The clean mask; the same object if nothing was removed.
    """
    runs = find_runs(mask)
    near = max(1, round(NEAR * max(mask.height, mask.width)))
    largest = areas_of_regions(runs, near, near).max(initial=0)
    is_piece = areas_of_regions(runs, 1, 1) >= SMALLEST_PIECE * largest
    pieces = runs.select(is_piece)
    is_part = areas_of_regions(pieces, near, near) >= SMALLEST_PART * largest
    background = find_background(pieces.select(is_part), mask.height, mask.width)
    is_hole = areas_of_regions(background, 1, 0) < SMALLEST_HOLE * largest
    wrong = [runs.select(~is_piece), pieces.select(~is_part), background.select(is_hole)]
    if not any(len(part.row) for part in wrong):
        return mask
    rows = mask.rows.copy()
    for part in wrong:
        _invert(rows, part)
    return PackedMask(rows, mask.width, mask.ignored)


def find_runs(mask: PackedMask) -> Runs:
    """The runs of foreground in a mask."""
    framed = np.pad(mask.rows, ((0, 0), (0, 1)))  # so that runs end before the last column
    width = 8 * framed.shape[1]
    row, column = find_pixels(PackedMask(framed ^ shift_right(framed, width), width)).T
    return Runs(row[::2], column[::2], column[1::2])


def find_background(runs: Runs, height: int, width: int) -> Runs:
    """The runs of what is left of a mask without ``runs``, and of a frame of one pixel around it.

    Because of the frame, all background that touches the border is one region. Rows and columns are those of
    the mask, and -1, height and width where the frame is.
    """
    rows = np.arange(-1, height + 1)
    stride = width + 2
    starts = np.concatenate([rows * stride - 1, runs.row * stride + runs.end])
    ends = np.concatenate([rows * stride + width + 1, runs.row * stride + runs.start])
    starts.sort()
    ends.sort()
    row = (starts + 1) // stride
    return Runs(row, starts - row * stride, ends - row * stride)


def _invert(rows: NDArray[np.uint8], runs: Runs) -> None:
    """Invert the pixels of some runs in packed rows."""
    lengths = runs.end - runs.start
    row = np.repeat(runs.row, lengths)
    column = np.arange(len(row)) + np.repeat(runs.end - np.cumsum(lengths), lengths)
    np.bitwise_xor.at(rows, (row, column >> 3), np.uint8(0x80) >> (column & 7).astype(np.uint8))


def areas_of_regions(runs: Runs, rows: int, columns: int) -> Numbers:
    """For each run the number of pixels of the region that it belongs to, (N,).

    Runs belong to one region if there are at most ``rows`` - 1 rows between them, and less than ``columns``
    columns, or 0 if they have to overlap; or if others connect them.
    """
    lengths = runs.end - runs.start
    if not len(lengths):
        return lengths
    stride = int(runs.end.max()) + columns + 1  # so that runs of different rows are far from each other
    starts, ends = runs.row * stride + runs.start, runs.row * stride + runs.end
    # Those of one row are joined first: in a mask of noise, each run is near hundreds of others.
    is_first = np.append(True, starts[1:] - ends[:-1] >= columns)
    is_last = np.append(is_first[1:], True)
    joined = np.cumsum(is_first) - 1
    starts, ends = starts[is_first], ends[is_last]
    region = np.arange(len(starts))
    for distance in range(1, rows + 1):  # one by one, because their pairs take memory
        # Those that end behind the start of a run, and start before its end.
        first = np.searchsorted(ends, starts + distance * stride - columns, side="right")
        after = np.searchsorted(starts, ends + distance * stride + columns, side="left")
        counts = np.maximum(after - first, 0)
        upper = np.repeat(region, counts)
        lower = region[np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts - first, counts)]
        region = connect(len(starts), upper, lower)[region]
    region = region[joined]
    areas = np.bincount(region, lengths).astype(np.int64)
    return np.asarray(areas[region])


def connect(count: int, first: Numbers, second: Numbers) -> Numbers:
    """The connected components of a graph: for each node the smallest number in its component, (count,).

    Each round, each component takes over the smallest number beside it. (scipy has this as well, but only
    importing it takes longer than cleaning many masks.)

    Args:
        count: of the nodes, which are numbered from 0.
        first: a node of each edge, (N,).
        second: the other node.
    """
    smallest = np.arange(count)
    while True:
        ends = smallest[first], smallest[second]
        apart = ends[0] != ends[1]
        first, second = first[apart], second[apart]
        if not len(first):
            return smallest
        low, high = np.minimum(ends[0], ends[1])[apart], np.maximum(ends[0], ends[1])[apart]
        np.minimum.at(smallest, high, low)
        while np.any((further := smallest[smallest]) != smallest):
            smallest = further
