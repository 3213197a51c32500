"""Split photos into those to train on and those to validate on.

They are split by car, never by photo: views of a car are near-duplicates, so validation is only meaningful on
cars that the network was not trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carvana_batch.errors import UsageError
from carvana_batch.inputs.keys import pairing_name
from carvana_batch.text import counted, list_lines, shown
from carvana_batch.training.accepted import find_accepted, is_out_folder
from carvana_batch.training.pairs import Pair, find_pairs
from carvana_batch.training.settings import TrainingSettings


@dataclass(frozen=True)
class Split:
    """The pairs to train on and those to validate on; no car is in both."""

    train: list[Pair]
    val: list[Pair]

    def describe(self) -> dict[str, Any]:
        """Return what split.json holds: the cars and photo ids to train on and to validate on."""
        return {
            side: {"cars": sorted({pair.car for pair in pairs}), "photos": [pair.id for pair in pairs]}
            for side, pairs in (("train", self.train), ("val", self.val))
        }

    def summarise(self) -> str:
        """Describe the split in one line for the user."""
        train, val = (
            f"{counted(len(pairs), 'photo')} of {counted(len({pair.car for pair in pairs}), 'car')}"
            for pairs in (self.train, self.val)
        )
        return f"{train} to train on, {val} to measure on"


def find_split(data: Path, settings: TrainingSettings) -> Split:
    """Find the pairs and split them by car as the settings say.

    Raises:
        UsageError: a folder does not hold training data, photos or masks are unpaired, or no car is left to
            train or validate on.
    """

    def find(folder: Path) -> list[Pair]:
        return find_pairs(folder, settings.car_value, settings.ignore_value)

    pairs = find(data)
    if settings.val is not None:
        split = Split(pairs, find(Path(settings.val)))
    else:
        chosen = (
            read_cars(Path(settings.val_cars))
            if settings.val_cars is not None
            else choose_val_cars(pairs, settings.val_fraction, settings.seed)
        )
        split = Split(*split_by_car(pairs, chosen))
    for folder in map(Path, settings.also):
        split.train.extend(find_accepted(folder) if is_out_folder(folder) else find(folder))
    check_no_shared_cars(split.train, split.val)
    return split


def read_cars(path: Path) -> set[str]:
    """Read the cars named in a text file, one per line; blank lines and comments are skipped.

    A comment starts with # at the beginning of a line or after a space. Elsewhere, # is part of the name.

    Raises:
        UsageError: the file cannot be read or names no car.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"--val-cars {shown(path)} cannot be read: {error.strerror or error}.") from error
    cars = {re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in text.split("\n")} - {""}
    cars = set(map(pairing_name, cars))
    if not cars:
        raise UsageError(f"--val-cars {shown(path)} names no car; it has one a line, such as 00087a6bd4dc.")
    return cars


def split_by_car(pairs: Sequence[Pair], val_cars: Collection[str]) -> tuple[list[Pair], list[Pair]]:
    """Split the pairs into those to train on and those to validate on, keeping their order.

    Args:
        pairs: all pairs.
        val_cars: the cars to validate on.

    Returns:
        The pairs to train on, and those of ``val_cars``.

    Raises:
        UsageError: a car has no photo, or one of the two lists would be empty.
    """
    cars = _cars_of(pairs)
    unknown = sorted(set(val_cars) - set(cars))
    if unknown:
        known = f" A car is the id of its photos without the view, such as {shown(cars[0])}." if cars else ""
        raise UsageError(
            f"There is no photo of {len(unknown)} of the {len(set(val_cars))} cars for validation.{known}"
            " Without photos:" + list_lines([shown(car) for car in unknown])
        )
    train = [pair for pair in pairs if pair.car not in val_cars]
    val = [pair for pair in pairs if pair.car in val_cars]
    if not val:
        raise UsageError("No car is left for validation. Name at least one, or give photos with --val DIR.")
    if not train:
        _refuse_one_car(cars)
        raise UsageError(
            f"All {len(cars)} cars are for validation, and none is left to train on. Name fewer."
        )
    return train, val


def choose_val_cars(pairs: Sequence[Pair], fraction: float, seed: int) -> set[str]:
    """Choose about ``fraction`` of the cars for validation: at least one, and never all of them.

    Cars are sorted by a hash of ``seed`` and their name, and the first ones are chosen. So the choice does
    not depend on the order of the pairs, and adding a few cars changes it only slightly.

    Raises:
        UsageError: there are fewer than two cars, or ``fraction`` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"--val-fraction {fraction} must lie between 0 and 1, such as 0.1.")
    cars = _cars_of(pairs)
    _refuse_one_car(cars)
    count = min(max(1, round(fraction * len(cars))), len(cars) - 1)

    def sort_key(car: str) -> bytes:
        return hashlib.sha256(f"{seed} {car}".encode("utf-8", "surrogateescape")).digest()

    return set(sorted(cars, key=sort_key)[:count])


def check_no_shared_cars(train: Sequence[Pair], val: Sequence[Pair]) -> None:
    """Check that no car is both trained and validated on.

    Raises:
        UsageError: some are. The message lists them.
    """
    both = sorted({pair.car for pair in train} & {pair.car for pair in val})
    if both:
        raise UsageError(
            f"{len(both)} of the {len(_cars_of(val))} cars for validation (--val) are trained on as well, so"
            " that the result would be too good. Remove them from either side:"
            + list_lines([shown(car) for car in both])
        )


def _cars_of(pairs: Sequence[Pair]) -> list[str]:
    return sorted({pair.car for pair in pairs})


def _refuse_one_car(cars: Sequence[str]) -> None:
    if len(cars) < 2:
        which = f" ({shown(cars[0])})" if cars else ""
        raise UsageError(
            f"The photos show {len(cars)} car{which}, and validation needs others than those that are trained"
            " on. Add photos of other cars, or give them with --val DIR. (A car is what the id has before its"
            " last underscore.)"
        )
