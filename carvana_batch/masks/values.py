"""Which values of mask files mean car: decided once for a folder, then applied to each of its files.

A mask should have two values, but tools differ in which: 0 and 1, 0 and 255, 0 and 2, two colours of a
palette. A single file cannot always tell: three pixels of 1 in an otherwise empty mask are a car if the other
masks of the folder have 0 and 1, and a mistake if they have 0 and 255.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import ImageError
from carvana_batch.masks.bands import find_band
from carvana_batch.values import PackedMask

Value = int | tuple[int, int, int]
"""A grey level, or an RGB colour that is not grey."""

FULL = -1
"""Stands for the largest grey level that a file can hold: 1, 255 or 65535, or white in a palette."""

ENOUGH_FILES = 16
"""Files with more than one value, after which no more are examined."""

MOST_FILES = 500
"""Files that are examined at most; many folders have masks without a car."""

SOFT_LEVELS = 16
"""Levels between black and white from which on a mask counts as soft even if they fill areas."""

TRANSITION_FLAT_SHARE = 0.05
"""Most flat pixels among those between two levels, if these are narrow transitions from one to the other."""

FLAT_SAMPLE = 4096
"""Pixels between black and white that are examined to tell a soft mask from a label map."""

VALUES_SHOWN = 6

PNG_ADVICE = "export it again as PNG, from what the JPEG was made of"


class UndecidedError(ValueError):
    """The values of a folder's masks do not tell which of them means car.

    Args:
        reason: what they are.
        car_values: the values that are car if the folder simply is mixed.
    """

    def __init__(self, reason: str, car_values: Collection[int] = ()) -> None:
        super().__init__(reason)
        self.car_values = car_values


@dataclass(frozen=True, slots=True)
class MaskPixels:
    """The pixels of a mask file, before it is decided which of them are car.

    Attributes:
        codes: (H, W) uint8 or uint16, grey levels or palette indexes.
        values: the value of each code that occurs, by code; they differ in palette images only.
        full: the largest grey level that the file can hold.
        left_out: codes that occur, but are not in ``values``.
        lossy: whether compression has changed the values, of which two are restored.
    """

    codes: NDArray[np.uint8] | NDArray[np.uint16] = field(repr=False)
    values: dict[int, Value]
    full: int
    left_out: frozenset[int] = frozenset()
    lossy: bool = False

    @property
    def levels(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The (H, W) grey levels of a file without colours; 0 where a code is left out."""
        if not self.left_out and all(code == value for code, value in self.values.items()):
            return self.codes
        table = np.zeros(self.full + 1, self.codes.dtype)
        table[list(self.values)] = list(self.values.values())
        return np.asarray(table[self.codes])

    def without(self, codes: Collection[int]) -> MaskPixels:
        """Return the same pixels, with some codes left out."""
        kept = {code: value for code, value in self.values.items() if code not in codes}
        return replace(self, values=kept, left_out=self.left_out | frozenset(codes))


