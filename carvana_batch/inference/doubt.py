"""Doubt: how far a mask that two networks have looked at is likely to be from the true one."""

from __future__ import annotations

FACTOR, POWER = 2.2, 1.2
"""Fitted by ``scripts/bench_doubt.py --fit``; see BENCHMARKS.md."""

FLOOR = 1e-3
"""Differences of the expected Dice that are smaller do not count."""


def estimate_doubt(expected_dice: float) -> float:
    """The estimated 1 - Dice of a mask, in [0, 1].

    The expected Dice of a single network says little about photos unlike those of its training, of which it
    may be wrong and sure. Where two networks of different training agree, or the mask is that of the one that
    was trained on photos of many kinds, it ranks masks well, and needs but a scale.

    Args:
        expected_dice: of the mask, from its own probability map; see :func:`expected_dice`.
    """
    return float(min(1.0, FACTOR * (max(0.0, 1 - expected_dice) + FLOOR) ** POWER))
