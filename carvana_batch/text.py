"""Names, counts and lists in messages for the user."""

from __future__ import annotations

import re
from collections.abc import Sequence


def shown(path: object) -> str:
    """A file name for a message: one line, and printable even if the name is not valid text."""
    text = str(path)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Characters that terminals obey, that turn the direction of text, or that end lines, such as ESC and NEL."""

_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))")

_TO_ESCAPE = re.compile(rf"[{_CONTROLS}]|\\(?=x[0-9a-f]{{2}}|u[0-9a-f]{{4}})")

_FORMULA_SIGNS = r"=+@\-\uff1d\uff0b\uff20\uff0d"
"""With these, in ASCII or full width, formulas begin."""

FORMULA = re.compile(rf"(^|;)([{_FORMULA_SIGNS}])")
"""The beginning of a formula. Spreadsheets of some languages divide lines of a CSV at semicolons."""

_ESCAPED = re.compile(rf"[{_CONTROLS}{_FORMULA_SIGNS}\\]")


def escape_name(name: str) -> str:
    r"""The name for a table: control and bidi characters and line ends become ``\x1b`` or ``\u202e``.

    A backslash becomes ``\x5c`` if it would look like the beginning of such an escape, so that
    :func:`unescape_name` gives the name back. Other characters stay, also those that are only invisible, such
    as the narrow spaces in the names of screenshots.
    """
    return _TO_ESCAPE.sub(lambda match: _escape(ord(match[0])), name)


def escape_row_name(name: str) -> str:
    r"""The name for run-length rows: as :func:`escape_name` does, and the sign with which a spreadsheet would
    begin a formula becomes ``\x3d``, for example. :func:`unescape_name` gives the name back.
    """
    return FORMULA.sub(lambda match: match[1] + _escape(ord(match[2])), escape_name(name))


def unescape_name(text: str) -> str:
    """The name that :func:`escape_name` or :func:`escape_row_name` made ``text`` of; other escapes stay."""

    def unescape(match: re.Match[str]) -> str:
        character = chr(int(match[1] or match[2], 16))
        return character if _ESCAPED.match(character) and _escape(ord(character)) == match[0] else match[0]

    return _ESCAPE.sub(unescape, text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


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
