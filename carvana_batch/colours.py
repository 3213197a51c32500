"""Colours: sRGB and CIELAB, and colours as users write them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RGB = tuple[int, int, int]

LINEAR_SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""Linear sRGB to CIE XYZ (IEC 61966-2-1)."""

XYZ_TO_LINEAR_SRGB = np.linalg.inv(LINEAR_SRGB_TO_XYZ)

D65_WHITE = np.array([0.95047, 1.0, 1.08883])
"""CIE XYZ of the white point of sRGB."""

GAMUT_STEPS = 8
"""How often the interval of a chroma is halved that fits into sRGB."""

ROUNDING = 1e-4
"""By how much colours at the border of sRGB may be beyond it after a round trip."""


def srgb_to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert sRGB in 0..255, (..., 3), to CIELAB under D65: L* in 0..100, a* and b* (CIE 15)."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ LINEAR_SRGB_TO_XYZ.T / D65_WHITE
    x, y, z = np.moveaxis(np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert CIELAB under D65, (..., 3), to sRGB in 0..255.

    Colours that sRGB does not have become the most colourful ones of the same lightness and hue.
    """
    linear = _lab_to_linear(lab)
    outside = ((linear < -ROUNDING) | (linear > 1 + ROUNDING)).any(axis=-1)
    if outside.any():
        wrong = lab[outside]
        low, high = np.zeros(len(wrong)), np.ones(len(wrong))
        for _ in range(GAMUT_STEPS):
            middle = (low + high) / 2
            tried = _lab_to_linear(_with_chroma(wrong, middle))
            fits = ((tried >= 0) & (tried <= 1)).all(axis=-1)
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        linear[outside] = _lab_to_linear(_with_chroma(wrong, low))
    linear = np.clip(linear, 0, 1)
    values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(255 * values)


def _with_chroma(lab: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = lab.copy()
    scaled[:, 1:] *= factor[:, None]
    return scaled


def _lab_to_linear(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (116 * f - 16) * 27 / 24389)
    return np.asarray(xyz * D65_WHITE @ XYZ_TO_LINEAR_SRGB.T)


def parse_colour(text: str) -> RGB:
    """The colour that a text such as ``#b00020`` or ``darkred`` names.

    Raises:
        ValueError: it names none, or one that is not opaque.
    """
    from PIL import ImageColor  # here, because the help text must not wait for it

    colour = ImageColor.getrgb(text)
    if len(colour) != 3:
        raise ValueError(f"{text!r} is not opaque")
    return colour


def format_colour(colour: RGB) -> str:
    """The colour as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
