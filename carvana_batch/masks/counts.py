"""How well a hard mask agrees with the true one, counted in pixels. No smoothing terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.values import PackedMask


class SizeError(CarvanaBatchError, ValueError):
    """Two masks that cannot be compared because their sizes differ."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixels of one image, or of several added up, by what was predicted and what is true.

    Every ratio is in 0..1 and a whole image right is 1. Where a ratio is 0/0, it is 1 if neither mask has
    foreground, else 0: nothing predicted where nothing is true is a right answer, nothing predicted where
    something is true has a precision of 0, and something predicted where nothing is true a recall of 0.
    """

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def area_predicted(self) -> int:
        """Foreground pixels of the predicted mask."""
        return self.true_positive + self.false_positive

    @property
    def area_true(self) -> int:
        """Foreground pixels of the true mask."""
        return self.true_positive + self.false_negative

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 if both masks are empty."""
        return self._ratio(2 * self.true_positive, self.area_predicted + self.area_true)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), intersection over union; 1 if both masks are empty."""
        return self._ratio(self.true_positive, self.area_predicted + self.false_negative)

    @property
    def pixel_accuracy(self) -> float:
        """(TP + TN) / all pixels."""
        right = self.true_positive + self.true_negative
        return self._ratio(right, right + self.false_positive + self.false_negative)

    @property
    def precision(self) -> float:
        """TP / (TP + FP): the share of the predicted foreground that is right."""
        return self._ratio(self.true_positive, self.area_predicted)

    @property
    def recall(self) -> float:
        """TP / (TP + FN): the share of the true foreground that was found."""
        return self._ratio(self.true_positive, self.area_true)

    def _ratio(self, part: int, whole: int) -> float:
        if whole:
            return part / whole
        return 1.0 if self.area_predicted == self.area_true == 0 else 0.0


def count(predicted: PackedMask, true: PackedMask) -> Counts:
    """Count the pixels of two masks of one size by bits; raises SizeError if their sizes differ."""
    if (predicted.width, predicted.height) != (true.width, true.height):
        raise SizeError(
            f"The predicted mask is {predicted.width}x{predicted.height} pixels, "
            f"the true one {true.width}x{true.height}."
        )
    true_positive = _count_bits(predicted.rows & true.rows)
    false_positive = _count_bits(predicted.rows) - true_positive
    false_negative = _count_bits(true.rows) - true_positive
    pixels = true.width * true.height
    return Counts(
        true_positive=true_positive,
        false_positive=false_positive,
        false_negative=false_negative,
        true_negative=pixels - true_positive - false_positive - false_negative,
    )


def _count_bits(rows: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(rows).sum(dtype=np.int64))
