"""Dilation, erosion and opening of packed masks by discs, eight pixels at a time.

Pixels beyond the frame are background. A disc is composed of steps by a 3x3 square and by a cross of five
pixels; for discs as small as these, the result is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carvana_batch.values import PackedMask

Rows = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Disc:
    """All pixels whose centre is at most ``radius`` pixels from the centre of the middle one."""

    squares: int
    crosses: int

    @property
    def radius(self) -> float:
        return self.squares + self.crosses + 0.5


CROSS = Disc(0, 1)
"""The middle pixel and its four neighbours."""


DISC_5, DISC_9, DISC_11 = Disc(1, 1), Disc(2, 2), Disc(2, 3)
"""Discs of 5, 9 and 11 pixels across."""


def grow(mask: PackedMask, disc: Disc) -> PackedMask:
    """Dilation: the pixels with foreground within the disc around them."""
    rows = mask.rows
    for number in range(disc.squares + disc.crosses):
        wide = shift_right(rows, mask.width)
        wide |= _shift_left(rows)
        wide |= rows
        above_below = wide.copy() if number < disc.squares else rows
        wide[1:] |= above_below[:-1]
        wide[:-1] |= above_below[1:]
        rows = wide
    return PackedMask(rows, mask.width)


def shrink(mask: PackedMask, disc: Disc) -> PackedMask:
    """Erosion: the pixels with only foreground within the disc around them."""
    rows = mask.rows
    for number in range(disc.squares + disc.crosses):
        narrow = shift_right(rows, mask.width)
        narrow &= _shift_left(rows)
        narrow &= rows
        above_below = narrow.copy() if number < disc.squares else rows
        narrow[1:] &= above_below[:-1]
        narrow[:-1] &= above_below[1:]
        narrow[:1] = narrow[-1:] = 0
        rows = narrow
    return PackedMask(rows, mask.width)


def open_by(mask: PackedMask, disc: Disc) -> PackedMask:
    """Opening: the pixels that are covered by discs that fit into the mask."""
    return grow(shrink(mask, disc), disc)


def find_outline(mask: PackedMask, ignored: Rows | None = None) -> PackedMask:
    """The foreground pixels with background, or the frame, above, below, left or right of them.

    Args:
        mask: the mask.
        ignored: unknown pixels in the form of ``mask.rows``, all 0 there. What touches them is left out.
    """
    outline = mask.rows & ~shrink(mask, CROSS).rows
    if ignored is not None:
        outline &= ~grow(PackedMask(ignored, mask.width), CROSS).rows
    return PackedMask(outline, mask.width)


def find_pixels(mask: PackedMask) -> NDArray[np.int64]:
    """Row and column of the foreground pixels in row-major order, (N, 2)."""
    content = mask.rows.ravel()
    offsets = np.flatnonzero(content != 0)  # most bytes have no foreground
    index, bit = np.nonzero(np.unpackbits(content[offsets]).reshape(-1, 8))
    row, byte = np.divmod(offsets, max(mask.rows.shape[1], 1))
    return np.stack([row[index], byte[index] * 8 + bit], axis=1)


def shift_right(rows: Rows, width: int) -> Rows:
    """The packed rows of a mask of ``width``, with each pixel one column further right."""
    moved = np.right_shift(rows, 1)
    moved[:, 1:] |= rows[:, :-1] << 7
    moved[:, -1:] &= 0xFF << (-width % 8) & 0xFF  # padding bits stay 0
    return moved


def _shift_left(rows: Rows) -> Rows:
    moved = np.left_shift(rows, 1)
    moved[:, :-1] |= rows[:, 1:] >> 7
    return moved
