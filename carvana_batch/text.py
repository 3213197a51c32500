"""Names, counts and lists in messages for the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def shown(path: Path | str) -> str:
    """A file name for a message: one line, and printable even if the name is not valid text."""
    text = str(path)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut_short(text: str, length: int = 80) -> str:
    """The beginning of a text that is longer than ``length``, for messages of one short line."""
    return text if len(text) <= length else text[:length] + "..."


def counted(number: int, noun: str) -> str:
    """``1 photo``, ``2 photos``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


NAMED = 5
"""Ids, masks or reasons that an error or a summary names at most."""


def list_names(what: str, names: Sequence[str]) -> str:
    """The number of names and the first of them, one per line; empty if there are none."""
    if not names:
        return ""
    lines = [f"{what}: {len(names):,}", *(f"  {shown(name)}" for name in names[:NAMED])]
    if len(names) > NAMED:
        lines.append(f"  ... and {len(names) - NAMED:,} more")
    return "".join(f"\n{line}" for line in lines)


def list_lines(lines: Sequence[str]) -> str:
    """Join indented lines. None is left out, because all of them are needed to repair a folder."""
    return "".join(f"\n  {line}" for line in lines)
