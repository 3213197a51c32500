"""Studio photos drawn by the package itself, with their exact masks: for the demo, tests and training.

A small three-dimensional car (one lofted surface, patches laid on it, wheels) stands on a turntable in a
bright studio. It is projected, shaded and painted back to front at twice the size; the mask is the coverage
of the very polygons that were painted, so it is exact. Lengths are metres: x to the car's front, y to its
left, z up; the camera looks along +y of the world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

VIEWS = 16
"""Views of one car; each turns it by a sixteenth of a full circle."""

Floats = NDArray[np.float64]
Pair = tuple[float, float]
Triple = tuple[float, float, float]

_SUPERSAMPLING = 2
_BELT = 0.5
_BANDS = (
    (0.0, _BELT),
    (_BELT, 0.25),
    (0.75, 0.25),
)  # start and extent in t of the flank, the windows, the roof
_GLASSES: list[Triple] = [(30, 33, 35), (52, 58, 60), (112, 122, 120)]
_RUBBER: Triple = (27, 27, 28)
_TRIM: Triple = (20, 20, 21)
_RIMS: list[Triple] = [(176, 178, 181), (150, 152, 156), (70, 71, 74)]
_PAINTS: list[Triple] = [
    *[(16, 16, 18), (24, 25, 28), (236, 236, 235), (228, 227, 222), (178, 180, 182), (150, 153, 156)],
    *[(92, 95, 98), (70, 73, 77), (150, 18, 24), (24, 44, 92), (112, 98, 82), (196, 186, 164), (36, 78, 112)],
]
# Height of the middle line over the length, from tail to nose, in shares of length and height.
_PROFILES: list[list[Pair]] = [
    [(0, 0.58), (0.02, 0.7), (0.13, 0.73), (0.3, 0.95), (0.45, 1), (0.57, 0.96), (0.73, 0.69), (0.96, 0.56)],
    [(0, 0.56), (0.02, 0.68), (0.1, 0.71), (0.33, 0.95), (0.45, 1), (0.55, 0.96), (0.7, 0.69), (0.96, 0.56)],
    [(0, 0.6), (0.02, 0.72), (0.08, 0.93), (0.3, 1), (0.5, 1), (0.6, 0.95), (0.76, 0.68), (0.96, 0.57)],
    [(0, 0.62), (0.01, 0.74), (0.05, 0.95), (0.25, 1), (0.55, 1), (0.62, 0.97), (0.73, 0.67), (0.97, 0.61)],
    [(0, 0.55), (0.01, 0.61), (0.33, 0.62), (0.36, 0.95), (0.48, 1), (0.6, 0.97), (0.7, 0.66), (0.97, 0.61)],
]
# Ranges of length, width, height and wheel radius in metres: sedans, coupes, hatchbacks, vans, pick-ups.
_LOW_CAR, _TALL_CAR = ((1.75, 1.9), (1.38, 1.55), (0.31, 0.35)), ((1.9, 2.05), (1.7, 1.9), (0.37, 0.41))
_RANGES: list[tuple[Pair, Pair, Pair, Pair]] = [
    *[((4.5, 5.0), *_LOW_CAR), ((4.4, 4.8), *_LOW_CAR), ((3.9, 4.4), *_LOW_CAR)],
    *[((4.7, 5.3), *_TALL_CAR), ((5.1, 5.4), *_TALL_CAR)],
]
_SHARES = [0.35, 0.15, 0.17, 0.25, 0.08]
# Corners of wall letters, in a box one wide and one high, y downwards.
_LETTERS: list[list[Pair]] = [
    [(0, 1), (0.45, 0), (0.9, 1)],
    [(0, 0), (0.45, 1), (0.9, 0)],
    [(0, 1), (0, 0), (0.75, 1), (0.75, 0)],
    [(0, 1), (0, 0), (0.6, 0), (0.65, 0.25), (0.6, 0.5), (0, 0.5), (0.65, 1)],
    [(0.5 - 0.5 * np.cos(a), 0.5 - 0.5 * np.sin(a)) for a in np.linspace(-2.3, 2.3, 25)],
    [(0.6, 0), (0, 0), (0, 1), (0.6, 1), (0, 1), (0, 0.5), (0.5, 0.5)],
]


@dataclass(frozen=True)
class _Car:
    """What all views of a seed share; lengths in metres, colours 0 to 255."""

    length: float
    width: float
    height: float
    profile: list[Pair]
    tall: bool
    corner: float  # exponent of the superellipse seen from above: higher is boxier
    wheel: float
    paint: Triple
    rim: Triple
    spokes: int
    doors: int
    antenna: bool
    rack: bool
    spoiler: bool
    trim_sill: bool
    glass: Triple

    def top(self, x: Floats) -> Floats:
        """Height of the middle line at ``x``, slightly rounded."""
        knots = np.array([*self.profile, (1.0, 0.46)])
        places = np.linspace(-0.02, 0.02, 9)[:, None] + (x / self.length + 0.5).ravel()
        heights: Floats = np.interp(places, knots[:, 0], knots[:, 1]).mean(0) * self.height
        return heights.reshape(x.shape)

    def point(self, x: Floats, t: Floats, side: int) -> Floats:
        """Points (..., 3) of the skin: ``t`` is 0 at the sill, 0.5 belt, 0.75 roof's edge, 1 middle."""
        end = np.clip(np.abs(2 * x / self.length), 0, 1)
        half = self.width / 2 * (1 - end**self.corner) ** (1 / self.corner)
        sill = (0.2 if self.tall else 0.16) * self.height * (1 + 0.5 * end**8)
        top = self.top(x)
        belt = np.minimum(0.62 * self.height + 0.03 * self.height * (-x / self.length), top - 0.06)
        rail = belt + 0.9 * (top - belt)
        low, mid, high = (np.clip((t - start) / span, 0, 1) for start, span in _BANDS)
        z = sill + (belt - sill) * low + (rail - belt) * mid + (top - rail) * np.sin(np.pi / 2 * high)
        bulge = 1 - 0.22 * (low - 0.55) ** 2 - 0.025 * np.exp(-(((low - 0.74) / 0.05) ** 2))
        y = np.maximum(half * bulge - 0.3 * (rail - belt) * mid, 0.6 * half * bulge) * (1 - high)
        return np.stack(np.broadcast_arrays(x, side * y, z), -1)

    def end_x(self, y: Floats) -> Floats:
        """How far in front of the middle the nose is at ``y``; the tail mirrors it."""
        return self.length / 2 * (1 - np.abs(2 * y / self.width) ** self.corner) ** (1 / self.corner)


