"""For pictures of wrong pixels: their colours, and the window with most of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# From the palette of Okabe and Ito, which colour-blind readers can tell apart.
MISSED_COLOUR = (0, 114, 178)
"""RGB of false negatives: car that the predicted mask lacks."""

INVENTED_COLOUR = (230, 159, 0)
"""RGB of false positives: predicted mask where there is no car."""


def busiest_window(flags: NDArray[np.bool_], size: tuple[int, int]) -> tuple[int, int]:
    """Find the window around the spot with the most flags.

    A spot is half as wide and half as high as the window. The window is centred on the flags in the busiest
    spot, or on the picture if there are no flags, and is moved to lie within the picture.

    Args:
        flags: (H, W) bool.
        size: (width, height) of the window, at most (W, H).

    Returns:
        The left and top of the window.
    """
    width, height = max(1, size[0] // 2), max(1, size[1] // 2)
    sums = np.zeros((flags.shape[0] + 1, flags.shape[1] + 1), np.int32)
    sums[1:, 1:] = flags.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    rows, columns = np.nonzero(flags[top : top + height, left : left + width])
    if rows.size:
        centre_x = left + (columns.min() + columns.max() + 1) // 2
        centre_y = top + (rows.min() + rows.max() + 1) // 2
    else:
        centre_x, centre_y = flags.shape[1] // 2, flags.shape[0] // 2
    max_left, max_top = flags.shape[1] - size[0], flags.shape[0] - size[1]
    return (
        int(min(max(centre_x - size[0] // 2, 0), max_left)),
        int(min(max(centre_y - size[1] // 2, 0), max_top)),
    )
