"""Doubt: how far the mask of a photo is likely to be from the true one."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNSURE = (0.1, 0.9)
"""Between these probabilities, a network is unsure about a pixel."""

FLOOR = 1e-3
"""Added to the signs before their logarithm, so that smaller differences do not count."""


class Signs(NamedTuple):
    """What the doubt of a mask is estimated from, each in [0, 1], and the larger the more doubtful.

    Attributes:
        unexpected: 1 - expected Dice of the mask, from its own probability map.
        disagreement: 1 - Dice of the masks of both networks.
        second_unexpected: 1 - expected Dice of the mask that the second network makes of the reduced photo.
        unsure: pixels about which the second network is unsure, as a share of its mask.
        at_border: share of the border of the photo that is car, according to the second network.
    """

    unexpected: float
    disagreement: float
    second_unexpected: float
    unsure: float
    at_border: float


COEFFICIENTS = Signs(1.0, 0.0, 0.0, 0.0, 0.0)
CONSTANT = 0.0
"""Fitted by ``scripts/bench_doubt.py --fit``; see BENCHMARKS.md."""


def signs_of(
    expected_dice: float, disagreement: float, reduced: NDArray[np.float32], threshold: float
) -> Signs:
    """Collect the signs.

    Args:
        expected_dice: of the mask.
        disagreement: of the networks.
        reduced: (h, w) map of the second network of the whole photo.
        threshold: probability above which a pixel is car.
    """
    mask = reduced > threshold
    area = int(np.count_nonzero(mask))
    total = float(reduced.sum(dtype=np.float64)) + area
    second_expected = 2 * float(reduced[mask].sum(dtype=np.float64)) / total if total else 1.0
    low, high = UNSURE
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return Signs(
        1 - expected_dice,
        disagreement,
        1 - second_expected,
        min(1.0, int(np.count_nonzero((reduced > low) & (reduced < high))) / max(1, area)),
        float(border.mean()),
    )


def estimate_doubt(signs: Signs) -> float:
    """The estimated 1 - Dice of a mask, in [0, 1].

    Its logarithm is a linear function of those of the signs.
    """
    logarithms = (math.log10(max(0.0, sign) + FLOOR) for sign in signs)
    exponent = CONSTANT + sum(map(float.__mul__, COEFFICIENTS, logarithms))
    return float(min(1.0, 10**exponent))