@dataclass(frozen=True)
class _Camera:
    """Projects points of the car, turned by ``yaw``, to pixels of a picture ``scale`` times 1918x1280."""

    yaw: float
    distance: float
    height: float
    focal: float
    centre: Pair
    scale: float

    def world(self, points: Floats) -> Floats:
        """Turns (..., 3) points into camera coordinates: right, away, up."""
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        x, y, z = np.moveaxis(points, -1, 0)
        return np.stack([x * cos - y * sin, x * sin + y * cos + self.distance, z - self.height], -1)

    def pixels(self, points: Floats) -> Floats:
        """Pixel coordinates (..., 2) of (..., 3) points."""
        right, away, up = np.moveaxis(self.world(points), -1, 0)
        u, v = self.centre
        return self.scale * np.stack([u + self.focal * right / away, v - self.focal * up / away], -1)

    def sees_side(self, side: int, y: float) -> bool:
        """Whether a flank ``y`` metres to the left (``side`` 1) or right (-1) shows its outside."""
        here, there = self.world(np.array([(0, side * y, 0.7), (0, side * (y + 1), 0.7)]))
        return float(np.dot(there - here, here)) < 0

    def nearest_floor(self, radius: float) -> float:
        """Row of the floor's point that lies ``radius`` metres from the car's middle towards the camera."""
        return self.scale * (self.centre[1] + self.focal * self.height / (self.distance - radius))


