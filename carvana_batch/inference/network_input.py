"""From a decoded photo to what the network sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def area_average(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8 to another size (width, height), each pixel the mean of what it covers."""
    # Writable and owned, as torch wants it.
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
