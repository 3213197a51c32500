"""Giving the paint of a car another colour, with its light and shade.

Paint is told from the rest of the car by its colour alone: it has chroma, and the hue that most coloured
pixels of the car have. So grey parts, glass, tyres, and lights of another hue stay as they are, and a car
without a colour (black, grey, silver, white) has no paint that could be told.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from carvana_batch.colours import RGB, lab_to_srgb, srgb_to_lab

GREY_CHROMA, PAINT_CHROMA = 3.0, 8.0
"""Chroma (CIELAB) up to which a pixel is grey, and from which on it is paint; in between, it is both."""

CLEAR_CHROMA = 16.0
"""Chroma from which on a pixel tells the hue of the paint; cameras give grey cars a little chroma as well."""

NEAR_HUE, FAR_HUE = 15.0, 65.0
"""Least and most degrees on each side of the most frequent hue that belong to the paint: in CIELAB, blue
becomes violet in the shade."""

FREQUENT = 0.02
"""Hues belong to the paint as far as they are at least so frequent, compared with the most frequent one."""

HUE_EDGE = 15.0
"""Degrees over which a pixel ceases to be paint."""

LEAST_PAINT = 0.08
"""Least share of the car that is paint of one hue; if it is less, lights and reflections have the colour."""

HUE_BINS = 72

REFERENCE_PERCENTILE = 75
"""Paint of this percentile of chroma gets the chroma of the new colour; highlights and shade have less."""

MOST_CHROMA = 1.25
"""Paint gets at most this times the chroma of the new colour."""

SAMPLE = 200_000
"""Pixels from which hue and chroma of the paint are estimated."""

CHUNK = 1 << 20
"""Pixels that are changed at a time; bounds the memory."""


class Paint(NamedTuple):
    """The paint of a car.

    Attributes:
        hue: its most frequent hue, in degrees.
        below: how many degrees below this hue are paint, too.
        above: how many degrees above it are.
        chroma: its chroma where light and shade do not reduce it.
    """

    hue: float
    below: float
    above: float
    chroma: float

    def share(self, hue: NDArray[np.float64], chroma: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much of each pixel, given by hue and chroma, is paint, in [0, 1]."""
        distance = (hue - self.hue + 180) % 360 - 180
        beyond = np.where(distance < 0, -distance - self.below, distance - self.above)
        return _ramp(chroma, GREY_CHROMA, PAINT_CHROMA) * (1 - _ramp(beyond, 0, HUE_EDGE))


def find_paint(pixels: NDArray[np.uint8]) -> Paint | None:
    """Find the paint among the pixels of a car.

    Args:
        pixels: (N, 3) uint8, RGB.

    Returns:
        The paint; None if too few pixels have a colour, or no common hue.
    """
    if not len(pixels):
        return None
    lab = srgb_to_lab(pixels[:: -(-len(pixels) // SAMPLE)].astype(np.float64))
    hue, chroma = _hue_and_chroma(lab)
    coloured = chroma >= CLEAR_CHROMA
    counts = np.bincount((hue[coloured] * HUE_BINS // 360).astype(int), minlength=HUE_BINS)
    smooth = sum(np.roll(counts, shift) for shift in range(-2, 3))
    centre = int(np.argmax(smooth))
    turned = np.roll(smooth, -centre)  # begins with the most frequent hue
    below, above = _reach(np.roll(turned[::-1], 1)), _reach(turned)
    paint = Paint((centre + 0.5) * 360 / HUE_BINS, below, above, 1.0)
    near = coloured & (paint.share(hue, chroma) > 0.5)
    if near.mean() < LEAST_PAINT:
        return None
    return paint._replace(chroma=float(np.percentile(chroma[near], REFERENCE_PERCENTILE)))


def _reach(counts: NDArray[np.int64]) -> float:
    """Degrees from the first hue on that are frequent; ``counts``: of all hues, beginning with the first."""
    rare = np.flatnonzero(counts < FREQUENT * counts.max())
    bins = int(rare[0]) if rare.size else HUE_BINS
    return min(max(bins * 360 / HUE_BINS, NEAR_HUE), FAR_HUE)


def recolour(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: RGB
) -> tuple[NDArray[np.uint8], bool]:
    """Give the paint of a car another colour. The lightness L* of each pixel stays.

    Args:
        pixels: the photo, (H, W, 3) uint8, RGB.
        mask: the car, (H, W) bool.
        colour: the new colour; only its hue and chroma count.

    Returns:
        The new photo, and whether there is paint; if not, it is the old one.
    """
    car = pixels[mask]
    paint = find_paint(car)
    if paint is None:
        return pixels.copy(), False
    _, a, b = srgb_to_lab(np.array(colour, np.float64))
    for start in range(0, len(car), CHUNK):
        chunk = car[start : start + CHUNK]
        lab = srgb_to_lab(chunk.astype(np.float64))
        hue, chroma = _hue_and_chroma(lab)
        share = paint.share(hue, chroma)
        changed = share > 0
        strength = np.minimum(chroma[changed] / paint.chroma, MOST_CHROMA)
        new = strength[:, None] * np.array([a, b])
        lab = lab[changed]
        lab[:, 1:] += share[changed, None] * (new - lab[:, 1:])
        chunk[changed] = np.rint(lab_to_srgb(lab)).astype(np.uint8)
    recoloured = pixels.copy()
    recoloured[mask] = car
    return recoloured, True


def _hue_and_chroma(lab: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hue in [0, 360), and chroma, of CIELAB colours (N, 3)."""
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    return np.where(hue == 360, 0, hue), np.hypot(lab[:, 1], lab[:, 2])


def _ramp(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """0 up to ``low``, 1 from ``high`` on, and smooth in between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))