def draw_photo(
    seed: int, view: int, size: tuple[int, int] = (1918, 1280)
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draws view ``view`` (1 to 16; others go round) of car ``seed``, ``size`` being width and height.

    Returns the photo, (H, W, 3) uint8, and its mask, (H, W) bool, True on the car (with wheels, mirrors,
    antenna and roof rack, without its shadow). The same arguments give the same bytes.
    """
    car = _make_car(seed)
    camera = _make_camera(seed, view, size)
    rng = np.random.default_rng((seed, 2, view))
    painted = _paint_car(car, camera, size)
    cover = painted.getchannel("A")
    picture = _draw_studio(seed, car, camera, size)
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


def _make_car(seed: int) -> _Car:
    rng = np.random.default_rng((seed, 0))
    kind = int(rng.choice(len(_PROFILES), p=_SHARES))
    # Some cars are nearly as bright as the floor: the hardest edges.
    tone = np.full(3, rng.uniform(165, 215)) if rng.random() < 0.15 else np.array(rng.choice(_PAINTS))
    paint = (tone + rng.uniform(-8, 8) + rng.uniform(-2, 2, 3)).tolist()
    length, width, height, wheel = (rng.uniform(*limits) for limits in _RANGES[kind])
    return _Car(
        length=length,
        width=width,
        height=height,
        wheel=wheel,
        profile=[(x, z * rng.uniform(0.985, 1.0)) for x, z in _PROFILES[kind]],
        tall=kind >= 3,
        corner=rng.uniform(4.0, 6.5),
        paint=(paint[0], paint[1], paint[2]),
        rim=_RIMS[rng.integers(len(_RIMS))],
        spokes=int(rng.choice([5, 6, 7, 10])),
        doors=1 if kind == 1 else 2,
        antenna=bool(rng.random() < 0.4),
        rack=bool(kind == 3 and rng.random() < 0.7),
        spoiler=bool(kind < 3 and rng.random() < 0.3),
        trim_sill=bool(rng.random() < 0.4),
        glass=_GLASSES[rng.integers(len(_GLASSES))],
    )


def _make_camera(seed: int, view: int, size: tuple[int, int]) -> _Camera:
    studio, jitter = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 3, view))
    distance, height = studio.uniform(5.6, 6.6), studio.uniform(1.6, 2.0)
    focal = studio.uniform(315, 350) * (distance - 0.7)
    scale = min(size[0] / 1918, size[1] / 1280)
    u = (size[0] / scale) / 2 + studio.uniform(-20, 60) + jitter.uniform(-20, 20)
    v = (size[1] / scale) / 2 + studio.uniform(-110, 0) - focal * (height - 0.75) / distance
    yaw = np.pi / 2 * 3 - (view - 1) * 2 * np.pi / VIEWS + jitter.uniform(-0.06, 0.06)
    return _Camera(yaw, distance, height, focal, (u, v), scale)


@dataclass(frozen=True)
class _Part:
    """A bent sheet, ``grid`` (rows, columns, 3); it is seen from the side away from ``inside`` only."""

    grid: Floats
    colour: Triple
    gloss: float
    inside: Triple = (0.0, 0.0, 0.5)


def _paint_car(car: _Car, camera: _Camera, size: tuple[int, int]) -> Image.Image:
    """Returns the car as an RGBA picture; alpha is the car's share of each pixel."""
    canvas = Image.new("RGBA", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    near_sides = [side for side in (-1, 1) if camera.sees_side(side, car.width / 2)]
    far_sides = [side for side in (-1, 1) if side not in near_sides]
    _paint_parts(pen, camera, [part for side in (-1, 1) for part in _tyres(car, side)])
    _paint_parts(pen, camera, [_mirror(car, side) for side in far_sides])
    _paint_roof_lines(pen, car, camera, far_sides, antenna=False)
    _paint_parts(pen, camera, _body(car))
    _paint_parts(pen, camera, _glass(car), ordered=True)
    for end in (-1, 1):
        _paint_parts(pen, camera, _end_details(car, end), ordered=True)
    for side in near_sides:
        _paint_parts(pen, camera, _side_details(car, side), ordered=True)
        _paint_parts(pen, camera, _wheel_faces(car, side), ordered=True)
        _paint_parts(pen, camera, [_mirror(car, side)])
    _paint_roof_lines(pen, car, camera, near_sides, antenna=True)
    if car.spoiler:
        x = (car.profile[2][0] - 0.5) * car.length - 0.08 if car.profile[2][1] > 0.8 else -0.46 * car.length
        z = float(car.top(np.array(x))) + 0.1
        _paint_parts(pen, camera, [_box((x, 0, z), (0.12, 0.42 * car.width, 0.025), car.paint)])
    return canvas.reduce(_SUPERSAMPLING)


def _paint_parts(
    pen: ImageDraw.ImageDraw, camera: _Camera, parts: list[_Part], ordered: bool = False
) -> None:
    """Paints the quads that face the camera, far ones first or, if ``ordered``, as given."""
    if not parts:
        return
    corners, colours, away = [], [], []
    for part in parts:
        grid = part.grid
        quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], 2).reshape(-1, 4, 3)
        world = camera.world(quads)
        middle = world.mean(1)
        normal = np.cross(world[:, 2] - world[:, 0], world[:, 3] - world[:, 1])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        outwards = middle - camera.world(np.array(part.inside))
        normal *= np.where((normal * outwards).sum(1, keepdims=True) < 0, -1.0, 1.0)
        seen = (normal * middle).sum(1) < 0
        corners.append(camera.pixels(quads[seen]) * _SUPERSAMPLING)
        colours.append(_shade(part, normal[seen], middle[seen], quads[seen].mean(1)[:, 2]))
        away.append(np.linalg.norm(middle[seen], axis=1))
    order = range(sum(map(len, away))) if ordered else np.argsort(-np.concatenate(away))
    points = np.concatenate(corners).reshape(-1, 8).tolist()
    fills = np.concatenate(colours).tolist()
    for i in order:
        pen.polygon(points[i], fill=(*fills[i], 255))


