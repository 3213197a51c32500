#!/usr/bin/env python
"""Draw docs/recolour.jpg: drawn photos, and the same with another paint.

scripts/recolour_sheet.py docs/recolour.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from carvana_batch.colours import RGB
from carvana_batch.demo import draw_photo
from carvana_batch.output.recolour import recolour

SIZE = 960, 640

REDUCED = 3

CARS = ((4, 2), (44, 12), (16, 5), (7, 9))
"""Seed and view of each drawn car; the last one is grey."""

COLOURS: tuple[RGB, ...] = ((176, 0, 32), (20, 90, 200), (20, 120, 60))


def main(path: Path) -> None:
    rows = []
    for seed, view in CARS:
        pixels, drawn = draw_photo(seed, view, SIZE)
        mask = np.asarray(drawn, np.bool_)
        rows.append(np.concatenate([pixels, *(recolour(pixels, mask, colour)[0] for colour in COLOURS)], 1))
    Image.fromarray(np.concatenate(rows)).reduce(REDUCED).save(path, "JPEG", quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
