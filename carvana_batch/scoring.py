"""Masks against the true ones: a row of metrics for each image, and their summary."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from carvana_batch.atomic import atomic_writer
from carvana_batch.images import read_mask
from carvana_batch.inputs import shown
from carvana_batch.masks import find_masks, map_in_order
from carvana_batch.metrics import SizeError, count
from carvana_batch.records import ImageError, PackedMask, UsageError


@dataclass(frozen=True, slots=True)
class Score:
    """One image: its id, ratios in 0..1 (see ``metrics.Counts``), and foreground areas in pixels."""

    image: str
    dice: float
    iou: float
    pixel_accuracy: float
    precision: float
    recall: float
    area_true: int
    area_predicted: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """An image whose masks were both there but could not be compared."""

    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over the scored images, and the Dice that 5, 50 and 95 percent of them do not exceed."""

    images: int
    dice: float
    iou: float
    pixel_accuracy: float
    precision: float
    recall: float
    dice_05: float
    dice_50: float
    dice_95: float


@dataclass(frozen=True, slots=True)
class Scores:
    """All that came of comparing two folders, each part in the order of the ids.

    Only ``rows`` are ever averaged: an image that is ``missing`` (true mask without a predicted one),
    ``extra`` (predicted without a true one) or ``unusable`` is named, not given a score.
    """

    rows: tuple[Score, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unusable: tuple[Unusable, ...]

    @property
    def complete(self) -> bool:
        """Whether every mask of both folders was scored."""
        return not (self.missing or self.extra or self.unusable)

    @property
    def summary(self) -> Summary | None:
        """None if no image was scored."""
        return summarise(self.rows)

    def find_worst(self, number: int) -> list[Score]:
        """The rows with the lowest Dice, the lowest first."""
        return sorted(self.rows, key=lambda row: (row.dice, row.image))[:number]


def summarise(rows: Sequence[Score]) -> Summary | None:
    """Means and quantiles over the rows, None if there are none."""
    if not rows:
        return None
    dice = [row.dice for row in rows]
    quantiles = np.percentile(dice, [5, 50, 95]).tolist()
    return Summary(
        images=len(rows),
        dice=float(np.mean(dice)),
        iou=float(np.mean([row.iou for row in rows])),
        pixel_accuracy=float(np.mean([row.pixel_accuracy for row in rows])),
        precision=float(np.mean([row.precision for row in rows])),
        recall=float(np.mean([row.recall for row in rows])),
        dice_05=quantiles[0],
        dice_50=quantiles[1],
        dice_95=quantiles[2],
    )


def score_folders(
    predicted: Path,
    truth: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> Scores:
    """Compare the masks of two folders that have the same id (see ``find_masks``).

    ``workers`` threads read the masks (default: one a core), and ``on_progress(done, total)`` is called
    after each pair. Raises UsageError where a folder cannot be used, or where not one id is in both.
    """
    predicted_masks, true_masks = find_masks(predicted), find_masks(truth)
    shared = [mask_id for mask_id in predicted_masks if mask_id in true_masks]
    if not shared:
        one, other = shown(next(iter(predicted_masks))), shown(next(iter(true_masks)))
        raise UsageError(
            f"Nothing to compare: no mask of {shown(predicted)} (such as {one}) has the name of one of "
            f"{shown(truth)} (such as {other}). Give two folders of masks of the same photos."
        )

    def score(mask_id: str) -> Score | Unusable:
        return _score_files(mask_id, predicted_masks[mask_id], true_masks[mask_id])

    results = []
    for result in map_in_order(score, shared, workers):
        results.append(result)
        on_progress(len(results), len(shared))
    return Scores(
        rows=tuple(result for result in results if isinstance(result, Score)),
        missing=tuple(mask_id for mask_id in true_masks if mask_id not in predicted_masks),
        extra=tuple(mask_id for mask_id in predicted_masks if mask_id not in true_masks),
        unusable=tuple(result for result in results if isinstance(result, Unusable)),
    )


def write_scores(rows: Sequence[Score], path: Path) -> None:
    """Write the scored images as CSV, one a row, ratios with eight decimals; whole or not at all.

    Raises what ``atomic_writer`` raises.
    """
    with atomic_writer(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Score))
        for row in rows:
            image, *values = astuple(row)
            ratios = (f"{value:.8f}" if isinstance(value, float) else value for value in values)
            writer.writerow((defuse_formula(image), *ratios))


def defuse_formula(text: str) -> str:
    """``text`` with an apostrophe before it if a spreadsheet would take it for a formula.

    For tables that people open. Not for a submission, whose names must stay what they are.
    """
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _score_files(mask_id: str, predicted: Path, truth: Path) -> Score | Unusable:
    try:
        return score_mask(mask_id, read_mask(predicted), read_mask(truth))
    except (ImageError, SizeError) as error:
        return Unusable(mask_id, str(error))


def score_mask(mask_id: str, predicted: PackedMask, true: PackedMask) -> Score:
    """The row of one image; raises SizeError if the masks' sizes differ."""
    counts = count(predicted, true)
    return Score(
        image=mask_id,
        dice=counts.dice,
        iou=counts.iou,
        pixel_accuracy=counts.pixel_accuracy,
        precision=counts.precision,
        recall=counts.recall,
        area_true=counts.area_true,
        area_predicted=counts.area_predicted,
    )
