"""Says whether run-length rows seem to be read with the wrong size or the wrong order of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.masks import rle
from carvana_batch.masks.counts import count
from carvana_batch.masks.fit import Fit, turn_to_fit_file
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.layout import MIN_RUNS, SAMPLE, Misfit, find_misfit, fits_swapped
from carvana_batch.scoring.sources import MaskRows, describe_decoding, guess_height, read_pair
from carvana_batch.submission.table import COMPETITION_SIZE
from carvana_batch.text import cut_short, shown
from carvana_batch.values import PackedMask

CLEARLY_BETTER = 0.2
"""If the mean Dice is so much higher for the other order of pixels, that order is probably right."""

SOUND = 0.7
"""A lower mean Dice does not show that the other order is right."""

OTHER_TURNS = (6, 7, 8)
"""The EXIF orientations that swap sides, besides 5, which does what counting down the columns does."""

Sources = tuple[MaskFolder | MaskRows, MaskFolder | MaskRows]


@dataclass(frozen=True, slots=True)
class _Row:
    """A run-length row that was compared with the mask of the other side in several ways.

    Attributes:
        text: the row.
        size: the (width, height) that it was read with.
        dice: its Dice if read along the rows.
        dice_columns: its Dice if read down the columns.
        dice_turned: the same if read along the rows with swapped sides, and turned by each of the other EXIF
            orientations that swap sides.
        dice_photo: the same if turned as its photo says, where its runs fit swapped sides; else None.
    """

    text: str
    size: tuple[int, int]
    dice: float
    dice_columns: float
    dice_turned: tuple[float, ...]
    dice_photo: float | None


def check_rows(
    sources: Sources,
    ids: Mapping[str, str],
    size: tuple[int, int] | None,
    photos: Mapping[str, Path] | None = None,
) -> tuple[Sources, tuple[str, ...]]:
    """Check a sample of the rows, spread evenly over the images.

    Args:
        sources: the predicted and the true masks.
        ids: id of the predicted mask -> id of the true mask, of the images that have both.
        size: (width, height) of the masks if both sides are rows; None for the competition's.
        photos: the photos by id of the predicted mask, if they are known.

    Returns:
        The sources, of which those whose rows count pixels down the columns are read as they are given; and
        what the user should know, a line each.

    Raises:
        UsageError: the competition's size is assumed, and the rows are of another one.
    """
    checked = list(sources)
    sides = [(side, source) for side, source in enumerate(sources) if isinstance(source, MaskRows)]
    assumed = size is None and len(sides) == 2
    notes = []
    if assumed:
        for side, source in sides:
            _refuse_pixels_beyond(source, [pair[side] for pair in ids.items()])
        width, height = COMPETITION_SIZE
        notes.append(f"Assumed {width}x{height} pixels, the competition's size; --size changes it.")
    pairs = list(ids.items())
    sample = pairs[:: -(-len(pairs) // SAMPLE)]
    for side, source in sides:
        rows = list(_read_sample(sources, side, source, sample, size or COMPETITION_SIZE, photos or {}))
        if not rows:
            continue
        dice, dice_columns = fmean(row.dice for row in rows), fmean(row.dice_columns for row in rows)
        dice_turned = max(map(fmean, zip(*(row.dice_turned for row in rows), strict=True)))
        dice_photo = fmean(row.dice if row.dice_photo is None else row.dice_photo for row in rows)
        is_best = dice_columns >= dice_turned and dice_columns > dice_photo
        if is_best and dice_columns >= max(dice + CLEARLY_BETTER, SOUND):
            checked[side] = replace(source, as_given=True)
            notes.append(_describe_columns(source, dice, dice_columns, rows[0].size, assumed))
            continue
        misfit = find_misfit((row.text, row.size) for row in rows if row.dice_photo is None)
        if misfit is not None and misfit.columns:
            notes.append(_describe_swapped(source, misfit, rows[0].size, assumed, photos is not None))
        elif misfit is not None and assumed:
            guess = guess_height(misfit.line, COMPETITION_SIZE)
            raise UsageError(
                f"The {_describe_size(source, misfit)} Give the photos' size by --size {misfit.line}x{guess}."
            )
        elif misfit is not None:
            advice = describe_decoding(source.path, misfit.line, rows[0].size)
            notes.append(f"Warning: the {_describe_size(source, misfit)} {advice}")
            checked[side] = replace(source, explained=True)
    return (checked[0], checked[1]), tuple(notes)


def _read_sample(
    sources: Sources,
    side: int,
    source: MaskRows,
    pairs: Sequence[tuple[str, str]],
    size: tuple[int, int],
    photos: Mapping[str, Path],
) -> Iterator[_Row]:
    """Yield those rows of one side that have enough runs, and whose masks can be compared."""
    as_given = [
        replace(source, as_given=True) if isinstance(source, MaskRows) else source for source in sources
    ]
    for pair in pairs:
        text = source.rows[pair[side]]
        if text.count(" ") + 1 < 2 * MIN_RUNS:
            continue
        masks = _read_masks((as_given[0], as_given[1]), pair, size)
        if masks is None:
            continue
        mask, other = masks[side], masks[1 - side]
        width, height = mask.width, mask.height
        dice = count(mask, other).dice
        dice_columns = count(rle.decode_packed(text, height, width, "columns"), other).dice
        dice_turned = (dice_columns,) * len(OTHER_TURNS)
        dice_photo = None
        swapped = rle.decode_packed(text, width, height)
        if dice_columns > dice:
            dice_turned = tuple(count(swapped.turned(turn), other).dice for turn in OTHER_TURNS)
        if pair[0] in photos and fits_swapped(rle.parse(text, height, width), width, height):
            turned = _turn(swapped, (width, height), photos[pair[0]])
            dice_photo = None if turned is None else count(turned, other).dice
        yield _Row(text, (width, height), dice, dice_columns, dice_turned, dice_photo)


def _turn(mask: PackedMask, size: tuple[int, int], photo: Path) -> PackedMask | None:
    """Turn a mask to ``size`` as its photo says; None if that does not swap sides, or cannot be read."""
    try:
        mask, fit = turn_to_fit_file(mask, size, photo)
    except ImageError:  # which is reported when the image is scored
        return None
    return mask if fit == Fit.TURNED else None


def _read_masks(
    sources: Sources, ids: tuple[str, str], size: tuple[int, int]
) -> tuple[PackedMask, PackedMask] | None:
    """Read the masks of an image; None if that fails, which is reported when it is scored."""
    try:
        masks = read_pair(*sources, ids, size)
    except ImageError:
        return None
    first, second = masks
    return masks if (first.width, first.height) == (second.width, second.height) else None


def _refuse_pixels_beyond(source: MaskRows, images: Sequence[str]) -> None:
    """Raise UsageError if a row has pixels beyond the competition's size."""
    width, height = COMPETITION_SIZE
    for image in images:
        pixel = rle.find_last_pixel(source.rows[image])
        if pixel > width * height:
            raise UsageError(
                f"The row of {cut_short(shown(image))} in {shown(source.path)} reaches pixel {pixel:,}, but"
                f" {width}x{height}, which is assumed without --size, has {width * height:,}. Give the"
                " photos' size by --size WIDTHxHEIGHT."
            )


