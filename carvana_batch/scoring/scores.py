"""Scores of masks: the metrics of each image, and their means over all images and over groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.files import atomic_writer, read_error, table_cell, write_row
from carvana_batch.inputs.keys import split_id
from carvana_batch.masks.counts import count
from carvana_batch.text import counted, shown
from carvana_batch.values import Failure, PackedMask

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class Score:
    """The metrics of one image, explained in ``MEANINGS``.

    None stands for a metric that was not measured (validation during training counts pixels only, and
    ``similar_*`` require the photo) or is undefined for this image.
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

PIXEL_COUNT_COLUMNS = COLUMNS[: COLUMNS.index("boundary_mean")]
"""Metrics computed from pixel counts: all that validation during training measures."""

MASK_COLUMNS = COLUMNS[: COLUMNS.index("similar_pixels")]
"""Metrics computed from the two masks alone, without the photo."""

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
"""A sentence that explains each column."""

WEIGHTS = {
    "outline_error": "outline_pixels",
    "thin_recall": "thin_pixels",
    "lower_error": "lower_pixels",
    "similar_share": "outline_pixels",
    "similar_error": "similar_pixels",
}
"""Metrics of a part of the image -> column with the size of that part.

Means of these metrics are weighted by that size, so that each pixel of the part counts equally. In all other
means, each image counts equally."""

AVERAGED_COLUMNS = ("boundary_mean", "boundary_p95", "band_dice", *WEIGHTS)
"""Columns whose means are in ``Scores.averages``."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over the scored images, and the 5th, 50th and 95th percentile of their Dice."""

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
    """The mean of a metric that may be undefined for some images.

    Attributes:
        value: the mean; None if the metric is undefined for all images.
        images: number of images for which the metric is defined.
        pixels: total size of the measured part over these images (see ``WEIGHTS``); None for metrics that are
            not weighted.
    """

    value: float | None
    images: int
    pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The images of one car or of one view, with their means; ``averages`` is as in ``Scores``."""

    name: str
    rows: tuple[Score, ...] = field(repr=False)
    summary: Summary
    averages: Mapping[str, Average]


@dataclass(frozen=True, slots=True)
class Scores:
    """The result of comparing masks with the true ones, each part in the order of the ids.

    It has the length of ``rows``, can be indexed, and is iterated over like them.
    Only ``rows`` enter the means: images that are ``missing``, ``extra`` or ``unusable`` are named but not
    scored.

    Attributes:
        rows: the scored images.
        missing: ids of true masks without a predicted one.
        extra: ids of predicted masks without a true one.
        unusable: images whose masks exist but cannot be read or compared.
        unseen: images among ``rows`` whose photo was requested but is missing or unusable.
        turned: number of images with one upright mask and one as the photo is stored, which was turned by the
            EXIF orientation of the photo.
        unclear: number of images whose photo has an EXIF orientation that keeps its size, so that it cannot
            be told whether both masks have the same grid.
        columns: the fields of the rows that were measured.
        notes: what the user should know about how the masks were read, such as a size that was assumed.
        reader: reads the predicted and the true mask of an image again, for ``read_masks``.
    """

    rows: tuple[Score, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unusable: tuple[Failure, ...]
    unseen: tuple[Failure, ...] = ()
    turned: int = 0
    unclear: int = 0
    columns: tuple[str, ...] = PIXEL_COUNT_COLUMNS
    notes: tuple[str, ...] = ()
    reader: Callable[[str], tuple[PackedMask, PackedMask]] | None = field(
        default=None, repr=False, compare=False
    )

    def __repr__(self) -> str:
        """The mean Dice and what could not be compared."""
        summary = self.summary
        dice = "no mean Dice" if summary is None else f"mean Dice {summary.dice:.4f}"
        return f"<Scores of {', '.join([counted(len(self), 'image'), dice, *self.unused])}>"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Score:
        return self.rows[index]

    def __iter__(self) -> Iterator[Score]:
        return iter(self.rows)

    def to_pandas(self) -> DataFrame:
        """The rows as a table of pandas, an image a row, with the columns that were measured.

        Raises:
            CarvanaBatchError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise CarvanaBatchError("to_pandas() needs the package pandas: pip install pandas") from error
        table = pandas.DataFrame([asdict(row) for row in self.rows], columns=list(COLUMNS))
        return table[list(self.columns)].set_index("image")

    @property
    def complete(self) -> bool:
        """Whether every mask, and every requested photo, could be used."""
        return not (self.missing or self.extra or self.unusable or self.unseen)

    @property
    def unused(self) -> list[str]:
        """What could not be paired or compared, such as ``3 missing``; empty if :attr:`complete`."""
        kinds = {
            "missing": self.missing,
            "extra": self.extra,
            "unusable": self.unusable,
            "without a usable photo": self.unseen,
        }
        return [f"{len(images):,} {kind}" for kind, images in kinds.items() if images]

    @property
    def summary(self) -> Summary | None:
        """The means over ``rows``; None if no image was scored."""
        return summarise(self.rows)

    @property
    def averages(self) -> dict[str, Average]:
        """The means of the measured metrics that ``summary`` does not contain."""
        return average(self.rows, self.columns)

    @property
    def cars(self) -> list[Group]:
        """The rows grouped by car (see ``split_id``), sorted by name; empty if no two images share a car."""
        return self._group({row.image: split_id(row.image)[0] for row in self.rows})

    @property
    def views(self) -> list[Group]:
        """The rows with a view, grouped by it and sorted by name; empty if no two images share a view."""
        views = {row.image: split_id(row.image)[1] for row in self.rows}
        return self._group({image: view for image, view in views.items() if view})

    @property
    def not_empty(self) -> tuple[Score, ...]:
        """The rows of which at least one mask has foreground; the others have a Dice of 1."""
        return tuple(row for row in self.rows if row.area_true or row.area_predicted)

    def find_worst(self, number: int) -> list[Score]:
        """Return the ``number`` rows with the lowest Dice, lowest first."""
        return sorted(self.rows, key=lambda row: (row.dice, row.image))[:number]

    def read_masks(self, image: str) -> tuple[PackedMask, PackedMask]:
        """Read the predicted and the true mask of one of the rows again.

        Raises:
            ImageError: a file has become unusable since it was scored.
            ValueError: the scores were not computed from mask files.
        """
        if self.reader is None:
            raise ValueError("These scores do not know where their masks are.")
        return self.reader(image)

    def _group(self, names: Mapping[str, str]) -> list[Group]:
        """Group the rows by ``names``, id -> name of the group; rows without a name are left out."""
        groups: dict[str, list[Score]] = defaultdict(list)
        for row in self.rows:
            if row.image in names:
                groups[names[row.image]].append(row)
        if len(groups) == len(names):
            return []
        summarised = []
        for name, rows in sorted(groups.items()):
            summary = summarise(rows)
            if summary is not None:  # always true, because no group is empty
                summarised.append(Group(name, tuple(rows), summary, average(rows, self.columns)))
        return summarised


