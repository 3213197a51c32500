"""Masks against the true ones: a row of numbers for each image, and what they come to together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from carvana_batch.files import atomic_writer, defuse_formula, write_row
from carvana_batch.inputs.keys import split_id
from carvana_batch.masks.counts import count
from carvana_batch.values import PackedMask


@dataclass(frozen=True, slots=True)
class Score:
    """One image, by its id. ``MEANINGS`` says what each number is.

    None is what was not measured (validation while training counts pixels only, and ``similar_*`` take the
    photo), or what is not defined for this image.
    """

    image: str
    dice: float
    iou: float
    pixel_accuracy: float
    precision: float
    recall: float
    area_true: int
    area_predicted: int
    boundary_mean: float | None = None
    boundary_p95: float | None = None
    band_dice: float | None = None
    outline_pixels: int | None = None
    outline_error: float | None = None
    thin_pixels: int | None = None
    thin_recall: float | None = None
    lower_pixels: int | None = None
    lower_error: float | None = None
    similar_pixels: int | None = None
    similar_share: float | None = None
    similar_error: float | None = None


COLUMNS = tuple(each.name for each in fields(Score))

COUNTED = COLUMNS[: COLUMNS.index("boundary_mean")]
"""What counting pixels gives: all that validation while training measures."""

WITHOUT_PHOTO = COLUMNS[: COLUMNS.index("similar_pixels")]
"""What two masks give."""

MEANINGS = {
    "image": "The id of the image: the path of its masks without suffix and without _mask.",
    "dice": "2 TP / (2 TP + FP + FN) of the pixels of the image; 1 if both masks are empty.",
    "iou": "TP / (TP + FP + FN), intersection over union; 1 if both masks are empty.",
    "pixel_accuracy": "The share of all pixels that are right.",
    "precision": "The share of the predicted car that is car.",
    "recall": "The share of the car that was found.",
    "area_true": "Pixels of the true mask.",
    "area_predicted": "Pixels of the predicted mask.",
    "boundary_mean": "Mean distance in pixels from each pixel of either outline to the other outline; 0 if"
    " both masks are empty, not defined if one is.",
    "boundary_p95": "95th percentile of these distances.",
    "band_dice": "Dice of the pixels at most 5 pixels from the true outline; 1 if both masks are empty, not"
    " defined if only the true one is.",
    "outline_pixels": "Pixels of the true mask that touch background or the frame.",
    "outline_error": "Wrong pixels at most 20 pixels from the true outline, for each pixel of it: about how"
    " thick the error is, in pixels.",
    "thin_pixels": "Pixels of thin structures: where the true mask is less than 9 pixels wide, apart from"
    " corners.",
    "thin_recall": "The share of the thin structures that was found.",
    "lower_pixels": "Pixels of the lower outline (wheels and the shadow between them): where, in the lower"
    " half of the true mask, the ground below touches the car.",
    "lower_error": "As outline_error, along the lower outline.",
    "similar_pixels": "Pixels of the true outline where car and background, averaged within 5 pixels, are"
    " less than 10 apart in CIELAB.",
    "similar_share": "Their share of the true outline.",
    "similar_error": "As outline_error, along this part of the outline.",
}
"""One sentence for each column."""

WEIGHTS = {
    "outline_error": "outline_pixels",
    "thin_recall": "thin_pixels",
    "lower_error": "lower_pixels",
    "similar_share": "outline_pixels",
    "similar_error": "similar_pixels",
}
"""Numbers of a part of the image, and its size: a mean over images weighs by it, so that each pixel of the
part counts the same. All other means are over images that count the same."""

AVERAGED = ("boundary_mean", "boundary_p95", "band_dice", *WEIGHTS)


@dataclass(frozen=True, slots=True)
class Unusable:
    """An image whose masks, or whose photo, were there but could not be used."""

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
class Average:
    """The mean of a number that is not defined for every image.

    ``value`` is None if it is defined for none, ``images`` are those it is defined for, and ``pixels`` is
    the size of the part it is about, all images together (see ``WEIGHTS``), or None.
    """

    value: float | None
    images: int
    pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The images of one car, or of one view, and what they come to; ``averages`` as in ``Scores``."""

    name: str
    rows: tuple[Score, ...] = field(repr=False)
    summary: Summary
    averages: Mapping[str, Average]


