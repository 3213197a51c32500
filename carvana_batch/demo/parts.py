"""The parts of a car: its body, and the windows, lamps, seams and wheels on it."""

from __future__ import annotations

import numpy as np
from carvana_batch.demo.car import BELT, COUPE, HATCHBACK, PICK_UP, VAN, Car
from carvana_batch.demo.geometry import Floats, Pair, Part, Triple, box, darker, ring

_RUBBER: Triple = (27, 27, 28)

_TRIM: Triple = (20, 20, 21)


def body(car: Car) -> list[Part]:
    # Points are denser at both ends, where the body is more curved.
    x = car.length / 2 * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 111))[:, None]
    t = np.concatenate([np.linspace(0, BELT, 17), np.linspace(BELT, 1, 15)[1:]])[None, :]
    return [Part(car.point(x, t, side), car.paint, 0.75) for side in (-1, 1)]


def _patch(car: Car, x: Pair, t: Pair, side: int, colour: Triple, gloss: float) -> Part:
    """Make a rectangle in (x, t) on the body."""
    grid = car.point(np.linspace(*x, 25)[:, None], np.linspace(*t, 7)[None, :], side)
    return Part(grid, colour, gloss)


def screens(car: Car) -> list[Part]:
    """Make the rear window and the windscreen."""
    front, rear = (car.knot(5) + 0.04, car.knot(6) - 0.05), (car.knot(2) + 0.05, car.knot(3) - 0.06)
    if car.kind in (HATCHBACK, VAN):  # the rear window is the upper part of the steep tail
        rear = (car.knot(1) + 0.01, car.knot(2) - 0.02)
    return [_patch(car, x, (0.785, 1), side, car.glass, 0.9) for x in (rear, front) for side in (-1, 1)]


def end_details(car: Car, end: int) -> list[Part]:
    """Make the lamps, grille and number plate of the nose or the tail."""

    def patch(y: Pair, t: Pair, colour: Triple, gloss: float = 0.5) -> list[Part]:
        across = np.linspace(*y, 9)[:, None] * car.width / 2
        level = np.linspace(*t, 4)[None, :]
        return [Part(car.point(end * car.end_x(across), level, side), colour, gloss) for side in (-1, 1)]

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


def side_details(car: Car, side: int) -> list[Part]:
    """Make the windows, the doors with their handles, and the trim of the sill."""

    def patch(x: Pair, t: Pair, colour: Triple, gloss: float) -> Part:
        return _patch(car, x, t, side, colour, gloss)

    front, rear = car.knot(6) - 0.12, car.knot(2) + 0.22
    if car.kind == PICK_UP:  # the cabin begins behind the centre
        rear = car.knot(3) + 0.1
    doors = 1 if car.kind == COUPE else 2
    door_edges = np.linspace(front - 0.15, max(rear, -car.length * 0.24), doors + 1).tolist()
    window_edges = [front, *door_edges[1:-1], max(door_edges[-1], rear + 0.1), rear]
    seam, seat = darker(car.paint, 0.35), darker(car.glass, 0.6)
    parts = []
    if car.trim_sill:
        parts.append(patch((-car.length * 0.47, car.length * 0.47), (0, 0.07), _TRIM, 0.2))
    for a, b in zip(window_edges[1:], window_edges[:-1], strict=True):
        if b - a > 0.2:
            parts.append(patch((a + 0.03, b - 0.03), (0.525, 0.73), car.glass, 0.9))
            parts.append(patch((a + 0.08, a + 0.25), (0.525, 0.64), seat, 0.7))
    for x in door_edges:
        parts.append(patch((x - 0.008, x + 0.008), (0.06, 0.5), seam, 0.1))
    for x in door_edges[1:]:
        parts.append(patch((x + 0.08, x + 0.27), (0.405, 0.43), seam, 0.2))
        parts.append(patch((x + 0.08, x + 0.27), (0.415, 0.435), car.paint, 0.9))
    return parts


def tyres(car: Car, side: int) -> list[Part]:
    angles = np.linspace(0, 2 * np.pi, 41)
    parts = []
    for x in car.axles:
        outer, middle, inner = ((x, side * (car.width / 2 - d), car.wheel) for d in (0.04, 0.15, 0.26))
        tread = np.concatenate([ring(f, (car.wheel, car.wheel), angles)[:1] for f in (outer, inner)])
        parts.append(Part(tread, _RUBBER, 0.05, outer))
        parts += [Part(ring(f, (0, car.wheel), angles), _RUBBER, 0, middle) for f in (outer, inner)]
    return parts


def wheel_faces(car: Car, side: int) -> list[Part]:
    """Make the arch, tyre wall, rim and spokes of both wheels of a side."""
    circle = np.linspace(0, 2 * np.pi, 61)
    parts = []
    for x in car.axles:
        arch = ring((x, 0, car.wheel), (0, car.wheel * 1.13), circle)
        low = car.point(arch[..., 0], np.zeros(arch.shape[:2]), side)[..., 2]
        belt = car.point(arch[..., 0], np.full(arch.shape[:2], BELT), side)[..., 2]
        level = BELT * np.clip((arch[..., 2] - low) / (belt - low), 0, 1)
        parts.append(Part(car.point(arch[..., 0], level, side), (12, 12, 13), 0))
        hub = (x, side * (car.width / 2 - 0.03), car.wheel)
        discs: list[tuple[float, Triple]] = [
            (1.0, _RUBBER),
            (0.74, car.rim),
            (0.67, (40, 41, 43)),
            (0.2, car.rim),
        ]
        parts += [Part(ring(hub, (0, r * car.wheel), circle), colour, 0.1) for r, colour in discs]
        for turn in np.arange(car.spokes) * 2 * np.pi / car.spokes + x:
            wide = 0.9 / car.spokes
            spoke = ring(hub, (0.12 * car.wheel, 0.7 * car.wheel), turn + np.array([-wide, wide]))
            parts.append(Part(spoke, car.rim, 0.1))
    return parts


def mirror(car: Car, side: int) -> Part:
    centre = (car.knot(6) - 0.25, side * (car.width / 2 + 0.05), 0.69 * car.height)
    return box(centre, (0.09, 0.13, 0.08), car.paint)


def spoiler(car: Car) -> Part:
    x = car.knot(2) - 0.08 if car.kind == HATCHBACK else -0.46 * car.length
    z = float(car.top(np.array(x))) + 0.1
    return box((x, 0, z), (0.12, 0.42 * car.width, 0.025), car.paint)


def roof_rail(car: Car, side: int) -> Floats:
    """Return points (N, 3) of a rail of the roof rack."""
    x = np.linspace(-0.38, 0.1, 25) * car.length
    rail = car.point(x, np.full(x.shape, 0.79), side)
    rail[..., 2] += 0.06 * np.sin(np.linspace(0, np.pi, len(x))) ** 0.3
    return rail


def antenna(car: Car) -> Floats:
    """Return the points (2, 3) of the antenna: its base and its tip."""
    foot = car.point(np.array((car.kind.positions[3] - 0.45) * car.length), np.array(1.0), 1)
    return np.stack([foot, foot + np.array((-0.12, 0, 0.22))])
