"""How well a hard mask agrees with the true one, in pixel counts and ratios without smoothing terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.values import PackedMask


class SizeError(CarvanaBatchError, ValueError):
    """Two masks cannot be compared because their sizes differ."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixel counts of one image, or sums of several images.

    Every ratio is in [0, 1], and 1 for two equal masks. A ratio of 0/0 is 1 if neither mask has foreground,
    because predicting nothing is then right, and 0 otherwise: the precision if nothing is predicted although
    something is true, and the recall in the opposite case.
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
    """Compare two masks in the pixels that the true one does not ignore.

    Raises:
        SizeError: their sizes differ.
    """
    predicted = clear_ignored(predicted, true)
    true_positive = _count_bits(predicted.rows & true.rows)
    false_positive = _count_bits(predicted.rows) - true_positive
    false_negative = _count_bits(true.rows) - true_positive
    pixels = true.width * true.height - (0 if true.ignored is None else _count_bits(true.ignored))
    return Counts(
        true_positive=true_positive,
        false_positive=false_positive,
        false_negative=false_negative,
        true_negative=pixels - true_positive - false_positive - false_negative,
    )


def clear_ignored(predicted: PackedMask, true: PackedMask) -> PackedMask:
    """Return the predicted mask without the pixels that the true one ignores.

    Raises:
        SizeError: their sizes differ.
    """
    if (predicted.width, predicted.height) != (true.width, true.height):
        raise SizeError(
            f"The predicted mask is {predicted.width}x{predicted.height} pixels, "
            f"the true one {true.width}x{true.height}."
        )
    return predicted if true.ignored is None else PackedMask(predicted.rows & ~true.ignored, predicted.width)


def _count_bits(rows: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(rows).sum(dtype=np.int64))
