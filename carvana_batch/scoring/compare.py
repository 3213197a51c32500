"""Comparing masks with the true ones, image by image: from two sources of masks to ``Scores``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carvana_batch.decode.photo import read_image
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.masks import PREDICTED_ADVICE, TRUTH_ADVICE, find_photos
from carvana_batch.masks.counts import SizeError, count
from carvana_batch.parallel import map_in_order
from carvana_batch.scoring.outline import compare_outlines
from carvana_batch.scoring.regions import OutlineErrors, find_lower_outline, find_similar_outline, find_thin
from carvana_batch.scoring.scores import COLUMNS, WITHOUT_PHOTO, Score, Scores, Unusable, score_mask
from carvana_batch.scoring.sources import MaskFolder, MaskRows, open_masks, read_pair
from carvana_batch.submission.table import COMPETITION_SIZE
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

ROWS_ADVICE = "Run-length rows are given as a .csv, .csv.gz or .zip."


@dataclass(frozen=True, slots=True)
class _Compared:
    """What came of one image: its row or why there is none, and what was wrong with its photo."""

    result: Score | Unusable
    problem: str = ""


def compare_masks(
    predicted: Path,
    truth: Path,
    *,
    photos: Path | None = None,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> Scores:
    """Compare the masks that have the same id.

    Args:
        predicted: a folder of masks (see ``find_masks``) or a file of run-length rows (see ``read_rows``).
        truth: the true ones, in either form.
        photos: the folder of the photos, for the numbers that take them.
        size: (width, height) of the masks if both are run-length rows, None for the competition's.
        workers: threads, by default one a core.
        on_progress: called as ``on_progress(done, total)`` after each image.

    Raises:
        UsageError: something cannot be used as a whole; not one id is in both, or has a photo; ``size`` is
            given although masks of a folder have their own.
    """
    ours = open_masks(predicted, advice=f"{PREDICTED_ADVICE} {ROWS_ADVICE}")
    true = open_masks(truth, advice=f"{TRUTH_ADVICE} {ROWS_ADVICE}")
    _check_size_is_needed(size, ours, true)
    shared = _share_ids(ours, true)
    files = None if photos is None else _find_photos_of(shared, photos)
    read = partial(read_pair, ours, true, size=size or COMPETITION_SIZE)

    def compare(image: str) -> _Compared:
        try:
            masks = read(image)
            score = score_mask(image, *masks)
        except (ImageError, SizeError) as error:
            return _Compared(Unusable(image, str(error)))
        if files is None:
            return _Compared(measure_outline(score, *masks))
        try:
            return _Compared(measure_outline(score, *masks, read_photo(files, image, masks[1])))
        except ImageError as error:
            return _Compared(measure_outline(score, *masks), str(error))

    compared = []
    for each in map_in_order(compare, shared, workers):
        compared.append(each)
        on_progress(len(compared), len(shared))
    results = [each.result for each in compared]
    return Scores(
        rows=tuple(result for result in results if isinstance(result, Score)),
        missing=tuple(image for image in true.ids if image not in ours.ids),
        extra=tuple(image for image in ours.ids if image not in true.ids),
        unusable=tuple(result for result in results if isinstance(result, Unusable)),
        unseen=tuple(Unusable(each.result.image, each.problem) for each in compared if each.problem),
        columns=WITHOUT_PHOTO if files is None else COLUMNS,
        reader=read,
    )


def measure_outline(
    score: Score, predicted: PackedMask, true: PackedMask, photo: NDArray[np.uint8] | None = None
) -> Score:
    """``score`` with all that is not counted over the whole image, masks and photo being of one size.

    ``photo`` is (H, W, 3) uint8, RGB; without it, what takes it stays None.
    """
    boundary = compare_outlines(predicted, true)
    errors = OutlineErrors(predicted, true)
    thin, lower = find_thin(true), find_lower_outline(true)
    found = count(predicted, thin)
    score = replace(
        score,
        boundary_mean=boundary.mean,
        boundary_p95=boundary.p95,
        band_dice=boundary.band_dice,
        outline_pixels=len(errors.outline),
        outline_error=errors.everywhere,
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
    """(H, W, 3) uint8, RGB; raises ImageError where there is none, or none of the mask's size."""
    if image not in photos:
        raise ImageError("There is no photo of this name.")
    photo = read_image(photos[image])
    height, width = photo.shape[:2]
    if (width, height) != (mask.width, mask.height):
        raise ImageError(
            f"{shown(photos[image])} is {width}x{height} pixels, the masks {mask.width}x{mask.height}."
        )
    return photo


def _check_size_is_needed(size: tuple[int, int] | None, *sources: MaskFolder | MaskRows) -> None:
    folder = next((source for source in sources if isinstance(source, MaskFolder)), None)
    if size is not None and folder is not None:
        raise UsageError(
            f"--size is for two files of run-length rows; the masks in {shown(folder.path)} have their own "
            "size. Leave --size out."
        )


def _share_ids(ours: MaskFolder | MaskRows, true: MaskFolder | MaskRows) -> list[str]:
    shared = [image for image in ours.ids if image in true.ids]
    if not shared:
        one, other = (f"such as {shown(next(iter(source.ids), 'none'))}" for source in (ours, true))
        raise UsageError(
            f"Nothing to compare: no mask of {shown(ours.path)} ({one}) has the name of one of "
            f"{shown(true.path)} ({other}). Give masks of the same photos."
        )
    return shared


def _find_photos_of(shared: list[str], folder: Path) -> dict[str, Path]:
    try:
        photos = find_photos(folder)
    except UsageError as error:
        raise UsageError(f"--images: {error}") from error
    if not any(image in photos for image in shared):
        one, other = shown(next(iter(photos))), shown(shared[0])
        raise UsageError(
            f"None of the photos in --images {shown(folder)} (such as {one}) has the name of a mask (such as "
            f"{other}). Name the folder that was given to predict."
        )
    return photos
