"""The camera: its position for each view, and the projection of points to pixels."""

from __future__ import annotations

from dataclasses import dataclass
import numpy as np
from carvana_batch.demo.geometry import Floats, Pair

VIEWS = 16
"""Number of views of a car, each rotated by 1/16 of a full turn."""


@dataclass(frozen=True)
class Camera:
    """Projects points of the car to pixels. It looks horizontally along +y of the world.

    Attributes:
        yaw: rotation of the car about its vertical axis, in radians.
        distance: from the camera to the centre of the car, in metres.
        height: of the camera above the floor, in metres.
        focal: focal length in pixels of a 1918x1280 picture.
        centre: principal point in pixels of a 1918x1280 picture.
        scale: size of the picture relative to 1918x1280.
    """

    yaw: float
    distance: float
    height: float
    focal: float
    centre: Pair
    scale: float

    @property
    def pixels_per_metre(self) -> float:
        """Scale of the picture at the centre of the car."""
        return self.focal / self.distance * self.scale

    def world(self, points: Floats) -> Floats:
        """Transform (..., 3) points into camera coordinates: right, away, up."""
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        x, y, z = np.moveaxis(points, -1, 0)
        return np.stack([x * cos - y * sin, x * sin + y * cos + self.distance, z - self.height], -1)

    def pixels(self, points: Floats) -> Floats:
        """Return the pixel coordinates (..., 2) of (..., 3) points."""
        right, away, up = np.moveaxis(self.world(points), -1, 0)
        u, v = self.centre
        return self.scale * np.stack([u + self.focal * right / away, v - self.focal * up / away], -1)

    def floor_pixels(self, x: Floats, y: Floats) -> Floats:
        """Return the pixel coordinates (..., 2) of points on the floor."""
        return self.pixels(np.stack([x, y, np.zeros_like(x)], -1))

    def sees_side(self, side: int, y: float) -> bool:
        """Whether the outer face of the left (``side`` 1) or right (-1) side, ``y`` metres out, is visible."""
        here, there = self.world(np.array([(0, side * y, 0.7), (0, side * (y + 1), 0.7)]))
        return float(np.dot(there - here, here)) < 0

    def nearest_floor(self, radius: float) -> float:
        """Return the row of the point on the floor ``radius`` metres in front of the car's centre."""
        return self.scale * (self.centre[1] + self.focal * self.height / (self.distance - radius))


def make_camera(seed: int, view: int, size: tuple[int, int]) -> Camera:
    """Make the camera of a view: the same for all views of a seed, apart from a little jitter and the yaw."""
    studio, jitter = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 3, view))
    distance, height = studio.uniform(5.6, 6.6), studio.uniform(1.6, 2.0)
    focal = studio.uniform(315, 350) * (distance - 0.7)
    scale = min(size[0] / 1918, size[1] / 1280)
    u = (size[0] / scale) / 2 + studio.uniform(-20, 60) + jitter.uniform(-20, 20)
    v = (size[1] / scale) / 2 + studio.uniform(-110, 0) - focal * (height - 0.75) / distance
    yaw = np.pi / 2 * 3 - (view - 1) * 2 * np.pi / VIEWS + jitter.uniform(-0.06, 0.06)
    return Camera(yaw, distance, height, focal, (u, v), scale)