def _describe_size(source: MaskRows, misfit: Misfit) -> str:
    return (
        f"rows of {shown(source.path)} are read with the wrong size: in {misfit.rows} of {misfit.judged} of"
        f" them, the lines of the mask are {misfit.line} pixels apart."
    )


def _describe_columns(
    source: MaskRows, dice: float, dice_columns: float, size: tuple[int, int], assumed: bool
) -> str:
    path = shown(source.path)
    return (
        f"Warning: the rows of {path} look column-major (top to bottom, then left to right), but Carvana's"
        f" are row-major. Mean Dice of a sample: {dice:.2f} as read, {dice_columns:.2f} column-major. To"
        f" score them, make masks of them first: {_decode_columns(path, size)}.{_otherwise(size, assumed)}"
    )


def _describe_swapped(
    source: MaskRows, misfit: Misfit, size: tuple[int, int], assumed: bool, has_photos: bool
) -> str:
    path = shown(source.path)
    advice = "" if has_photos else "; give --images, so that they are turned by its EXIF orientation"
    return (
        f"Warning: in {misfit.rows} of {misfit.judged} rows of {path}, the lines of the mask are"
        f" {misfit.line} pixels apart, which is the height. Either these rows are of a photo that lies on its"
        f" side{advice}. Or they are column-major (top to bottom, then left to right), but Carvana's are"
        f" row-major: make masks of them first, {_decode_columns(path, size)}.{_otherwise(size, assumed)}"
    )


def _decode_columns(path: str, size: tuple[int, int]) -> str:
    width, height = size
    return f"`carvana-batch decode {path} OUT --size {width}x{height} --rle-order columns`"


def _otherwise(size: tuple[int, int], assumed: bool) -> str:
    _, height = size
    return f" Or, if photos are {height} pixels wide, give --size {height}xHEIGHT." if assumed else ""