def _shade(part: _Part, normal: Floats, middle: Floats, z: Floats) -> NDArray[np.uint8]:
    """Triples (N, 3) of quads under a bright ceiling, with the studio mirrored in glossy ones."""
    sight = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    facing = -(sight * normal).sum(1)
    mirrored = sight[:, 2] + 2 * facing * normal[:, 2]  # how steeply the mirrored ray rises
    studio = np.interp(mirrored, [-0.6, -0.1, 0.0, 0.12, 0.35, 0.7, 1], [90, 165, 120, 215, 225, 250, 250])
    light = 0.6 + 0.27 * normal[:, 2] + 0.2 * np.clip(z / 1.0, 0, 1) - 0.1 * normal[:, 0]
    strength = part.gloss * (0.1 + 0.9 * (1 - np.clip(facing, 0.2, 1)) ** 3)
    colour = np.array(part.colour) * np.clip(light, 0.2, 1.05)[:, None]
    mixed = colour * (1 - strength[:, None]) + (studio * strength)[:, None]
    shades: NDArray[np.uint8] = mixed.round().clip(0, 255).astype(np.uint8)
    return shades


def _patch(car: _Car, x: Pair, t: Pair, side: int, colour: Triple, gloss: float) -> _Part:
    """A rectangle in (x, t) laid on the skin."""
    grid = car.point(np.linspace(*x, 25)[:, None], np.linspace(*t, 7)[None, :], side)
    return _Part(grid, colour, gloss)


def _body(car: _Car) -> list[_Part]:
    # Stations are dense at both ends, where the skin turns.
    x = car.length / 2 * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 111))[:, None]
    t = np.concatenate([np.linspace(0, _BELT, 17), np.linspace(_BELT, 1, 15)[1:]])[None, :]
    return [_Part(car.point(x, t, side), car.paint, 0.75) for side in (-1, 1)]


def _glass(car: _Car) -> list[_Part]:
    knots = np.array(car.profile)
    x = (knots[:, 0] - 0.5) * car.length
    screen, back = (x[-3] + 0.04, x[-2] - 0.05), (x[2] + 0.05, x[3] - 0.06)
    if car.profile[2][1] > 0.8:  # hatchbacks: the rear window is the upper part of the steep tail
        back = (x[1] + 0.01, x[2] - 0.02)
    ranges = [(ends, side) for ends in (back, screen) for side in (-1, 1)]
    return [_patch(car, ends, (0.785, 1), side, car.glass, 0.9) for ends, side in ranges]


