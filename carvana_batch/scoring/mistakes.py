"""Where a mask is wrong, and the colours that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


# Of the palette of Okabe and Ito, which colour-blind readers can tell apart.
MISSED_COLOUR = (0, 114, 178)

INVENTED_COLOUR = (230, 159, 0)


def busiest_window(flags: NDArray[np.bool_], size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the window of ``size`` (width, height) around the spot with the most of ``flags``.

    ``flags`` is (H, W) bool, a spot half as wide and half as high as the window; so what is worst lies in
    the middle, as far as the border lets it. Without any flags it is the middle of the picture.
    """
    width, height = max(1, size[0] // 2), max(1, size[1] // 2)
    sums = np.zeros((flags.shape[0] + 1, flags.shape[1] + 1), np.int32)
    sums[1:, 1:] = flags.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    rows, columns = np.nonzero(flags[top : top + height, left : left + width])
    if rows.size:
        middle_x = left + (columns.min() + columns.max() + 1) // 2
        middle_y = top + (rows.min() + rows.max() + 1) // 2
    else:
        middle_x, middle_y = flags.shape[1] // 2, flags.shape[0] // 2
    farthest_left, farthest_top = flags.shape[1] - size[0], flags.shape[0] - size[1]
    return (
        int(min(max(middle_x - size[0] // 2, 0), farthest_left)),
        int(min(max(middle_y - size[1] // 2, 0), farthest_top)),
    )


def _cell_starts(length: int, cells: int) -> NDArray[np.int64]:
    """The first of ``length`` pixels that belongs to each of ``cells``.

    Where there are more cells than pixels, pixels repeat, and ``reduceat`` then repeats their values.
    """
    if cells > length:
        return (2 * np.arange(cells) + 1) * length // (2 * cells)
    return -(-np.arange(cells) * length // cells)  # rounded up: pixel x lies in cell x * cells // length
