"""The studio around the car: a wall with letters, the floor with a turntable, and the shadow of the car."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from carvana_batch.demo.camera import Camera
from carvana_batch.demo.car import Car
from carvana_batch.demo.geometry import Floats, Pair


# Corners of the letters on the wall, in a unit square with y downwards.
_LETTERS: list[list[Pair]] = [
    [(0, 1), (0.45, 0), (0.9, 1)],
    [(0, 0), (0.45, 1), (0.9, 0)],
    [(0, 1), (0, 0), (0.75, 1), (0.75, 0)],
    [(0, 1), (0, 0), (0.6, 0), (0.65, 0.25), (0.6, 0.5), (0, 0.5), (0.65, 1)],
    [(0.5 - 0.5 * np.cos(a), 0.5 - 0.5 * np.sin(a)) for a in np.linspace(-2.3, 2.3, 25)],
    [(0.6, 0), (0, 0), (0, 1), (0.6, 1), (0, 1), (0, 0.5), (0.5, 0.5)],
]


def draw_studio(seed: int, car: Car, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """Draw the empty studio with the shadow of the car."""
    rng = np.random.default_rng((seed, 1, 7))
    w, h = size
    edge = h * rng.uniform(0.31, 0.38)  # where the wall meets the floor
    tint = rng.uniform(-6, 3) * np.array([0.0, 0.25, 1.0])
    picture = _draw_wall(rng, tint, size)
    floor = _draw_floor(rng, tint, size)
    frame = [w * rng.uniform(0.3, 0.45), h * rng.uniform(0.02, 0.15), w * rng.uniform(0.6, 0.7), h]
    ImageDraw.Draw(picture).rectangle(frame, outline=(205, 205, 203), width=max(1, round(2 * camera.scale)))
    _add_letters(picture, rng, edge)
    _add_turntable(floor, rng, camera)
    u = np.linspace(0, 1, 41)
    line = edge + h * rng.uniform(0.015, 0.04) * (2 * u - 1) ** 2
    area = Image.new("L", size)
    ImageDraw.Draw(area).polygon([*zip(u * w, line, strict=True), (w, h), (0, h)], fill=255)
    picture.paste(floor, mask=area)
    if rng.random() < 0.15:  # the edge of the stage, as in some photos of the real studio
        y = max(h * rng.uniform(0.86, 0.95), np.ceil(camera.nearest_floor(car.length / 2 + 0.3)))
        pen = ImageDraw.Draw(picture)
        pen.polygon([(0, y), (w, y * 0.99), (w, h), (0, h)], fill=(58, 54, 50))
        pen.line([(0, y), (w, y * 0.99)], fill=(236, 236, 234), width=max(1, h // 50))
    picture = picture.filter(ImageFilter.GaussianBlur(1.2 * camera.scale))
    return Image.composite(Image.new("RGB", size, (38, 38, 38)), picture, _shadow(car, camera, size))


def _draw_wall(rng: np.random.Generator, tint: Floats, size: tuple[int, int]) -> Image.Image:
    column = np.linspace(-1, 1, 240)[None, :, None]
    return _enlarged(rng.uniform(234, 252) + tint * 0.4 - 10 * column**2, size)


def _draw_floor(rng: np.random.Generator, tint: Floats, size: tuple[int, int]) -> Image.Image:
    row, column = np.linspace(0, 1, 160)[:, None, None], np.linspace(-1, 1, 240)[None, :, None]
    dark = rng.uniform(150, 212)
    stains = 1.2 * rng.standard_normal((160, 240, 1))
    floor = dark + tint + stains + (222 - dark) * np.clip(row - 0.62, 0, 1) * 0.9 - 14 * np.abs(column) ** 3
    return _enlarged(floor, size)


def _enlarged(coarse: Floats, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(coarse.round().clip(0, 252).astype(np.uint8))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _add_letters(wall: Image.Image, rng: np.random.Generator, edge: float) -> None:
    """Draw tall letters on the wall, thin ones on the left, and bold, darker ones on the right."""
    pen = ImageDraw.Draw(wall)
    tall = wall.height * rng.uniform(0.18, 0.22)
    left, pitch = wall.width * rng.uniform(0.0, 0.1), wall.width * rng.uniform(0.125, 0.14)
    for index in range(7):
        letter = _LETTERS[rng.integers(len(_LETTERS))]
        points = [(left + pitch * (index + 0.8 * x), edge - tall * (1.05 - y)) for x, y in letter]
        grey, width = (112, 0.07 * tall) if index < 3 else (78, 0.2 * tall)
        pen.line(points, fill=(grey, grey, grey + 1), width=max(1, int(width)), joint="curve")


def _add_turntable(floor: Image.Image, rng: np.random.Generator, camera: Camera) -> None:
    """Draw the rim of the turntable and the joints of its plates."""
    pen = ImageDraw.Draw(floor)
    radius, turn = rng.uniform(2.8, 3.3), rng.uniform(0, np.pi)
    angle = np.linspace(0, 2 * np.pi, 181)
    rim = camera.floor_pixels(radius * np.cos(angle), radius * np.sin(angle)).ravel().tolist()
    tone = floor.getpixel((floor.width // 2, floor.height // 2))
    shade = [int(c) for c in np.clip(np.array(tone) + rng.uniform(-9, 4), 0, 255)]
    width = max(1, round(3 * camera.scale))
    pen.polygon(rim, fill=tuple(shade))
    pen.line(rim, fill=tuple(c - 22 for c in shade), width=width)
    sin, cos = np.sin(turn), np.cos(turn)
    y = np.array([-2.6, 2.6])
    for x in (-1.0, 0.0, 1.0):
        joint = camera.floor_pixels(x * cos - y * sin, x * sin + y * cos).ravel().tolist()
        pen.line(joint, fill=tuple(c - 9 for c in shade), width=width)


def _shadow(car: Car, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """Return how dark the floor is, 0 to 255: a wide soft shadow, and a deep one below sills and tyres."""
    small = (size[0] // 4, size[1] // 4)
    light = np.ones((small[1], small[0]), np.float32)
    angle = np.linspace(0, 2 * np.pi, 61)
    sin, cos = np.sin(angle), np.cos(angle)
    for grow, blur, strength in ((0.35, 16, 0.28), (0.05, 7, 0.4), (-0.06, 2.5, 0.45)):
        x = (car.length / 2 + grow) * np.sign(cos) * np.abs(cos) ** 0.35
        y = (car.width / 2 + grow) * np.sign(sin) * np.abs(sin) ** 0.35
        layer = Image.new("L", small)
        ImageDraw.Draw(layer).polygon((camera.floor_pixels(x, y) / 4).ravel().tolist(), fill=255)
        soft = np.asarray(layer.filter(ImageFilter.GaussianBlur(blur * camera.scale)), np.float32)
        light *= 1 - np.float32(strength / 255) * soft
    return Image.fromarray((255 - light * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