def _end_details(car: _Car, end: int) -> list[_Part]:
    """Lamps, grille and plate of the nose (``end`` 1) or the tail (-1)."""

    def patch(y: Pair, t: Pair, colour: Triple, gloss: float = 0.5) -> list[_Part]:
        across = np.linspace(*y, 9)[:, None] * car.width / 2
        level = np.linspace(*t, 4)[None, :]
        return [_Part(car.point(end * car.end_x(across), level, side), colour, gloss) for side in (-1, 1)]

    if end < 0:
        return [
            *patch((0, 0.6), (0.02, 0.1), _TRIM),
            *patch((0.6, 0.9), (0.3, 0.44), (150, 22, 26)),
            *patch((0.66, 0.82), (0.34, 0.38), (214, 120, 110)),
            *patch((0, 0.17), (0.25, 0.34), (225, 230, 238), 0.1),
        ]
    return [
        *patch((0, 0.62), (0.05, 0.16), _TRIM),
        *patch((0, 0.5), (0.27, 0.43), (48, 49, 51)),
        *[part for t in (0.29, 0.34, 0.39) for part in patch((0, 0.48), (t, t + 0.012), (170, 172, 174))],
        *patch((0.58, 0.92), (0.33, 0.46), (205, 208, 210), 0.8),
        *patch((0.66, 0.78), (0.36, 0.43), (120, 124, 128), 0.8),
        *patch((0.66, 0.85), (0.09, 0.15), (190, 192, 194), 0.6),
    ]


def _side_details(car: _Car, side: int) -> list[_Part]:
    knots = np.array(car.profile)
    front, rear = (knots[-2, 0] - 0.5) * car.length - 0.12, (knots[2, 0] - 0.5) * car.length + 0.22
    if car.profile[2][1] < 0.65:  # pick-ups: the cabin begins behind the middle
        rear = (knots[3, 0] - 0.5) * car.length + 0.1
    seam: Triple = (car.paint[0] * 0.35, car.paint[1] * 0.35, car.paint[2] * 0.35)
    door_edges = np.linspace(front - 0.15, max(rear, -car.length * 0.24), car.doors + 1)
    window_edges = [front, *door_edges[1:-1], max(door_edges[-1], rear + 0.1), rear]
    parts = []
    if car.trim_sill:
        parts.append(_patch(car, (-car.length * 0.47, car.length * 0.47), (0, 0.07), side, _TRIM, 0.2))
    for a, b in zip(window_edges[1:], window_edges[:-1], strict=True):
        if b - a > 0.2:
            parts.append(_patch(car, (a + 0.03, b - 0.03), (0.525, 0.73), side, car.glass, 0.9))
            seat: Triple = (car.glass[0] * 0.6, car.glass[1] * 0.6, car.glass[2] * 0.6)
            parts.append(_patch(car, (a + 0.08, a + 0.25), (0.525, 0.64), side, seat, 0.7))
    for x in door_edges:
        parts.append(_patch(car, (x - 0.008, x + 0.008), (0.06, 0.5), side, seam, 0.1))
    for x in door_edges[1:]:
        parts.append(_patch(car, (x + 0.08, x + 0.27), (0.405, 0.43), side, seam, 0.2))
        parts.append(_patch(car, (x + 0.08, x + 0.27), (0.415, 0.435), side, car.paint, 0.9))
    return parts


def _ring(centre: Triple, radii: Pair, angles: Floats) -> Floats:
    """Grid (2, len(angles), 3) of a ring or, with an inner radius of 0, a disc across y."""
    r = np.array(radii)[:, None]
    x, z = centre[0] + r * np.cos(angles), centre[2] + r * np.sin(angles)
    return np.stack([x, np.full_like(x, centre[1]), z], -1)


def _axles(car: _Car) -> Pair:
    return -0.295 * car.length, 0.315 * car.length


def _tyres(car: _Car, side: int) -> list[_Part]:
    angles = np.linspace(0, 2 * np.pi, 41)
    parts = []
    for x in _axles(car):
        faces = [(x, side * (car.width / 2 - depth), car.wheel) for depth in (0.04, 0.26)]
        tread = np.concatenate([_ring(f, (car.wheel, car.wheel), angles)[:1] for f in faces])
        parts += [_Part(tread, _RUBBER, 0.05, (x, faces[0][1], car.wheel))]
        middle = (x, side * (car.width / 2 - 0.15), car.wheel)
        parts += [_Part(_ring(f, (0, car.wheel), angles), _RUBBER, 0, middle) for f in faces]
    return parts


