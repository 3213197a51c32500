"""Studio photos drawn by the package itself, with their exact masks: for the demo, tests and training.

A small three-dimensional car (one lofted surface, patches laid on it, wheels) stands on a turntable in a
bright studio. It is projected, shaded and painted back to front at twice the size; the mask is the coverage
of the very polygons that were painted, so it is exact.

``geometry`` says what points and parts are; ``camera`` projects them. ``car`` is a car's shape, ``parts``
what it is pieced together from, ``painting`` paints it and ``studio`` all that stands around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from carvana_batch.demo.camera import VIEWS, make_camera
from carvana_batch.demo.car import make_car
from carvana_batch.demo.painting import paint_car
from carvana_batch.demo.studio import draw_studio

__all__ = ["VIEWS", "draw_photo", "iter_write_photos", "write_photos"]


def draw_photo(
    seed: int, view: int, size: tuple[int, int] = (1918, 1280)
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draws view ``view`` (1 to 16; others go round) of car ``seed``, ``size`` being width and height.

    Returns the photo, (H, W, 3) uint8, and its mask, (H, W) bool, True on the car (with wheels, mirrors,
    antenna and roof rack, without its shadow). The same arguments give the same bytes.
    """
    car = make_car(seed)
    camera = make_camera(seed, view, size)
    rng = np.random.default_rng((seed, 2, view))
    painted = paint_car(car, camera, size)
    cover = painted.getchannel("A")
    picture = draw_studio(seed, car, camera, size)
    picture.paste(painted.convert("RGB"), mask=cover)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.35, 0.7) * camera.scale))
    grain = rng.standard_normal((size[1], size[0]), np.float32) * np.float32(rng.uniform(0.5, 1.6))
    noisy = np.asarray(picture, np.float32) + grain[..., None]
    return noisy.round().clip(0, 255).astype(np.uint8), np.asarray(cover) >= 128


def write_photos(folder: Path, count: int = 12, seed: int = 0, views: int = 4) -> None:
    """Writes ``count`` photos and masks named like the competition's, ``views`` of each car."""
    for _ in iter_write_photos(folder, count, seed, views):
        pass


def iter_write_photos(folder: Path, count: int = 12, seed: int = 0, views: int = 4) -> Iterator[str]:
    """Does what ``write_photos`` does and yields each photo's id once its two files are written."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        car = seed + number // views
        # The first view differs from car to car, so that a small set still shows all directions.
        view = (car * 3 + (number % views) * VIEWS // views) % VIEWS + 1
        key = f"{hashlib.sha256(str(car).encode()).hexdigest()[:12]}_{view:02d}"
        photo, mask = draw_photo(car, view)
        Image.fromarray(photo).save(folder / "images" / f"{key}.jpg", quality=94)
        truth = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
        truth.putpalette([0, 0, 0, 255, 255, 255])
        truth.save(folder / "masks" / f"{key}_mask.gif")
        yield key
