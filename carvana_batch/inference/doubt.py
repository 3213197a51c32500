"""Doubt: how far a mask that two networks have looked at is likely to be from the true one."""

from __future__ import annotations

FACTOR, POWERS = 2.62, (1.15, 0.06)
"""Fitted by ``scripts/bench_doubt.py --fit``; see docs/benchmarks-log.md."""

FLOOR = 1e-3
"""Differences of the expected Dice that are smaller do not count."""


def estimate_doubt(expected_dice: float, disagreement: float) -> float:
    """The estimated 1 - Dice of a mask, in [0, 1].

    The expected Dice of a single network says little about photos unlike those of its training, of which it
    may be wrong and sure. Where two networks of different training agree, or the mask is that of the one that
    was trained on photos of many kinds, it ranks masks well, and needs but a scale.

    Args:
        expected_dice: of the mask, from its own probability map; see :func:`expected_dice`.
        disagreement: 1 - Dice of the mask and of what the second network has seen at first.
    """
    unexpected = max(0.0, 1 - expected_dice)
    doubt = FACTOR * (unexpected + FLOOR) ** POWERS[0] * (disagreement + FLOOR) ** POWERS[1]
    return float(min(1.0, doubt))