def _wheel_faces(car: _Car, side: int) -> list[_Part]:
    """Arch, tyre wall, rim and spokes of both wheels of a side."""
    circle = np.linspace(0, 2 * np.pi, 61)
    parts = []
    for x in _axles(car):
        arch = _ring((x, 0, car.wheel), (0, car.wheel * 1.13), circle)
        low = car.point(arch[..., 0], np.zeros(arch.shape[:2]), side)[..., 2]
        belt = car.point(arch[..., 0], np.full(arch.shape[:2], _BELT), side)[..., 2]
        level = _BELT * np.clip((arch[..., 2] - low) / (belt - low), 0, 1)
        parts.append(_Part(car.point(arch[..., 0], level, side), (12, 12, 13), 0))
        hub = (x, side * (car.width / 2 - 0.03), car.wheel)
        rings: list[tuple[float, float, Triple]] = [
            (0, 1.0, _RUBBER),
            (0, 0.74, car.rim),
            (0, 0.67, (40, 41, 43)),
            (0, 0.2, car.rim),
        ]
        parts += [_Part(_ring(hub, (a * car.wheel, b * car.wheel), circle), c, 0.1) for a, b, c in rings]
        for turn in np.arange(car.spokes) * 2 * np.pi / car.spokes + x:
            wide = 0.9 / car.spokes
            spoke = _ring(hub, (0.12 * car.wheel, 0.7 * car.wheel), turn + np.array([-wide, wide]))
            parts.append(_Part(spoke, car.rim, 0.1))
    return parts


def _mirror(car: _Car, side: int) -> _Part:
    forward = (car.profile[-2][0] - 0.5) * car.length - 0.25
    return _box((forward, side * (car.width / 2 + 0.05), 0.69 * car.height), (0.09, 0.13, 0.08), car.paint)


def _box(centre: Triple, radii: Triple, colour: Triple) -> _Part:
    """A box with well rounded edges."""
    a, b = np.linspace(0, 2 * np.pi, 33)[:, None], np.linspace(-np.pi / 2, np.pi / 2, 17)[None, :]
    ball = np.stack(np.broadcast_arrays(np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b)), -1)
    ball = np.sign(ball) * np.abs(ball) ** 0.6
    return _Part(ball * radii + centre, colour, 0.7, centre)


def _paint_roof_lines(
    pen: ImageDraw.ImageDraw, car: _Car, camera: _Camera, sides: list[int], antenna: bool
) -> None:
    """Paints the roof rack of the given sides and, if wanted, the antenna."""
    per_metre = camera.focal / camera.distance * camera.scale * _SUPERSAMPLING
    x = np.linspace(-0.38, 0.1, 25) * car.length
    for side in sides if car.rack else []:
        rail = car.point(x, np.full(x.shape, 0.79), side)
        rail[..., 2] += 0.06 * np.sin(np.linspace(0, np.pi, len(x))) ** 0.3
        pixels = (camera.pixels(rail) * _SUPERSAMPLING).ravel().tolist()
        pen.line(pixels, fill=(60, 61, 63, 255), width=max(2, round(0.04 * per_metre)), joint="curve")
    if antenna and car.antenna:
        foot = car.point(np.array((car.profile[3][0] - 0.45) * car.length), np.array(1.0), 1)
        mast = foot + np.array([(0, 0, 0), (-0.12, 0, 0.22)])
        pixels = (camera.pixels(mast) * _SUPERSAMPLING).ravel().tolist()
        pen.line(pixels, fill=(30, 30, 32, 255), width=max(2, round(0.014 * per_metre)))


