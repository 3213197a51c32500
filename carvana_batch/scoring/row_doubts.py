"""Says whether run-length rows seem to be read with the wrong size or the wrong order of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.masks import rle
from carvana_batch.masks.counts import count
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.layout import MIN_RUNS, SAMPLE, Misfit, find_misfit
from carvana_batch.scoring.sources import MaskRows, read_pair
from carvana_batch.submission.table import COMPETITION_SIZE
from carvana_batch.text import cut_short, shown
from carvana_batch.values import PackedMask

CLEARLY_BETTER = 0.2
"""If the mean Dice is so much higher for the other order of pixels, that order is probably right."""

SOUND = 0.7
"""A lower mean Dice does not show that the other order is right."""

Sources = tuple[MaskFolder | MaskRows, MaskFolder | MaskRows]


@dataclass(frozen=True, slots=True)
class _Row:
    """A run-length row, its (width, height), and its Dice if read along the rows and down the columns."""

    text: str
    size: tuple[int, int]
    dice: float
    dice_columns: float


def describe_rows(sources: Sources, ids: Mapping[str, str], size: tuple[int, int] | None) -> tuple[str, ...]:
    """Check a sample of the rows, spread evenly over the images.

    Args:
        sources: the predicted and the true masks.
        ids: id of the predicted mask -> id of the true mask, of the images that have both.
        size: (width, height) of the masks if both sides are rows; None for the competition's.

    Returns:
        What the user should know, a line each.

    Raises:
        UsageError: the competition's size is assumed, and the rows are of another one.
    """
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
        rows = list(_read_sample(sources, side, source, sample, size or COMPETITION_SIZE))
        misfit = find_misfit((row.text, row.size) for row in rows)
        if not rows:
            continue
        dice, dice_columns = fmean(row.dice for row in rows), fmean(row.dice_columns for row in rows)
        is_better = dice_columns >= max(dice + CLEARLY_BETTER, SOUND)
        if is_better or (misfit is not None and misfit.columns):
            both = f"{dice:.2f} as read, {dice_columns:.2f} column-major" if is_better else ""
            notes.append(_describe_columns(source, both, rows[0].size, assumed))
        elif misfit is not None and assumed:
            advice = f"Give the photos' size by --size {misfit.line}xHEIGHT."
            raise UsageError(f"The {_describe_size(source, misfit)} {advice}")
        elif misfit is not None:
            notes.append(f"Warning: the {_describe_size(source, misfit)}")
    return tuple(notes)


def _read_sample(
    sources: Sources, side: int, source: MaskRows, pairs: Sequence[tuple[str, str]], size: tuple[int, int]
) -> Iterator[_Row]:
    """Yield those rows of one side that have enough runs, and whose masks can be compared."""
    for pair in pairs:
        text = source.rows[pair[side]]
        if text.count(" ") + 1 < 2 * MIN_RUNS:
            continue
        masks = _read_masks(sources, pair, size)
        if masks is None:
            continue
        mask, other = masks[side], masks[1 - side]
        down_columns = rle.decode_packed(text, mask.height, mask.width, "columns")
        dice, dice_columns = count(mask, other).dice, count(down_columns, other).dice
        yield _Row(text, (mask.width, mask.height), dice, dice_columns)


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


def _describe_columns(source: MaskRows, dice: str, size: tuple[int, int], assumed: bool) -> str:
    width, height = size
    path = shown(source.path)
    sample = f" Mean Dice of a sample: {dice}." if dice else ""
    otherwise = f" Or, if photos are {height} pixels wide, give --size {height}xHEIGHT." if assumed else ""
    return (
        f"Warning: the rows of {path} look column-major (top to bottom, then left to right), but Carvana's"
        f" are row-major.{sample} To score them, make masks of them first: `carvana-batch decode {path} OUT"
        f" --size {width}x{height} --rle-order columns`.{otherwise}"
    )
