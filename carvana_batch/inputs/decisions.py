"""The decisions of a review: a CSV with the columns image, decision and note."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.files import table_cell
from carvana_batch.inputs.keys import pairing_name
from carvana_batch.text import NAMED, counted, cut_short, shown

HEADER = ("image", "decision", "note")

ACCEPT, REJECT = "accept", "reject"

DECISIONS = (ACCEPT, REJECT, "")
"""What can stand in the column ``decision``; "" for an image that only has a note."""

DELIMITERS = ",;\t"
"""Spreadsheets of some languages write semicolons."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A row of the table: ``accept``, ``reject`` or "" for an image, and a note or ""."""

    image: str
    decision: str
    note: str = ""


def is_decisions(data: bytes) -> bool:
    """Whether a file begins with the header of such a table."""
    line = data.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace")
    return _find_delimiter(line) != ""


def parse_decisions(data: bytes, name: str) -> list[Decision]:
    """Parse the table.

    Args:
        data: its bytes.
        name: of the file, for messages.

    Raises:
        UsageError: it is not such a table; it has an unknown decision, or two different ones for an image.
    """
    try:
        text = data.decode("utf-8-sig", "surrogateescape")
        delimiter = _find_delimiter(text.partition("\n")[0])
        if not delimiter:
            raise UsageError(
                f"{name} has no decisions: its first line must be {','.join(HEADER)}, as the page of"
                " `carvana-batch review` saves it."
            )
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UsageError(f"{name} is not a valid CSV: {error}.") from error
    decided: dict[str, Decision] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{name}, row {number}"
        image, decision, note = [*row, "", ""][:3]
        if len(row) > len(HEADER) or not image:
            raise UsageError(f"{where} must have {', '.join(HEADER)}; it is {cut_short(shown(str(row)))}.")
        decision = decision.strip().lower()
        if decision not in DECISIONS:
            raise UsageError(
                f"{where}: the decision {cut_short(shown(decision))!r} is neither {ACCEPT} nor {REJECT}."
            )
        earlier = decided.get(image)
        if earlier is not None and earlier.decision != decision:
            raise UsageError(f"{where}: {shown(image)} has two different decisions. Keep one of them.")
        decided[image] = Decision(image, decision, note)
    return list(decided.values())


def read_decisions(path: Path) -> list[Decision]:
    """Read the table; see :func:`parse_decisions`.

    Raises:
        UsageError: the same, or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the decisions {shown(path)}: {error.strerror or error}.") from error
    return parse_decisions(data, shown(path))


def match_decisions(
    decisions: Iterable[Decision], keys: Iterable[str], name: str, folder: Path
) -> Mapping[str, Decision]:
    """Return the decision of each key that has one; names are compared as they stand in tables.

    Args:
        decisions: the rows of the table.
        keys: of the photos.
        name: of the table, for messages.
        folder: where the keys are from, for messages.

    Raises:
        UsageError: a row is of none of the keys.
    """
    by_cell = {pairing_name(table_cell(key)): key for key in keys}
    matched: dict[str, Decision] = {}
    unknown = []
    for decision in decisions:
        key = by_cell.get(pairing_name(decision.image))
        if key is None:
            unknown.append(decision.image)
        else:
            matched[key] = decision
    if unknown:
        names = ", ".join(shown(image) for image in unknown[:NAMED])
        more = ", ..." if len(unknown) > NAMED else ""
        raise UsageError(
            f"{name}: {counted(len(unknown), 'image')} of it {'is' if len(unknown) == 1 else 'are'} not in"
            f" {shown(folder)} ({names}{more}). Decisions belong to the folder that was reviewed."
        )
    return matched


def _find_delimiter(line: str) -> str:
    """What divides the cells of the header; "" if the line is not the header."""
    cells = line.removeprefix("\ufeff").strip()
    for delimiter in DELIMITERS:
        if tuple(cell.strip().strip('"') for cell in cells.split(delimiter)) == HEADER:
            return delimiter
    return ""
