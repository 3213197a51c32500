"""A synthetic car: its kind, dimensions and colours, and the shape of its body."""

from __future__ import annotations

from dataclasses import dataclass
import numpy as np
from carvana_batch.demo.geometry import Floats, Pair, Triple

BELT = 0.5
"""Value of ``t`` of ``Car.point`` at which the windows begin."""

_GLASSES: list[Triple] = [(30, 33, 35), (52, 58, 60), (112, 122, 120)]

_RIMS: list[Triple] = [(176, 178, 181), (150, 152, 156), (70, 71, 74)]

_PAINTS: list[Triple] = [
    (16, 16, 18),  # blacks
    (24, 25, 28),
    (236, 236, 235),  # whites
    (228, 227, 222),
    (178, 180, 182),  # silver to graphite
    (150, 153, 156),
    (92, 95, 98),
    (70, 73, 77),
    (150, 18, 24),  # red
    (24, 44, 92),  # dark blue
    (112, 98, 82),  # brown
    (196, 186, 164),  # beige
    (36, 78, 112),  # blue
]


@dataclass(frozen=True)
class Kind:
    """A kind of car: its frequency, the ranges of its dimensions in metres, and its outline.

    The outline is the height of the centre line at eight knots from tail to nose: ``heights`` at
    ``positions``, as fractions of the height and length of the car. The roof spans knots 3 to 5, the
    windscreen 5 to 6.
    """

    share: float
    length: Pair
    width: Pair
    height: Pair
    wheel: Pair
    positions: tuple[float, ...]
    heights: tuple[float, ...]

SEDAN = Kind(
    share=0.35,
    length=(4.5, 5.0),
    width=(1.75, 1.9),
    height=(1.38, 1.55),
    wheel=(0.31, 0.35),
    positions=(0, 0.02, 0.13, 0.3, 0.45, 0.57, 0.73, 0.96),
    heights=(0.58, 0.7, 0.73, 0.95, 1, 0.96, 0.69, 0.56),
)

COUPE = Kind(
    share=0.15,
    length=(4.4, 4.8),
    width=(1.75, 1.9),
    height=(1.38, 1.55),
    wheel=(0.31, 0.35),
    positions=(0, 0.02, 0.1, 0.33, 0.45, 0.55, 0.7, 0.96),
    heights=(0.56, 0.68, 0.71, 0.95, 1, 0.96, 0.69, 0.56),
)

HATCHBACK = Kind(
    share=0.17,
    length=(3.9, 4.4),
    width=(1.75, 1.9),
    height=(1.38, 1.55),
    wheel=(0.31, 0.35),
    positions=(0, 0.02, 0.08, 0.3, 0.5, 0.6, 0.76, 0.96),
    heights=(0.6, 0.72, 0.93, 1, 1, 0.95, 0.68, 0.57),
)

VAN = Kind(
    share=0.25,
    length=(4.7, 5.3),
    width=(1.9, 2.05),
    height=(1.7, 1.9),
    wheel=(0.37, 0.41),
    positions=(0, 0.01, 0.05, 0.25, 0.55, 0.62, 0.73, 0.97),
    heights=(0.62, 0.74, 0.95, 1, 1, 0.97, 0.67, 0.61),
)

PICK_UP = Kind(
    share=0.08,
    length=(5.1, 5.4),
    width=(1.9, 2.05),
    height=(1.7, 1.9),
    wheel=(0.37, 0.41),
    positions=(0, 0.01, 0.33, 0.36, 0.48, 0.6, 0.7, 0.97),
    heights=(0.55, 0.61, 0.62, 0.95, 1, 0.97, 0.66, 0.61),
)

_KINDS = [SEDAN, COUPE, HATCHBACK, VAN, PICK_UP]


