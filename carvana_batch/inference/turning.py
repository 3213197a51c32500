"""Turn photos upright and maps back, on the device."""

from __future__ import annotations

from torch import Tensor

from carvana_batch.orientation import FLIPPED_AXES, UPRIGHT, swaps_sides


def turn_tensor(pixels: Tensor, orientation: int) -> Tensor:
    """Turn pixels (H, W, ...), stored with an EXIF orientation, upright.

    Returns:
        A contiguous copy; for orientation 1, ``pixels`` themselves.
    """
    if orientation == UPRIGHT:
        return pixels
    turned = pixels.transpose(0, 1) if swaps_sides(orientation) else pixels
    return turned.flip(FLIPPED_AXES[orientation]).contiguous()