@dataclass(frozen=True, slots=True)
class MaskValues:
    """How the mask files of a folder are read.

    Attributes:
        background: the value of background.
        car: the value of car. If it is ``FULL`` and background is 0, a file may also be soft; it is then
            divided at half of the full value.
        soft: whether the folder has soft files, so that a file is soft, too, even if it has no full values.
        empty: whether all files were examined, and none has any car.
        car_codes: if not empty, exactly these grey levels or palette indexes are car, and all others are
            background; the attributes above are then not used.
        ignored_codes: grey levels or palette indexes of pixels that are neither car nor background.
    """

    background: Value = 0
    car: Value = FULL
    soft: bool = False
    empty: bool = False
    car_codes: frozenset[int] = frozenset()
    ignored_codes: frozenset[int] = frozenset()

    @property
    def one_bit_is_clear(self) -> bool:
        """Whether 1 is car and 0 background in every 1-bit file, so that its values need not be examined."""
        if self.car_codes or not self.ignored_codes.isdisjoint((0, 1)):
            return False
        return self.background == 0 and self.car in {FULL, 1}

    @property
    def unusual(self) -> str:
        """How the masks are read, if that is not what everybody expects (black and white, or 0 and 1)."""
        if self.car_codes or self.ignored_codes or self.one_bit_is_clear:
            return ""
        car = "white" if self.car == FULL else self.car
        return f"{self.background} is background, {car} is car"

    def to_mask(self, pixels: MaskPixels) -> PackedMask:
        """Apply the decision to a file.

        Raises:
            ImageError: the file has other values than the folder, or compression does not keep an ignored
                one.
        """
        ignored = self.ignored_codes & pixels.values.keys()
        kept = ignored if len(pixels.values) == 2 else frozenset[int]()
        if pixels.lossy and len(pixels.values) > 1 and self.ignored_codes > kept:
            value = min(self.ignored_codes - kept)
            raise ImageError(
                f"is a JPEG, or compressed like one, which does not keep the value {value} of"
                f" --ignore-value; {PNG_ADVICE}"
            )
        if self.car_codes:
            return _pack(pixels, _select(pixels, self.find_car(pixels)), ignored)
        return _pack(pixels, self._divide(pixels.without(ignored)), ignored)

    def find_car(self, pixels: MaskPixels) -> frozenset[int]:
        """Return the codes of a file that are among ``car_codes``."""
        codes = self.car_codes
        if pixels.full == 1 and 255 in codes:  # as which viewers show it
            codes |= {1}
        return codes & pixels.values.keys()

    def _divide(self, pixels: MaskPixels) -> NDArray[np.bool_]:
        car = pixels.full if self.car == FULL else self.car
        if set(pixels.values.values()) <= {self.background, car}:
            return _select(pixels, [code for code, value in pixels.values.items() if value == car])
        if (
            self.background == 0
            and self.car == FULL
            and (is_soft(pixels) or (self.soft and _is_faint(pixels)))
        ):
            return np.asarray(pixels.levels > pixels.full // 2)
        raise ImageError(_describe_others(pixels, self.background, car))


def decide(files: Iterable[MaskPixels], ignored_codes: Collection[int] = ()) -> MaskValues:
    """Decide how the masks of a folder are read, by the majority of its files.

    A file with two values says that the lower is background and the higher car; a soft mask, which has black,
    white and levels between, says that white is car. Files with a single value are only considered if no file
    has two.

    Args:
        files: the files; no more are taken after ``ENOUGH_FILES`` with more than one value, or
            ``MOST_FILES`` in all.
        ignored_codes: grey levels or palette indexes that are neither car nor background.

    Raises:
        UndecidedError: most files do not tell which value is car, or as many tell one as another. The message
            says which values there are.
    """
    ignored = frozenset(ignored_codes)
    votes: Counter[tuple[Value, Value]] = Counter()
    shown: dict[tuple[Value, Value], Value] = {}
    one_bit = soft = unclear = examined = 0
    alone: set[Value] = set()
    example: list[Value] = []
    for examined, each in enumerate(files, start=1):
        pixels = each.without(ignored & each.values.keys())
        values = sorted(set(pixels.values.values()), key=brightness)
        if len(values) == 2 and brightness(values[0]) < brightness(values[1]):
            background, car = values
            vote = background, FULL if car == pixels.full else car
            votes[vote] += 1
            if vote not in shown or pixels.full > 1:
                shown[vote] = car
            one_bit += pixels.full == 1
        elif is_soft(pixels):
            votes[0, FULL] += 1
            soft += 1
        elif len(values) == 1:
            alone.add(FULL if values[0] == pixels.full else values[0])
        elif values:
            unclear += 1
            example = example or values
        if votes.total() + unclear == ENOUGH_FILES or examined == MOST_FILES:
            break
    if votes and votes.total() >= unclear:
        if votes[0, 1] and votes[0, FULL] == one_bit:  # in 1-bit files, 1 is full
            votes[0, 1] += votes.pop((0, FULL), 0)
        _refuse_tie(votes, shown)
        (background, car), _ = max(votes.items(), key=lambda item: item[1])
        return MaskValues(background, car, soft=soft > 0 and car == FULL, ignored_codes=ignored)
    if unclear:
        raise UndecidedError(f"they have {describe_values(example)}")
    if alone <= {0, FULL}:
        empty = FULL not in alone and examined < MOST_FILES
        return MaskValues(empty=empty, ignored_codes=ignored)
    if len(alone) == 2:
        background, car = sorted(alone, key=lambda value: brightness(value) if value != FULL else 10**9)
        return MaskValues(background, car, ignored_codes=ignored)
    levels = sorted(alone, key=lambda value: brightness(value) if value != FULL else 10**9)
    named = ["white" if value == FULL else value for value in levels]
    raise UndecidedError(f"none has two values, and together they have {describe_values(named)}")


def _refuse_tie(votes: Counter[tuple[Value, Value]], shown: Mapping[tuple[Value, Value], Value]) -> None:
    """Raise UndecidedError if as many files tell one thing as another.

    Args:
        votes: how many files have which background and car.
        shown: the value of each car, which may be ``FULL`` in the votes.
    """
    most = max(votes.values())
    tied = [(vote, shown[vote]) for vote, count in votes.items() if count == most and vote in shown]
    if len(tied) < 2:
        return
    parts = [f"{most:,} {'has' if most == 1 else 'have'} {vote[0]} and {car}" for vote, car in tied]
    cars = [car for _, car in tied]
    levels = sorted(car for car in cars if isinstance(car, int))
    clear = len(levels) == len(cars) and not {vote[0] for vote, _ in tied} & set(levels)
    raise UndecidedError(
        f"the folder is mixed; of those that were examined, {', '.join(parts)}", levels if clear else ()
    )


def is_soft(pixels: MaskPixels, noise: int = 0) -> bool:
    """Return whether a file is a soft mask over the whole range of grey levels, not a label map or trimap.

    It has black and white, and levels on both sides of half between them. The levels are either many, and in
    each quarter of the range, or lie in narrow transitions: the labels of a map fill areas. None of them is
    that of a band along the outline.

    Args:
        pixels: the file.
        noise: range of the levels within an area that is still considered flat.
    """
    levels = _grey_levels(pixels)
    margin = pixels.full // 32
    if levels is None or len(levels) < 4 or levels[0] > margin or levels[-1] < pixels.full - margin:
        return False
    between = levels[(levels > margin) & (levels < pixels.full - margin)]
    if not len(between) or between[0] > pixels.full // 2 or between[-1] <= pixels.full // 2:
        return False
    quarters = np.unique(4 * between.astype(np.int64) // (pixels.full + 1))
    many = len(between) >= SOFT_LEVELS and len(quarters) == 4
    most_flat = 0.5 if many else TRANSITION_FLAT_SHARE
    if flat_share(pixels.levels, margin, pixels.full - margin, noise) >= most_flat:
        return False
    return find_band(pixels.levels, 0, pixels.full, pixels.full) is None


def _is_faint(pixels: MaskPixels) -> bool:
    """Return whether a file may be a soft mask without a clear car, and not a label map."""
    levels = _grey_levels(pixels)
    if levels is None or len(levels) < 3:
        return False
    return len(levels) >= SOFT_LEVELS or flat_share(pixels.levels, 0, pixels.full, 0) < TRANSITION_FLAT_SHARE


def describe_values(values: Collection[Value | str]) -> str:
    """Return a text such as "the values 0, 1 and 255"."""
    shown = [str(value) for value in values]
    if len(shown) == 1:
        return f"the value {shown[0]} only"
    if len(shown) > VALUES_SHOWN:
        return f"{len(shown)} values ({', '.join([*shown[: VALUES_SHOWN - 1], '...', shown[-1]])})"
    return f"the values {', '.join(shown[:-1])} and {shown[-1]}"


def describe_corners(covers_corners: Collection[bool], masks: str) -> str:
    """Return a warning if most masks cover all four corners, as if they were inverted; else "".

    Args:
        covers_corners: whether each of the masks does.
        masks: what they are, such as "the true masks".
    """
    count = sum(covers_corners)
    if 2 * count <= len(covers_corners):
        return ""
    return (
        f"Warning: in {count:,} of {len(covers_corners):,} of {masks}, the car covers all four corners, as if"
        " black were car in them. The higher of their two values is read as car."
    )


def brightness(value: Value) -> int:
    """Return 1000 times the luma of a value (ITU-R BT.601)."""
    red, green, blue = (value, value, value) if isinstance(value, int) else value
    return 299 * red + 587 * green + 114 * blue


def _describe_others(pixels: MaskPixels, background: Value, car: Value) -> str:
    """Say which pixels of a file are neither background nor car."""
    values = sorted(set(pixels.values.values()), key=brightness)
    if len(values) == 2 and brightness(values[0]) == brightness(values[1]):
        return (
            f"has the colours {values[0]} and {values[1]}, which are equally bright, so that it is not clear"
            " which is car; make car white and the rest black"
        )
    other = _select(pixels, [code for code, value in pixels.values.items() if value not in (background, car)])
    count = int(np.count_nonzero(other))
    y, x = np.unravel_index(other.argmax(), other.shape)
    return (
        f"has {describe_values(values)}, where {background} is background and {car} is car:"
        f" {count:,} {'pixel is' if count == 1 else 'pixels are'} neither, such as"
        f" {pixels.values[int(pixels.codes[y, x])]} at x {x}, y {y}"
    )


def _grey_levels(pixels: MaskPixels) -> NDArray[np.int64] | None:
    """Return the levels of a file in order; None if it has colours."""
    values = [value for value in pixels.values.values() if isinstance(value, int)]
    return np.unique(values).astype(np.int64) if values and len(values) == len(pixels.values) else None


def _select(pixels: MaskPixels, codes: Collection[int]) -> NDArray[np.bool_]:
    """Return where a file has one of the codes, (H, W) bool."""
    if len(codes) == 1:  # comparing is several times as fast as looking up
        return np.asarray(pixels.codes == next(iter(codes)))
    if not codes:
        return np.zeros(pixels.codes.shape, bool)
    table = np.zeros(int(pixels.codes.max()) + 1, bool)
    table[list(codes)] = True
    return table[pixels.codes]


def _pack(pixels: MaskPixels, car: NDArray[np.bool_], ignored_codes: Collection[int]) -> PackedMask:
    if not ignored_codes:
        return PackedMask.from_bool(car)
    return PackedMask.from_bool(car, _select(pixels, ignored_codes))


def flat_share(levels: NDArray[np.uint8] | NDArray[np.uint16], low: int, high: int, noise: int) -> float:
    """Return the share of the pixels between two levels that lie within a flat square of 3x3 pixels."""
    rows, columns = np.nonzero((levels > low) & (levels < high))
    step = -(-len(rows) // FLAT_SAMPLE)
    rows, columns = rows[::step], columns[::step]
    padded = np.pad(levels, 1, mode="edge").astype(np.int32)
    squares = [padded[rows + down, columns + right] for down in range(3) for right in range(3)]
    return float((np.ptp(squares, axis=0) <= noise).mean())