@dataclass(frozen=True)
class Car:
    """The properties of a car that are the same in all views."""

    kind: Kind
    length: float
    width: float
    height: float
    wheel: float
    heights: list[float]  # those of the kind, slightly varied
    corner: float  # exponent of the superellipse seen from above: higher is boxier
    paint: Triple
    rim: Triple
    spokes: int
    antenna: bool
    rack: bool
    spoiler: bool
    trim_sill: bool
    glass: Triple

    @property
    def axles(self) -> Pair:
        """x of the rear and the front axle."""
        return -0.295 * self.length, 0.315 * self.length

    def knot(self, number: int) -> float:
        """Return x of a knot of the outline."""
        return (self.kind.positions[number] - 0.5) * self.length

    def top(self, x: Floats) -> Floats:
        """Return the height of the centre line at ``x``, slightly smoothed."""
        positions = np.linspace(-0.02, 0.02, 9)[:, None] + (x / self.length + 0.5).ravel()
        shares = np.interp(positions, [*self.kind.positions, 1.0], [*self.heights, 0.46])
        heights: Floats = shares.mean(0) * self.height
        return heights.reshape(x.shape)

    def point(self, x: Floats, t: Floats, side: int) -> Floats:
        """Return points (..., 3) of the body: ``t`` is 0 at the sill, 0.5 at the belt line, 0.75 at the edge
        of the roof and 1 at the centre line."""
        end = np.clip(np.abs(2 * x / self.length), 0, 1)
        half = self.width / 2 * (1 - end**self.corner) ** (1 / self.corner)
        clearance = 0.2 if self.kind in (VAN, PICK_UP) else 0.16
        sill = clearance * self.height * (1 + 0.5 * end**8)
        top = self.top(x)
        belt = np.minimum(0.62 * self.height + 0.03 * self.height * (-x / self.length), top - 0.06)
        rail = belt + 0.9 * (top - belt)
        # Relative height of each point within the side, the windows and the roof.
        low, mid, high = np.clip([t / BELT, (t - BELT) / 0.25, (t - 0.75) / 0.25], 0, 1)
        z = sill + (belt - sill) * low + (rail - belt) * mid + (top - rail) * np.sin(np.pi / 2 * high)
        bulge = 1 - 0.22 * (low - 0.55) ** 2 - 0.025 * np.exp(-(((low - 0.74) / 0.05) ** 2))
        y = np.maximum(half * bulge - 0.3 * (rail - belt) * mid, 0.6 * half * bulge) * (1 - high)
        return np.stack(np.broadcast_arrays(x, side * y, z), -1)

    def end_x(self, y: Floats) -> Floats:
        """Return x of the nose at ``y``; the tail is at minus that."""
        return self.length / 2 * (1 - np.abs(2 * y / self.width) ** self.corner) ** (1 / self.corner)


def make_car(seed: int) -> Car:
    rng = np.random.default_rng((seed, 0))
    kind = _KINDS[rng.choice(len(_KINDS), p=[kind.share for kind in _KINDS])]
    # Some cars are about as bright as the floor, which makes their edges hard to see.
    tone = np.full(3, rng.uniform(165, 215)) if rng.random() < 0.15 else rng.choice(_PAINTS)
    red, green, blue = (tone + rng.uniform(-8, 8) + rng.uniform(-2, 2, 3)).tolist()
    # The order of the arguments matters: each of them draws from ``rng``.
    return Car(
        kind=kind,
        length=rng.uniform(*kind.length),
        width=rng.uniform(*kind.width),
        height=rng.uniform(*kind.height),
        wheel=rng.uniform(*kind.wheel),
        heights=[share * rng.uniform(0.985, 1.0) for share in kind.heights],
        corner=rng.uniform(4.0, 6.5),
        paint=(red, green, blue),
        rim=_RIMS[rng.integers(len(_RIMS))],
        spokes=int(rng.choice([5, 6, 7, 10])),
        antenna=rng.random() < 0.4,
        rack=kind == VAN and rng.random() < 0.7,
        spoiler=kind in (SEDAN, COUPE, HATCHBACK) and rng.random() < 0.3,
        trim_sill=rng.random() < 0.4,
        glass=_GLASSES[rng.integers(len(_GLASSES))],
    )
