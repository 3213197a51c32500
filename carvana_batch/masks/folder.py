"""The masks of a folder, all read by the same decision about their values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.masks.read import BLACK_AND_WHITE, read_mask, read_mask_pixels
from carvana_batch.masks.values import (
    MOST_FILES,
    MaskPixels,
    MaskValues,
    UndecidedError,
    decide,
    describe_values,
)
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

VALUE_ADVICE = (
    "Say with --car-value N which of them is car (and with --ignore-value N which pixels are neither car nor"
    " background)."
)

Reading = Callable[[Path], AbstractContextManager[object]]
"""Gives a with block in which a file may be read, for files that are not on this machine before."""

SPREAD = 64
"""Files spread over the folder that are examined before all others."""


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """The mask files of a folder.

    Attributes:
        path: the folder.
        files: its files by id; see ``find_masks``.
        values: how they are read.
        reading: see ``Reading``.
    """

    path: Path
    files: Mapping[str, Path] = field(repr=False)
    values: MaskValues = BLACK_AND_WHITE
    reading: Reading = field(default=nullcontext, repr=False, compare=False)

    @property
    def ids(self) -> Collection[str]:
        return self.files.keys()

    def decide(
        self,
        car_values: Collection[int] = (),
        ignored_values: Collection[int] = (),
        *,
        advice: str = VALUE_ADVICE,
    ) -> MaskFolder:
        """Return the folder with the values decided; see :func:`decide_values`."""
        paths = list(self.files.values())
        values = decide_values(
            self.path, paths, car_values, ignored_values, advice=advice, reading=self.reading
        )
        return replace(self, values=values)

    def read(self, image: str) -> PackedMask:
        """Read one mask.

        Raises:
            ImageError: the file cannot be used, or has other values than the folder.
        """
        path = self.files[image]
        with self.reading(path):
            return read_mask(path, self.values)


def decide_values(
    folder: Path,
    paths: Sequence[Path],
    car_values: Collection[int] = (),
    ignored_values: Collection[int] = (),
    *,
    advice: str = VALUE_ADVICE,
    reading: Reading = nullcontext,
) -> MaskValues:
    """Decide how the masks of a folder are read, from as many of its files as that takes.

    Args:
        folder: the folder, for messages.
        paths: its files; those that cannot be read are skipped.
        car_values: grey levels or palette indexes that are car, if the user says so.
        ignored_values: grey levels or palette indexes that are neither car nor background.
        advice: last sentence of the message, if the values cannot be decided.
        reading: see ``Reading``.

    Raises:
        UsageError: the files do not tell which of their values is car, a value is in both collections, or no
            file has any of ``car_values``.
    """
    both = sorted(set(car_values) & set(ignored_values))
    if both:
        raise UsageError(
            f"The value {both[0]} cannot be both car (--car-value) and neither car nor background"
            " (--ignore-value). Leave one out."
        )
    if car_values:
        values = MaskValues(car_codes=frozenset(car_values), ignored_codes=frozenset(ignored_values))
        _refuse_absent(values, folder, paths, reading)
        return values
    try:
        return decide(_read_spread(paths, reading), ignored_values)
    except UndecidedError as error:
        if error.car_values and "--car-value" in advice:
            options = " ".join(f"--car-value {value}" for value in error.car_values)
            advice = f"To read them all, give {options}."
        raise UsageError(
            f"It is not clear which pixels of the masks in {shown(folder)} are car: {error}. Masks have two"
            f" values, of which the higher is car. {advice}"
        ) from error


def _refuse_absent(values: MaskValues, folder: Path, paths: Sequence[Path], reading: Reading) -> None:
    """Refuse car values that no file has, if few enough are there to examine all."""
    found: set[int] = set()
    for pixels in islice(_read_spread(paths, reading), MOST_FILES):
        if values.find_car(pixels):
            return
        found.update(pixels.values)
    if found and len(paths) <= MOST_FILES:
        wanted = ", ".join(map(str, sorted(values.car_codes)[:9]))
        raise UsageError(
            f"None of the masks in {shown(folder)} has a pixel of --car-value {wanted}. They have"
            f" {describe_values(sorted(found))}."
        )


def _read_spread(paths: Sequence[Path], reading: Reading) -> Iterator[MaskPixels]:
    """Read the files that can be read, first some from all over the folder, then the others."""
    step = max(1, len(paths) // SPREAD)
    for path in chain(paths[::step], (path for index, path in enumerate(paths) if index % step)):
        try:
            with reading(path):
                pixels = read_mask_pixels(path)
        except ImageError:  # named when it is read as a mask
            continue
        yield pixels