def summarise(rows: Sequence[Score]) -> Summary | None:
    """Compute means and percentiles over the rows; None if there are none."""
    if not rows:
        return None
    dice = [row.dice for row in rows]
    percentiles = np.percentile(dice, [5, 50, 95]).tolist()
    return Summary(
        images=len(rows),
        dice=float(np.mean(dice)),
        iou=float(np.mean([row.iou for row in rows])),
        pixel_accuracy=float(np.mean([row.pixel_accuracy for row in rows])),
        precision=float(np.mean([row.precision for row in rows])),
        recall=float(np.mean([row.recall for row in rows])),
        dice_05=percentiles[0],
        dice_50=percentiles[1],
        dice_95=percentiles[2],
    )


def average(rows: Sequence[Score], columns: Iterable[str] = COLUMNS) -> dict[str, Average]:
    """Compute the mean of each of ``AVERAGED_COLUMNS`` in ``columns``, over the rows where it is defined."""
    measured = set(columns)
    averages = {}
    for name in (name for name in AVERAGED_COLUMNS if name in measured):
        defined = [row for row in rows if getattr(row, name) is not None]
        weights = [getattr(row, WEIGHTS[name]) for row in defined] if name in WEIGHTS else None
        values = [getattr(row, name) for row in defined]
        mean = float(np.average(values, weights=weights)) if values else None
        averages[name] = Average(mean, len(defined), None if weights is None else sum(weights))
    return averages


def refuse_other_file(target: Path) -> None:
    """Check that writing scores would not replace any other file.

    Raises:
        UsageError: there is a file that is not empty and does not begin as ``write_scores`` begins.
    """
    if not target.is_file():
        return
    beginning = ",".join(PIXEL_COUNT_COLUMNS).encode()
    try:
        with target.open("rb") as file:
            found = file.read(len(beginning))
    except OSError as error:
        raise read_error(target, error) from error
    if found and found != beginning:
        raise UsageError(
            f"-o {shown(target)} is there already, and has no scores: it would be lost. Name another file."
        )


def write_scores(rows: Iterable[Score], path: Path, columns: Sequence[str] = PIXEL_COUNT_COLUMNS) -> None:
    """Write a CSV atomically, with one row per image and the given fields as columns.

    Ratios and distances have eight decimals; undefined values are left empty.

    Raises:
        CarvanaBatchError: see :func:`atomic_writer`.
    """
    with atomic_writer(path, "w") as file:
        write_row(file, columns)
        for row in rows:
            write_row(file, [_format_value(getattr(row, column)) for column in columns])


def score_mask(image: str, predicted: PackedMask, true: PackedMask) -> Score:
    """Compute the metrics of one image that pixel counts give; all others are None.

    Raises:
        SizeError: the masks differ in size.
    """
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


def _format_value(value: str | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return table_cell(value)
    return f"{value:.8f}" if isinstance(value, float) else str(value)
