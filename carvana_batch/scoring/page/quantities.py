"""How metrics are named on the page, and how their values are formatted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from carvana_batch.scoring.scores import MEANINGS, Score
from carvana_batch.text import shown

DECIMALS = 8
"""Decimals of the numbers in the page's data; the same as in ``scores.csv``."""

UNDEFINED = "–"

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Quantity:
    """A field of Score or Summary and how it is shown.

    Attributes:
        name: the field.
        heading: its name on the page.
        kind: "text", "count", "ratio" or "pixels".
    """

    name: str
    heading: str
    kind: str

    @property
    def meaning(self) -> str:
        """A sentence that explains the quantity, or ""."""
        return MEANINGS.get(self.name, "")


_KNOWN = (
    Quantity("image", "Image", "text"),
    Quantity("images", "Images", "count"),
    Quantity("dice", "Dice", "ratio"),
    Quantity("iou", "IoU", "ratio"),
    Quantity("pixel_accuracy", "Pixel accuracy", "ratio"),
    Quantity("precision", "Precision", "ratio"),
    Quantity("recall", "Recall", "ratio"),
    Quantity("area_true", "True area", "count"),
    Quantity("area_predicted", "Predicted area", "count"),
    Quantity("dice_05", "Dice at 5\u00a0%", "ratio"),
    Quantity("dice_50", "Dice at 50\u00a0%", "ratio"),
    Quantity("dice_95", "Dice at 95\u00a0%", "ratio"),
    Quantity("boundary_mean", "Outline distance", "pixels"),
    Quantity("boundary_p95", "Outline distance, 95\u00a0%", "pixels"),
    Quantity("band_dice", "Dice near outline", "ratio"),
    Quantity("outline_pixels", "Outline pixels", "count"),
    Quantity("outline_error", "Error at outline", "pixels"),
    Quantity("thin_pixels", "Thin pixels", "count"),
    Quantity("thin_recall", "Recall of thin parts", "ratio"),
    Quantity("lower_pixels", "Lower outline pixels", "count"),
    Quantity("lower_error", "Error at lower outline", "pixels"),
    Quantity("similar_pixels", "Similar pixels", "count"),
    Quantity("similar_share", "Share of similar colours", "ratio"),
    Quantity("similar_error", "Error at similar colours", "pixels"),
)

QUANTITIES = {quantity.name: quantity for quantity in _KNOWN}
"""The known quantities by name."""


def describe_columns(rows: Sequence[Score], columns: Sequence[str]) -> list[Quantity]:
    """Return the quantity of each column, in the given order; see :func:`describe`."""
    return [describe(name, [getattr(row, name) for row in rows]) for name in columns]


def describe(name: str, values: Sequence[object]) -> Quantity:
    """Return the known quantity of this name, or make one whose kind fits the values."""
    if name in QUANTITIES:
        return QUANTITIES[name]
    defined = [value for value in map(to_json_value, values) if value is not None]
    if any(isinstance(value, str) for value in defined):
        kind = "text"
    elif all(isinstance(value, int) for value in defined):
        kind = "count"
    else:
        kind = "ratio" if all(0 <= float(value) <= 1 for value in defined) else "pixels"
    heading = name.replace("_", " ")
    return Quantity(name, heading[:1].upper() + heading[1:], kind)


def to_json_value(value: object) -> Value:
    """Convert a value for JSON: a rounded number, printable text, or None for NaN and infinity."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return round(value, DECIMALS) if math.isfinite(value) else None
    return shown(str(value))


def format_value(value: Value, kind: str) -> str:
    """Format a result of :func:`to_json_value` for people."""
    if value is None:
        return UNDEFINED
    if isinstance(value, str):
        return value
    return {"count": f"{value:,}", "pixels": f"{value:,.2f} px"}.get(kind, f"{value:.4f}")
