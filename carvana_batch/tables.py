"""CSV that people open, and that reads back as it was written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import IO


def write_row(file: IO[str], cells: Sequence[object]) -> None:
    """Write one row of a CSV, with line feeds at the ends of rows."""
    # Python before 3.13 leaves a carriage return without quotes, and readers take it for the end of the row.
    quoted = any("\r" in str(cell) for cell in cells)
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerow(cells)


def defuse_formula(text: str) -> str:
    """``text`` with an apostrophe before it if a spreadsheet would take it for a formula.

    For tables that people open. Not for a submission, whose names must stay what they are.
    """
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
