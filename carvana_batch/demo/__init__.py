"""Draws synthetic studio photos with exact masks, for the demo, the tests and training.

A small 3D car (a lofted surface, patches on it, wheels) stands on a turntable in a bright studio. It is
projected, shaded and painted from back to front at twice the size. The mask is exact, because it is the
coverage of the painted polygons.

``geometry`` defines points and parts, ``camera`` projects them, ``car`` defines the shape of a car, ``parts``
builds its parts, ``painting`` paints it, and ``studio`` draws its surroundings.
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
    """Draw one view of a car. The same arguments give the same pixels.

    Args:
        seed: number of the car.
        view: number of the view, 1 to 16; higher numbers continue around the car.
        size: width and height in pixels.

    Returns:
        The photo, (H, W, 3) uint8, and its mask, (H, W) bool, which is True on the car with its wheels,
        mirrors, antenna and roof rack, but not on its shadow.
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
    """Write ``count`` photos and masks, ``views`` of each car, with names like those of the competition."""
    for _ in iter_write_photos(folder, count, seed, views):
        pass


def iter_write_photos(folder: Path, count: int = 12, seed: int = 0, views: int = 4) -> Iterator[str]:
    """Do the same as :func:`write_photos`, and yield the id of each photo after its files are written."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        car = seed + number // views
        # The first view differs from car to car, so that a small set still contains all directions.
        view = (car * 3 + (number % views) * VIEWS // views) % VIEWS + 1
        key = f"{hashlib.sha256(str(car).encode()).hexdigest()[:12]}_{view:02d}"
        photo, mask = draw_photo(car, view)
        Image.fromarray(photo).save(folder / "images" / f"{key}.jpg", quality=94)
        truth = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
        truth.putpalette([0, 0, 0, 255, 255, 255])
        truth.save(folder / "masks" / f"{key}_mask.gif")
        yield key