def _draw_studio(seed: int, car: _Car, camera: _Camera, size: tuple[int, int]) -> Image.Image:
    """The empty studio with the car's shadow."""
    rng = np.random.default_rng((seed, 1, 7))
    w, h = size
    edge = h * rng.uniform(0.31, 0.38)
    row = np.linspace(0, 1, 160)[:, None, None]
    column = np.linspace(-1, 1, 240)[None, :, None]
    tint = rng.uniform(-6, 3) * np.array([0.0, 0.25, 1.0])
    wall = rng.uniform(234, 252) + tint * 0.4 - 10 * column**2 + 0 * row
    dark = rng.uniform(150, 212)
    stains = 1.2 * rng.standard_normal((160, 240, 1))
    floor = dark + tint + stains + (222 - dark) * np.clip(row - 0.62, 0, 1) * 0.9 - 14 * np.abs(column) ** 3
    picture = _gradient(wall, size)
    frame = [w * rng.uniform(0.3, 0.45), h * rng.uniform(0.02, 0.15), w * rng.uniform(0.6, 0.7), h]
    ImageDraw.Draw(picture).rectangle(frame, outline=(205, 205, 203), width=max(1, round(2 * camera.scale)))
    _draw_letters(ImageDraw.Draw(picture), rng, size, edge)
    ground = _gradient(floor, size)
    _draw_turntable(ground, rng, camera)
    u = np.linspace(0, 1, 41)
    line = edge + h * rng.uniform(0.015, 0.04) * (2 * u - 1) ** 2
    area = Image.new("L", size)
    ImageDraw.Draw(area).polygon([*zip(u * w, line, strict=True), (w, h), (0, h)], fill=255)
    picture.paste(ground, mask=area)
    if rng.random() < 0.15:  # the end of the stage, as in some of the real studio's photos
        y = max(h * rng.uniform(0.86, 0.95), np.ceil(camera.nearest_floor(car.length / 2 + 0.3)))
        pen = ImageDraw.Draw(picture)
        pen.polygon([(0, y), (w, y * 0.99), (w, h), (0, h)], fill=(58, 54, 50))
        pen.line([(0, y), (w, y * 0.99)], fill=(236, 236, 234), width=max(1, h // 50))
    picture = picture.filter(ImageFilter.GaussianBlur(1.2 * camera.scale))
    return Image.composite(Image.new("RGB", size, (38, 38, 38)), picture, _shadow(car, camera, size))


def _gradient(coarse: Floats, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(coarse.round().clip(0, 252).astype(np.uint8))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _draw_letters(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: tuple[int, int], edge: float
) -> None:
    """Tall letters on the wall, the left ones thin, the right ones bold and darker."""
    tall = size[1] * rng.uniform(0.18, 0.22)
    left, pitch = size[0] * rng.uniform(0.0, 0.1), size[0] * rng.uniform(0.125, 0.14)
    for place in range(7):
        bold = place >= 3
        letter = _LETTERS[rng.integers(len(_LETTERS))]
        points = [(left + pitch * (place + 0.8 * x), edge - tall * (1.05 - y)) for x, y in letter]
        grey, width = (78, max(1, int(tall * 0.2))) if bold else (112, max(1, int(tall * 0.07)))
        pen.line(points, fill=(grey, grey, grey + 1), width=width, joint="curve")


def _draw_turntable(picture: Image.Image, rng: np.random.Generator, camera: _Camera) -> None:
    """The turntable's rim and the joints of its plates."""
    pen = ImageDraw.Draw(picture)
    radius, turn = rng.uniform(2.8, 3.3), rng.uniform(0, np.pi)
    angle = np.linspace(0, 2 * np.pi, 181)
    rim = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], -1)
    tone = picture.getpixel((picture.width // 2, picture.height // 2))
    shade = [int(c) for c in np.clip(np.array(tone) + rng.uniform(-9, 4), 0, 255)]
    points = camera.pixels(rim).ravel().tolist()
    width = max(1, round(3 * camera.scale))
    pen.polygon(points, fill=tuple(shade))
    pen.line(points, fill=tuple(c - 22 for c in shade), width=width)
    sin, cos = np.sin(turn), np.cos(turn)
    for offset in (-1.0, 0.0, 1.0):
        ends = [(offset * cos - y * sin, offset * sin + y * cos, 0) for y in (-2.6, 2.6)]
        points = camera.pixels(np.array(ends)).ravel().tolist()
        pen.line(points, fill=tuple(c - 9 for c in shade), width=width)


def _shadow(car: _Car, camera: _Camera, size: tuple[int, int]) -> Image.Image:
    """Darkness of the floor, 0 to 255: a wide soft pool, and deep shadow below the sills and the tyres."""
    small = (size[0] // 4, size[1] // 4)
    light = np.ones((small[1], small[0]), np.float32)
    for grow, blur, strength in ((0.35, 16, 0.28), (0.05, 7, 0.4), (-0.06, 2.5, 0.45)):
        angle = np.linspace(0, 2 * np.pi, 61)
        x = (car.length / 2 + grow) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.35
        y = (car.width / 2 + grow) * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.35
        layer = Image.new("L", small)
        points = camera.pixels(np.stack([x, y, 0 * x], -1)) / 4
        ImageDraw.Draw(layer).polygon(points.ravel().tolist(), fill=255)
        soft = np.asarray(layer.filter(ImageFilter.GaussianBlur(blur * camera.scale)), np.float32)
        light *= 1 - np.float32(strength / 255) * soft
    return Image.fromarray((255 - light * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
