"""Masks by id, read from a folder or from the rows of a run-length CSV."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import layout, rle
from carvana_batch.masks.folder import MaskFolder, Reading
from carvana_batch.submission.table import READ_SUFFIXES, read_rows
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

ROUNDING = 0.1
"""How far the height of a mask may be from a whole number, if it has the shape of another one."""


@dataclass(frozen=True, slots=True)
class MaskRows:
    """The rows of a run-length CSV (see ``read_rows``), by id; they do not contain the size of the masks.

    Attributes:
        path: the file.
        rows: id -> row.
        doubt: a line for the user if the file may not be complete; "" if not.
        explained: whether the user has been told what to do about rows of another size.
        as_given: whether rows are read with the size that is given, whatever their runs say.
    """

    path: Path
    rows: dict[str, str] = field(repr=False)
    as_given: bool = False
    doubt: str = ""
    explained: bool = False

    @property
    def ids(self) -> Collection[str]:
        return self.rows.keys()

    def read(self, image: str, size: tuple[int, int]) -> PackedMask:
        """Decode one mask of ``size``, (width, height), or with swapped sides if its runs clearly say so.

        A row as the photo is stored and one of the upright photo have the same number of pixels.

        Raises:
            ImageError: the row does not describe a mask of this size.
        """
        width, height = size
        row = f"The run-length row of {shown(image)} in {shown(self.path)}"
        try:
            runs = rle.parse(self.rows[image], height, width)
        except rle.RunLengthError as error:
            raise ImageError(f"{row} cannot be used: {error}") from error
        line = width if self.as_given else layout.find_clear_line(runs, width, height)
        if line == height:
            width, height = height, width
        elif line != width:
            advice = "" if self.explained else f" {describe_decoding(self.path, line, (width, height))}"
            raise ImageError(
                f"{row} is not of a mask of {width}x{height} pixels: the lines of its mask are {line} pixels"
                f" apart.{advice}"
            )
        return PackedMask.from_bool(rle.draw(runs, height, width))


def describe_decoding(path: Path, line: int, size: tuple[int, int]) -> str:
    """Say how to make masks of rows whose lines are not as long as those of ``size``, (width, height)."""
    width, height = size
    decode = f"carvana-batch decode {shlex.quote(shown(path))} OUT --size"
    return (
        f"`{decode} {line}x{guess_height(line, size)}` makes masks that are {line} pixels wide, to be resized"
        f" to {width}x{height}. Or, if the rows are of {width}x{height}, score the masks that"
        f" `{decode} {width}x{height} --rle-order rows` makes."
    )


def guess_height(line: int, size: tuple[int, int]) -> str:
    """The height of a mask of the width ``line`` with the shape of ``size``, (width, height).

    ``HEIGHT`` if no mask of this width has that shape.
    """
    width, height = size
    exact = height * line / width
    return str(round(exact)) if abs(exact - round(exact)) < ROUNDING else "HEIGHT"


def open_masks(path: Path, *, advice: str, reading: Reading = nullcontext) -> MaskFolder | MaskRows:
    """Open a folder of masks, or a file of run-length rows that ends in .csv, .csv.gz, .zip or .tsv.

    Args:
        path: the folder or file.
        advice: what the user should do if ``path`` is neither, or a folder without masks; ends the message.
        reading: see ``Reading``.

    Raises:
        UsageError: there are no masks, or the file cannot be read.
    """
    if path.name.lower().endswith(READ_SUFFIXES) and not path.is_dir():
        doubts: list[str] = []
        rows = dict(sorted(read_rows(path, doubts.append).items()))
        if not rows:
            raise UsageError(f"{shown(path)} has a header and no rows.")
        return MaskRows(path, rows, doubt="".join(doubts))
    return MaskFolder(path, find_masks(path, advice=advice), reading=reading)


def read_pair(
    first: MaskFolder | MaskRows,
    second: MaskFolder | MaskRows,
    ids: tuple[str, str],
    size: tuple[int, int],
) -> tuple[PackedMask, PackedMask]:
    """Read the two masks of one image, which has the first of ``ids`` on one side, the second on the other.

    A run-length row takes the size of the other mask. If both are rows, they take ``size``, (width, height).
    In either case its sides may be swapped, see :meth:`MaskRows.read`.

    Raises:
        ImageError: one of the masks cannot be used.
    """
    if isinstance(first, MaskRows) and isinstance(second, MaskFolder):
        second_mask, first_mask = read_pair(second, first, ids[::-1], size)
        return first_mask, second_mask
    first_mask = _read(first, ids[0], size)
    return first_mask, _read(second, ids[1], (first_mask.width, first_mask.height))


def _read(source: MaskFolder | MaskRows, image: str, size: tuple[int, int]) -> PackedMask:
    return source.read(image) if isinstance(source, MaskFolder) else source.read(image, size)
