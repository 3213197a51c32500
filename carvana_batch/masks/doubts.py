"""Says when scores suggest that masks are read or paired in the wrong way."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

INVERTED_ACCURACY = 0.1
"""Pixel accuracy below which one of two masks seems to be inverted."""

LOW_DICE = 0.05
"""Mean Dice below which masks with cars seem to be of other photos, or to be read wrongly."""

OTHERWISE_BETTER = 0.05
"""If the Dice is so much higher once one of the masks is turned, they probably lie in different ways."""

OTHERWISE_SOUND = 0.9
"""A lower Dice of the turned mask does not show that."""


def fits_otherwise(dice: float, dice_turned: float) -> bool:
    """Whether a mask fits another one far better if it is turned by the EXIF orientation of its photo."""
    return dice_turned >= max(dice + OTHERWISE_BETTER, OTHERWISE_SOUND)


def describe_doubts(dice: Sequence[float], accuracy: Sequence[float]) -> str:
    """Say so if the masks of one side seem to be inverted, or to have nothing in common with the others.

    Args:
        dice: the Dice of each image of which both masks have a car.
        accuracy: the pixel accuracy of each image.

    Returns:
        A warning of one line; "" if there is none.
    """
    if accuracy and fmean(accuracy) <= INVERTED_ACCURACY:
        return "nearly all pixels are wrong. The masks of one side seem to be inverted, with black cars."
    if dice and fmean(dice) <= LOW_DICE:
        return (
            f"the mean Dice is {fmean(dice):.3f}, although the masks of both sides have cars. Check that they"
            " are of the same photos, and the values of the true ones (--car-value N says which are car)."
        )
    return ""
