"""Paints a car: its parts are projected, shaded and drawn as polygons from back to front."""

from __future__ import annotations

from dataclasses import dataclass, replace
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from carvana_batch.demo.camera import Camera
from carvana_batch.demo.car import Car
from carvana_batch.demo.geometry import Floats, Part
from carvana_batch.demo.parts import antenna, body, end_details, mirror, roof_rail, screens, side_details, spoiler, tyres, wheel_faces

_SUPERSAMPLING = 2


def paint_car(car: Car, camera: Camera, size: tuple[int, int]) -> Image.Image:
    """Return the car as an RGBA picture; alpha is the fraction of each pixel that the car covers."""
    canvas = Image.new("RGBA", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
    brush = _Brush(ImageDraw.Draw(canvas), replace(camera, scale=camera.scale * _SUPERSAMPLING))
    near_sides = [side for side in (-1, 1) if camera.sees_side(side, car.width / 2)]
    far_sides = [side for side in (-1, 1) if side not in near_sides]

    def paint_mirror_and_rail(side: int) -> None:
        brush.paint([mirror(car, side)])
        if car.rack:
            brush.paint_line(roof_rail(car, side), (60, 61, 63), 0.04)

    brush.paint([*tyres(car, -1), *tyres(car, 1)])
    for side in far_sides:
        paint_mirror_and_rail(side)
    brush.paint(body(car))
    brush.paint_in_order(screens(car))
    for end in (-1, 1):
        brush.paint_in_order(end_details(car, end))
    for side in near_sides:
        brush.paint_in_order([*side_details(car, side), *wheel_faces(car, side)])
        paint_mirror_and_rail(side)
    if car.antenna:
        brush.paint_line(antenna(car), (30, 30, 32), 0.014)
    if car.spoiler:
        brush.paint([spoiler(car)])
    return canvas.reduce(_SUPERSAMPLING)


@dataclass(frozen=True)
class _Brush:
    """Paints parts and lines, as a camera sees them, on a picture."""

    pen: ImageDraw.ImageDraw
    camera: Camera

    def paint(self, parts: list[Part]) -> None:
        """Paint the quads that face the camera from back to front."""
        corners, colours, away = self._facing_quads(parts)
        order = np.argsort(-away)
        self._fill(corners[order], colours[order])

    def paint_in_order(self, parts: list[Part]) -> None:
        """Paint the quads that face the camera in the given order."""
        corners, colours, _ = self._facing_quads(parts)
        self._fill(corners, colours)

    def paint_line(self, points: Floats, colour: tuple[int, int, int], metres: float) -> None:
        """Paint a line of ``metres`` width through (N, 3) points."""
        width = max(2, round(metres * self.camera.pixels_per_metre))
        pixels = self.camera.pixels(points).ravel().tolist()
        self.pen.line(pixels, fill=(*colour, 255), width=width, joint="curve")

    def _fill(self, corners: Floats, colours: NDArray[np.uint8]) -> None:
        for points, colour in zip(corners.reshape(-1, 8).tolist(), colours.tolist(), strict=True):
            self.pen.polygon(points, fill=(*colour, 255))

    def _facing_quads(self, parts: list[Part]) -> tuple[Floats, NDArray[np.uint8], Floats]:
        """Return pixels (N, 4, 2), colours (N, 3) and distances (N,) of the quads that face the camera."""
        corners, colours, away = [], [], []
        for part in parts:
            grid = part.grid
            quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], 2)
            quads = quads.reshape(-1, 4, 3)
            world = self.camera.world(quads)
            middle = world.mean(1)
            normal = np.cross(world[:, 2] - world[:, 0], world[:, 3] - world[:, 1])
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
            outwards = middle - self.camera.world(np.array(part.inside))
            normal *= np.where((normal * outwards).sum(1, keepdims=True) < 0, -1.0, 1.0)
            seen = (normal * middle).sum(1) < 0
            corners.append(self.camera.pixels(quads[seen]))
            colours.append(_shade(part, normal[seen], middle[seen], quads[seen].mean(1)[:, 2]))
            away.append(np.linalg.norm(middle[seen], axis=1))
        return np.concatenate(corners), np.concatenate(colours), np.concatenate(away)


def _shade(part: Part, normal: Floats, middle: Floats, z: Floats) -> NDArray[np.uint8]:
    """Return the colours (N, 3) of quads under a bright ceiling; glossy ones reflect the studio."""
    sight = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    facing = -(sight * normal).sum(1)
    mirrored = sight[:, 2] + 2 * facing * normal[:, 2]  # slope of the reflected ray
    studio = np.interp(mirrored, [-0.6, -0.1, 0.0, 0.12, 0.35, 0.7, 1], [90, 165, 120, 215, 225, 250, 250])
    light = 0.6 + 0.27 * normal[:, 2] + 0.2 * np.clip(z, 0, 1) - 0.1 * normal[:, 0]
    strength = part.gloss * (0.1 + 0.9 * (1 - np.clip(facing, 0.2, 1)) ** 3)
    colour = np.array(part.colour) * np.clip(light, 0.2, 1.05)[:, None]
    mixed = colour * (1 - strength[:, None]) + (studio * strength)[:, None]
    shades: NDArray[np.uint8] = mixed.round().clip(0, 255).astype(np.uint8)
    return shades
