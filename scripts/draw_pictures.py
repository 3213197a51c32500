#!/usr/bin/env python
"""Draw the pictures of the documents that show photos and pages, from drawn photos; needs Chromium.

scripts/draw_pictures.py docs

Writes overview.jpg (a photo, its mask, the overlay, and the page of a review), review.jpg and score.jpg.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.demo import draw_photo

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from devtools import Chromium, find_chromium

CARS = ((6, 15), (16, 2), (44, 15), (20, 15), (3, 14), (23, 3), (6, 7), (44, 10), (16, 12))
"""Seed and view of each drawn car; the first one is shown in the overview."""

ON_ITS_SIDE = 4
"""Number of the car that is also shown on its side, whose mask is bad and doubtful."""

TILE = 400, 267

GAP = 8

WIDTH = 3 * TILE[0] + 2 * GAP
"""Width of the pages, in pixels."""

QUALITY = 82


def main(target: Path) -> None:
    program = find_chromium()
    if program is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder)
        run("predict", "images", "out", "--save", "overlay", "--html", "review.html", folder=folder)
        run("score", "out", "--gt", "masks", "--html", "score.html", folder=folder)
        (folder / "browser").mkdir()
        with Chromium(program, folder / "browser") as browser:
            review = shoot(browser, folder / "review.html", "#masks-heading", 690)
            score = shoot(browser, folder / "score.html", "#worst-heading", 690)
        save(join(folder, review), target / "overview.jpg")
        save(review, target / "review.jpg")
        save(score, target / "score.jpg")


def run(*arguments: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "carvana_batch", *arguments], cwd=folder, check=True)


def write_photos(folder: Path) -> None:
    """Write images/carNN_NN.jpg and masks/carNN_NN_mask.png."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number, (seed, view) in enumerate(CARS):
        photo, mask = draw_photo(seed, view)
        write_pair(folder, f"car{seed:02}_{view:02}", photo, mask)
        if number == ON_ITS_SIDE:
            write_pair(folder, f"car{seed:02}_side", np.rot90(photo), np.rot90(mask))


def write_pair(folder: Path, key: str, photo: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    Image.fromarray(np.ascontiguousarray(photo)).save(folder / "images" / f"{key}.jpg", quality=94)
    Image.fromarray(np.ascontiguousarray(mask)).save(folder / "masks" / f"{key}_mask.png")


def shoot(browser: Any, page: Path, selector: str, height: int) -> NDArray[np.uint8]:
    """The part of a page from an element on, (height, WIDTH, 3) uint8."""
    opened = browser.open(page, width=WIDTH, height=height)
    opened.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{behavior: 'instant'}})")
    opened.evaluate("scrollBy({top: -30, behavior: 'instant'})")
    opened.wait_for_frame()
    picture: NDArray[np.uint8] = opened.screenshot()
    return picture


def join(folder: Path, page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Photo, mask and overlay side by side above the page, (H, W, 3) uint8."""
    name = "car{:02}_{:02}".format(*CARS[0])
    out = folder / "out"
    files = (folder / "images" / f"{name}.jpg", out / f"{name}.png", out / "_overlay" / f"{name}.jpg")
    sheet = Image.new("RGB", (WIDTH, TILE[1] + GAP + len(page)), "white")
    for number, file in enumerate(files):
        with Image.open(file) as picture:
            tile = picture.convert("RGB").resize(TILE, Image.Resampling.LANCZOS)
        sheet.paste(tile, (number * (TILE[0] + GAP), 0))
    sheet.paste(Image.fromarray(page), (0, TILE[1] + GAP))
    return np.asarray(sheet)


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(pixels).save(path, "JPEG", quality=QUALITY, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
