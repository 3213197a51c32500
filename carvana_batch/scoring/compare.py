"""Compare masks with the true ones, image by image: from two sources of masks to ``Scores``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carvana_batch.decode.photo import read_image
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.keys import match_ids
from carvana_batch.inputs.masks import PREDICTED_ADVICE, TRUTH_ADVICE, find_photos
from carvana_batch.masks.counts import SizeError, count
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.parallel import map_in_order
from carvana_batch.scoring.outline import compare_outlines
from carvana_batch.scoring.regions import (
    OutlineErrors,
    find_lower_outline,
    find_similar_outline,
    find_thin_structures,
)
from carvana_batch.scoring.row_doubts import describe_rows
from carvana_batch.scoring.scores import COLUMNS, MASK_COLUMNS, Score, Scores, score_mask
from carvana_batch.scoring.sources import MaskRows, open_masks, read_pair
from carvana_batch.submission.table import COMPETITION_SIZE
from carvana_batch.text import cut_short, shown
from carvana_batch.values import Failure, PackedMask

PREDICTED_VALUE_ADVICE = "Save the predicted masks with two values."

ROWS_ADVICE = "Run-length rows are given as a .csv, .csv.gz or .zip."


@dataclass(frozen=True, slots=True)
class _Compared:
    """The result for one image: its score or why it has none, and why its photo could not be used, if so."""

    result: Score | Failure
    photo_failure: Failure | None = None


def compare_masks(
    predicted: Path,
    truth: Path,
    *,
    photos: Path | None = None,
    size: tuple[int, int] | None = None,
    car_values: Collection[int] = (),
    ignored_values: Collection[int] = (),
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> Scores:
    """Compare the masks that have the same id (see ``match_ids``). Images have the ids of the first side.

    Args:
        predicted: a folder of masks (see ``find_masks``) or a file of run-length rows (see ``read_rows``).
        truth: the true masks, in either form.
        photos: the folder of the photos, for the metrics that require them.
        size: (width, height) of the masks if both sides are run-length rows; None for the competition's.
        car_values: grey levels or palette indexes that are car in the files of ``truth``, if they do not
            simply have two values of which the higher is car.
        ignored_values: grey levels or palette indexes of pixels of ``truth`` that count in no metric.
        workers: number of threads; by default one per core.
        on_progress: called as ``on_progress(done, total)`` after each image.

    Raises:
        UsageError: one of the folders or files cannot be used, no id occurs on both sides, none of the
            common ids has a photo, the values of masks do not tell which are car, ``size`` is given although
            masks of a folder have their own size, or it is not given although rows are of another size than
            the competition's.
    """
    predicted_masks = open_masks(predicted, advice=f"{PREDICTED_ADVICE} {ROWS_ADVICE}")
    true_masks = open_masks(truth, advice=f"{TRUTH_ADVICE} {ROWS_ADVICE}")
    _refuse_needless_size(size, predicted_masks, true_masks)
    true_ids = _find_common_ids(predicted_masks, true_masks)
    images = list(true_ids)
    photo_files = None if photos is None else _find_matching_photos(images, photos)
    if isinstance(predicted_masks, MaskFolder):
        predicted_masks = predicted_masks.decide(advice=PREDICTED_VALUE_ADVICE)
    if isinstance(true_masks, MaskFolder):
        true_masks = true_masks.decide(car_values, ignored_values)
    elif car_values or ignored_values:
        raise UsageError(
            f"--car-value and --ignore-value are for mask files, but --gt {shown(truth)} has run-length rows."
        )
    notes = describe_rows((predicted_masks, true_masks), true_ids, size)
    notes += _describe_values(predicted_masks, true_masks)

    def read(image: str) -> tuple[PackedMask, PackedMask]:
        ids = image, true_ids[image]
        return read_pair(predicted_masks, true_masks, ids, size or COMPETITION_SIZE)

    def compare(image: str) -> _Compared:
        try:
            masks = read(image)
            score = score_mask(image, *masks)
        except ImageError as error:
            return _Compared(Failure(image, "read", str(error)))
        except SizeError as error:
            return _Compared(Failure(image, "compare", str(error)))
        photo = failure = None
        if photo_files is not None:
            try:
                photo = read_photo(photo_files, image, masks[1])
            except ImageError as error:
                failure = Failure(image, "decode", str(error))
        return _Compared(add_outline_metrics(score, *masks, photo), failure)

    compared = []
    for each in map_in_order(compare, images, workers):
        compared.append(each)
        on_progress(len(compared), len(images))
    results = [each.result for each in compared]
    compared_truth = set(true_ids.values())
    return Scores(
        rows=tuple(result for result in results if isinstance(result, Score)),
        missing=tuple(image for image in true_masks.ids if image not in compared_truth),
        extra=tuple(image for image in predicted_masks.ids if image not in true_ids),
        unusable=tuple(result for result in results if isinstance(result, Failure)),
        unseen=tuple(each.photo_failure for each in compared if each.photo_failure is not None),
        columns=MASK_COLUMNS if photo_files is None else COLUMNS,
        notes=notes,
        reader=read,
    )


def add_outline_metrics(
    score: Score, predicted: PackedMask, true: PackedMask, photo: NDArray[np.uint8] | None = None
) -> Score:
    """Return ``score`` with the metrics of the outline and of its parts filled in.

    Args:
        score: the metrics from pixel counts.
        predicted: the predicted mask.
        true: the true mask, of the same size.
        photo: (H, W, 3) uint8, RGB, of the same size; without it, the metrics that require it stay None.
    """
    boundary = compare_outlines(predicted, true)
    errors = OutlineErrors(predicted, true)
    thin, lower = find_thin_structures(true), find_lower_outline(true)
    found = count(predicted, thin)
    score = replace(
        score,
        boundary_mean=boundary.mean,
        boundary_p95=boundary.p95,
        band_dice=boundary.band_dice,
        outline_pixels=len(errors.outline),
        outline_error=errors.overall,
        thin_pixels=found.area_true,
        thin_recall=found.recall if found.area_true else None,
        lower_pixels=len(lower),
        lower_error=errors.along(lower),
    )
    if photo is None:
        return score
    similar = find_similar_outline(true, photo, errors.outline)
    return replace(
        score,
        similar_pixels=len(similar),
        similar_share=len(similar) / len(errors.outline) if len(errors.outline) else None,
        similar_error=errors.along(similar),
    )


def read_photo(photos: dict[str, Path], image: str, mask: PackedMask) -> NDArray[np.uint8]:
    """Read the photo of an image, (H, W, 3) uint8, RGB.

    Args:
        photos: the files of the photos by id.
        image: the id.
        mask: a mask of the size that the photo must have.

    Raises:
        ImageError: there is no such photo, it cannot be decoded, or its size differs from the mask's.
    """
    if image not in photos:
        raise ImageError("There is no photo of this name.")
    photo = read_image(photos[image])
    height, width = photo.shape[:2]
    if (width, height) != (mask.width, mask.height):
        raise ImageError(
            f"{shown(photos[image])} is {width}x{height} pixels, the masks {mask.width}x{mask.height}."
        )
    return photo


def _describe_values(predicted: MaskFolder | MaskRows, true: MaskFolder | MaskRows) -> tuple[str, ...]:
    """Say how masks are read that have other values than usual."""
    sides = {"predicted": predicted, "true": true}
    return tuple(
        f"In the {side} masks, {source.values.unusual}."
        for side, source in sides.items()
        if isinstance(source, MaskFolder) and source.values.unusual
    )


def _refuse_needless_size(size: tuple[int, int] | None, *sources: MaskFolder | MaskRows) -> None:
    folder = next((source for source in sources if isinstance(source, MaskFolder)), None)
    if size is not None and folder is not None:
        raise UsageError(
            f"--size is for two files of run-length rows; the masks in {shown(folder.path)} have their own "
            "size. Leave --size out."
        )


def _find_common_ids(predicted: MaskFolder | MaskRows, true: MaskFolder | MaskRows) -> dict[str, str]:
    common = match_ids(predicted.ids, true.ids)
    if not common:
        first_predicted, first_true = (
            f"such as {cut_short(shown(next(iter(source.ids), 'none')))}" for source in (predicted, true)
        )
        raise UsageError(
            f"Nothing to compare: no mask of {shown(predicted.path)} ({first_predicted}) has the name of one "
            f"of {shown(true.path)} ({first_true}). Give masks of the same photos."
        )
    return common


def _find_matching_photos(images: list[str], folder: Path) -> dict[str, Path]:
    try:
        photos = find_photos(folder)
    except UsageError as error:
        raise UsageError(f"--images: {error}") from error
    matched = match_ids(images, photos)
    if not matched:
        first_photo, first_mask = shown(next(iter(photos))), shown(images[0])
        raise UsageError(
            f"None of the photos in --images {shown(folder)} (such as {first_photo}) has the name of a mask "
            f"(such as {first_mask}). Name the folder that was given to predict."
        )
    return {image: photos[photo] for image, photo in matched.items()}
