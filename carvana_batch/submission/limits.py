"""How much memory a file of run-length rows may take, as a small archive can unpack to 1,000 times its size.

A limit on the ratio alone would refuse right files: if all rows hold the same mask, gzip makes the file
several hundred times smaller. So the limits are on what is kept in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from carvana_batch.errors import UsageError
from carvana_batch.text import shown

MAX_ROWS = 2**22
"""Rows of a file: 40 times those of the competition. Their names take about 1 GB."""

MAX_ROW_CHARACTERS = 2**25
"""Characters of a row, over all its lines: almost three times the longest row of a photo of the competition,
in which every second pixel is car. A longer row is not one but, for example, has an unclosed quote. The csv
module takes 4 to 8 bytes for each."""

MAX_DELIMITERS = 10_000
"""Delimiters in a row; a right one has one, and those of the name of its photo. Each field is an object."""

MAX_FAILED_ROWS = 2**18
"""Rows that cannot be used before reading ends: twice those of the competition. Each takes about 500 bytes
until it is reported."""

MAX_KEPT_RATIO = 100
"""Bytes of text kept in memory for each byte of the file. gzip makes the rows of masks that differ three to
ten times smaller; equal rows are kept once."""

MIN_KEPT_BYTES = 2**26
"""Text that may be kept of any file, so that the ratio does not refuse small ones."""


class RowLines:
    """Iterates over the lines of a file of rows, with their line ends.

    Call ``end_row`` after each row, which may have several lines if line ends are quoted.

    Args:
        text: the opened file.
        path: its path, for messages.

    Attributes:
        number: of the line that was read last, from 1.
        delimiter: what separates fields; set it once the header has been read.
        is_open: whether the line that was read last has no line end.

    Raises:
        UsageError: on iteration, a row is too long or has too many fields, or there are too many rows.
    """

    def __init__(self, text: IO[str], path: Path) -> None:
        self.number = 0
        self.delimiter = ","
        self.is_open = False
        self._text, self._path = text, path
        self._rows = self._characters = self._delimiters = 0

    def __iter__(self) -> RowLines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_CHARACTERS - self._characters + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.is_open = not line.endswith(("\n", "\r"))
        self._characters += len(line)
        self._delimiters += line.count(self.delimiter)
        if self._characters > MAX_ROW_CHARACTERS:
            raise self._refuse(
                f"a row of more than {MAX_ROW_CHARACTERS:,} characters; is a quote not closed?"
            )
        if self._delimiters > MAX_DELIMITERS:
            raise self._refuse(f"a row of more than {MAX_DELIMITERS:,} fields; a row is <photo>,<runs>.")
        return line

    def end_row(self) -> None:
        """Count a row."""
        self._characters = self._delimiters = 0
        self._rows += 1
        if self._rows > MAX_ROWS:
            raise self._refuse(f"more than {MAX_ROWS:,} rows; split the file.")

    def _refuse(self, problem: str) -> UsageError:
        return UsageError(f"{shown(self._path)}, line {self.number}: {problem}")


class KeptText:
    """Counts the text of a file of rows that is kept in memory, and keeps equal texts once.

    Args:
        path: the file.

    Raises:
        UsageError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._left = max(MIN_KEPT_BYTES, MAX_KEPT_RATIO * path.stat().st_size)
        except OSError as error:
            raise UsageError(f"Cannot read {shown(path)}: {error.strerror}.") from error
        self._texts: dict[str, str] = {}

    def keep(self, text: str) -> str:
        """Return the text, or an equal one that is kept already.

        Raises:
            UsageError: it is too much text for a file of this size.
        """
        kept = self._texts.setdefault(text, text)
        if kept is text:
            self._left -= len(text) * (1 if text.isascii() else 4)
            if self._left < 0:
                raise UsageError(
                    f"{shown(self._path)} unpacks to more than {MAX_KEPT_RATIO} times its size, which rows of"
                    " masks do not; unpack it and look at what it holds."
                )
        return kept