@dataclass(frozen=True, slots=True)
class Scores:
    """All that came of comparing masks with the true ones, each part in the order of the ids.

    Only ``rows`` are ever averaged: an image that is ``missing`` (true mask without a predicted one),
    ``extra`` (predicted without a true one) or ``unusable`` is named, not given a score. ``unseen`` are
    those of the rows whose photo was wanted but not there or not usable.

    ``columns`` are the fields of the rows that were measured. ``reader`` is for ``read_masks``.
    """

    rows: tuple[Score, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unusable: tuple[Unusable, ...]
    unseen: tuple[Unusable, ...] = ()
    columns: tuple[str, ...] = COUNTED
    reader: Callable[[str], tuple[PackedMask, PackedMask]] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def complete(self) -> bool:
        """Whether all that was given could be scored."""
        return not (self.missing or self.extra or self.unusable or self.unseen)

    @property
    def summary(self) -> Summary | None:
        """None if no image was scored."""
        return summarise(self.rows)

    @property
    def averages(self) -> dict[str, Average]:
        """The means of those numbers that were measured and are not in ``summary``."""
        return average(self.rows, self.columns)

    @property
    def cars(self) -> list[Group]:
        """By car (see ``split_id``), in the order of the names; empty if each image has a car of its own."""
        return self._group({row.image: split_id(row.image)[0] for row in self.rows})

    @property
    def views(self) -> list[Group]:
        """By view, the images without one left out; empty if each image has a view of its own."""
        views = {row.image: split_id(row.image)[1] for row in self.rows}
        return self._group({image: view for image, view in views.items() if view})

    def find_worst(self, number: int) -> list[Score]:
        """The rows with the lowest Dice, the lowest first."""
        return sorted(self.rows, key=lambda row: (row.dice, row.image))[:number]

    def read_masks(self, image: str) -> tuple[PackedMask, PackedMask]:
        """The predicted and the true mask of one of the rows, read again.

        Raises ImageError where a file has become unusable since, and ValueError for scores that did not
        come from masks.
        """
        if self.reader is None:
            raise ValueError("These scores do not know where their masks are.")
        return self.reader(image)

    def _group(self, names: Mapping[str, str]) -> list[Group]:
        groups: dict[str, list[Score]] = defaultdict(list)
        for row in self.rows:
            if row.image in names:
                groups[names[row.image]].append(row)
        if len(groups) == len(names):
            return []
        found = []
        for name, rows in sorted(groups.items()):
            summary = summarise(rows)
            if summary is not None:  # no group is empty
                found.append(Group(name, tuple(rows), summary, average(rows, self.columns)))
        return found


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


def average(rows: Sequence[Score], columns: Iterable[str] = COLUMNS) -> dict[str, Average]:
    """The mean of each of ``AVERAGED`` that is among ``columns``, over the rows that have a value."""
    averages = {}
    for name in (name for name in AVERAGED if name in set(columns)):
        defined = [row for row in rows if getattr(row, name) is not None]
        weights = [getattr(row, WEIGHTS[name]) for row in defined] if name in WEIGHTS else None
        values = [getattr(row, name) for row in defined]
        mean = float(np.average(values, weights=weights)) if values else None
        averages[name] = Average(mean, len(defined), None if weights is None else sum(weights))
    return averages


def write_scores(rows: Iterable[Score], path: Path, columns: Sequence[str] = COUNTED) -> None:
    """Write the scored images as CSV, one a row, with these fields of theirs; whole or not at all.

    Ratios and distances have eight decimals; what is not defined is left empty. Raises what
    ``atomic_writer`` raises.
    """
    with atomic_writer(path, "w") as file:
        write_row(file, columns)
        for row in rows:
            write_row(file, [_write_value(getattr(row, column)) for column in columns])


def score_mask(image: str, predicted: PackedMask, true: PackedMask) -> Score:
    """The row of one image, with what counting pixels gives; raises SizeError if the masks' sizes differ."""
    counts = count(predicted, true)
    return Score(
        image=image,
        dice=counts.dice,
        iou=counts.iou,
        pixel_accuracy=counts.pixel_accuracy,
        precision=counts.precision,
        recall=counts.recall,
        area_true=counts.area_true,
        area_predicted=counts.area_predicted,
    )


def _write_value(value: str | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return defuse_formula(value)
    return f"{value:.8f}" if isinstance(value, float) else str(value)
