"""Compare masks with the true ones, image by image: from two sources of masks to ``Scores``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from carvana_batch.decode.photo import decode_image, read_layout
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.keys import match_ids
from carvana_batch.inputs.masks import PREDICTED_ADVICE, TRUTH_ADVICE, find_photos
from carvana_batch.masks.counts import SizeError, count
from carvana_batch.masks.doubts import describe_doubts, fits_otherwise
from carvana_batch.masks.fit import Fit, turn_otherwise, turn_to_fit
from carvana_batch.masks.folder import MaskFolder, Reading
from carvana_batch.masks.values import describe_corners
from carvana_batch.orientation import turn
from carvana_batch.parallel import map_in_order
from carvana_batch.scoring.outline import compare_outlines
from carvana_batch.scoring.regions import (
    OutlineErrors,
    find_lower_outline,
    find_similar_outline,
    find_thin_structures,
)
from carvana_batch.scoring.row_doubts import check_rows
from carvana_batch.scoring.scores import COLUMNS, MASK_COLUMNS, Score, Scores, score_mask
from carvana_batch.scoring.sources import MaskRows, open_masks, read_pair
from carvana_batch.submission.table import COMPETITION_SIZE
from carvana_batch.text import counted, cut_short, shown
from carvana_batch.values import Failure, PackedMask

SIZE_ADVICE = "Give both in the size of the photo."

PREDICTED_VALUE_ADVICE = "Save the predicted masks with two values."

ROWS_ADVICE = "Run-length rows are given as a .csv, .csv.gz, .zip or .tsv."


SWAPPED_ADVICE = (
    "Its sides are swapped: probably one is upright and the other as the photo is stored; give --images, so"
    " that it can be turned by the EXIF orientation of the photo."
)

SWAPPED_ROW_ADVICE = (
    "A run-length row has the sides that its runs fit; it may instead count pixels down the columns, which"
    " `carvana-batch decode --rle-order columns` makes masks of."
)


@dataclass(frozen=True, slots=True)
class _Material:
    """What is compared for one image.

    Attributes:
        predicted: the predicted mask.
        true: the true mask.
        fit: TURNED if only one of them was upright, UNCLEAR if their size does not tell.
        photo: (H, W, 3) uint8, RGB, on the grid of the masks; None if there is none.
        photo_failure: why there is none, although photos were given.
        turned: the true mask turned to the other grid that it may have (see ``turn_otherwise``), if ``fit``
            is UNCLEAR.
    """

    predicted: PackedMask
    true: PackedMask
    fit: Fit = Fit.SAME
    photo: NDArray[np.uint8] | None = None
    photo_failure: Failure | None = None
    turned: tuple[PackedMask, ...] = ()


@dataclass(frozen=True, slots=True)
class _Compared:
    """The result for one image: its score or why it has none, and what came of its photo.

    ``covers_corners`` is whether the predicted and the true mask do, as if they were inverted, and
    ``dice_turned`` the Dice if the true mask is turned.
    """

    result: Score | Failure
    fit: Fit = Fit.SAME
    photo_failure: Failure | None = None
    covers_corners: tuple[bool, bool] | None = None
    dice_turned: float | None = None


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
    reading: tuple[Reading, Reading] = (nullcontext, nullcontext),
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
        reading: see ``Reading``; for ``predicted`` and for ``truth``.

    Raises:
        UsageError: one of the folders or files cannot be used, no id occurs on both sides, none of the
            common ids has a photo, the values of masks do not tell which are car, ``size`` is given although
            masks of a folder have their own size, or it is not given although rows are of another size than
            the competition's.
    """
    predicted_masks = open_masks(predicted, advice=f"{PREDICTED_ADVICE} {ROWS_ADVICE}", reading=reading[0])
    true_masks = open_masks(truth, advice=f"{TRUTH_ADVICE} {ROWS_ADVICE}", reading=reading[1])
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
    (predicted_masks, true_masks), notes = check_rows(
        (predicted_masks, true_masks), true_ids, size, photo_files
    )
    sources = predicted_masks, true_masks
    doubts = (source.doubt for source in sources if isinstance(source, MaskRows) and source.doubt)
    notes = tuple(f"Warning: {doubt}" for doubt in doubts) + notes
    has_rows = isinstance(predicted_masks, MaskRows) or isinstance(true_masks, MaskRows)
    notes += _describe_values(predicted_masks, true_masks)

    def read(image: str) -> _Material:
        ids = image, true_ids[image]
        masks = read_pair(predicted_masks, true_masks, ids, size or COMPETITION_SIZE)
        return _Material(*masks) if photo_files is None else _with_photo(image, *masks, photo_files)

    def compare(image: str) -> _Compared:
        try:
            material = read(image)
            predicted, true = material.predicted, material.true
            score = score_mask(image, predicted, true)
        except ImageError as error:
            return _Compared(Failure(image, "read", str(error)))
        except SizeError as error:
            reason = str(error)
            if (predicted.width, predicted.height) == (true.height, true.width):
                if photo_files is None:
                    reason += f" {SWAPPED_ADVICE}"
                elif material.photo_failure is not None:
                    reason += f" {material.photo_failure.reason}"
                if has_rows:
                    reason += f" {SWAPPED_ROW_ADVICE}"
            else:
                reason += f" {SIZE_ADVICE}"
            return _Compared(Failure(image, "compare", reason))
        score = add_outline_metrics(score, predicted, true, material.photo)
        corners = predicted.covers_corners, true.covers_corners
        turned = max((count(predicted, each).dice for each in material.turned), default=None)
        return _Compared(score, material.fit, material.photo_failure, corners, turned)

    def read_masks(image: str) -> tuple[PackedMask, PackedMask]:
        material = read(image)
        return material.predicted, material.true

    compared = []
    for each in map_in_order(compare, images, workers):
        compared.append(each)
        on_progress(len(compared), len(images))
    results = [each.result for each in compared]
    corners = [each.covers_corners for each in compared if each.covers_corners is not None]
    notes += _describe_turn(compared)
    notes += _describe_doubts([result for result in results if isinstance(result, Score)], corners)
    compared_truth = set(true_ids.values())
    return Scores(
        rows=tuple(result for result in results if isinstance(result, Score)),
        missing=tuple(image for image in true_masks.ids if image not in compared_truth),
        extra=tuple(image for image in predicted_masks.ids if image not in true_ids),
        unusable=tuple(result for result in results if isinstance(result, Failure)),
        unseen=tuple(each.photo_failure for each in compared if each.photo_failure is not None),
        turned=sum(each.fit == Fit.TURNED for each in compared),
        unclear=sum(each.fit == Fit.UNCLEAR for each in compared),
        columns=MASK_COLUMNS if photo_files is None else COLUMNS,
        notes=notes,
        reader=read_masks,
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
    """Read the photo of an image, (H, W, 3) uint8, RGB, on the grid of its mask.

    Args:
        photos: the files of the photos by id.
        image: the id.
        mask: a mask that has the size of the photo, as it is stored or turned upright.

    Raises:
        ImageError: there is no such photo, it cannot be decoded, or its size differs from the mask's.
    """
    path = _find_photo(photos, image)
    decoded = decode_image(path)
    size = mask.height, mask.width
    for pixels in (decoded.pixels, turn(decoded.pixels, decoded.orientation)):
        if pixels.shape[:2] == size:
            return np.ascontiguousarray(pixels)
    height, width = decoded.pixels.shape[:2]
    raise ImageError(f"{shown(path)} is {width}x{height} pixels, the masks {mask.width}x{mask.height}.")


def _find_photo(photos: dict[str, Path], image: str) -> Path:
    if image not in photos:
        raise ImageError("There is no photo of this name.")
    return photos[image]


def _with_photo(image: str, predicted: PackedMask, true: PackedMask, photos: dict[str, Path]) -> _Material:
    """Read the photo, and turn it and its masks upright if its size tells how the masks lie."""
    fit = Fit.SAME
    try:
        layout = read_layout(_find_photo(photos, image))
        predicted, predicted_fit = turn_to_fit(predicted, layout.upright_size, layout)
        true, true_fit = turn_to_fit(true, layout.upright_size, layout)
        if predicted_fit != true_fit:
            fit = Fit.TURNED
        elif true_fit == Fit.UNCLEAR:
            fit = Fit.UNCLEAR
        turned = turn_otherwise(true, layout.orientation) if fit == Fit.UNCLEAR else ()
        return _Material(predicted, true, fit, read_photo(photos, image, predicted), turned=turned)
    except ImageError as error:
        return _Material(predicted, true, fit, None, Failure(image, "decode", str(error)))


def _describe_values(predicted: MaskFolder | MaskRows, true: MaskFolder | MaskRows) -> tuple[str, ...]:
    """Say how masks are read that have other values than usual."""
    sides = {"predicted": predicted, "true": true}
    return tuple(
        f"In the {side} masks, {source.values.unusual}."
        for side, source in sides.items()
        if isinstance(source, MaskFolder) and source.values.unusual
    )


def _describe_turn(compared: Sequence[_Compared]) -> tuple[str, ...]:
    """Say so if true masks whose size does not tell how they lie fit far better if they are turned."""
    dice = [
        (each.result.dice, each.dice_turned)
        for each in compared
        if isinstance(each.result, Score) and each.dice_turned is not None
    ]
    if not dice:
        return ()
    given, turned = map(fmean, zip(*dice, strict=True))
    if not fits_otherwise(given, turned):
        return ()
    return (
        "Warning: the masks of one side seem to be upright, those of the other as the photos are stored."
        f" An EXIF orientation that keeps the size: {counted(len(dice), 'photo')}; turned by it, the mean"
        f" Dice of these would be {turned:.3f} instead of {given:.3f}. `carvana-batch predict --exif apply`"
        " makes upright masks.",
    )


def _describe_doubts(rows: Sequence[Score], corners: Sequence[tuple[bool, bool]]) -> tuple[str, ...]:
    """Say so if the masks of a side seem to be inverted, or to have nothing in common with the others."""
    sides = zip(zip(*corners, strict=True), ("the predicted masks", "the true masks"), strict=False)
    inverted = tuple(doubt for each, masks in sides if (doubt := describe_corners(each, masks)))
    if inverted:
        return inverted
    with_cars = [row.dice for row in rows if row.area_true and row.area_predicted]
    doubts = describe_doubts(with_cars, [row.pixel_accuracy for row in rows])
    return (f"Warning: {doubts}",) if doubts else ()


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
