"""Masks by id, read from a folder or from the rows of a run-length CSV."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from carvana_batch.errors import ImageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.submission.table import SUFFIXES, read_rows
from carvana_batch.text import shown
from carvana_batch.values import PackedMask


@dataclass(frozen=True, slots=True)
class MaskRows:
    """The rows of a run-length CSV (see ``read_rows``), by id; they do not contain the size of the masks."""

    path: Path
    rows: dict[str, str] = field(repr=False)

    @property
    def ids(self) -> Collection[str]:
        return self.rows.keys()

    def read(self, image: str, size: tuple[int, int]) -> PackedMask:
        """Decode one mask of ``size``, (width, height).

        Raises:
            ImageError: the row does not describe a mask of this size.
        """
        width, height = size
        try:
            return rle.decode_packed(self.rows[image], height, width)
        except rle.RunLengthError as error:
            row = f"The run-length row of {shown(image)} in {shown(self.path)}"
            raise ImageError(f"{row} cannot be used: {error}") from error


def open_masks(path: Path, *, advice: str) -> MaskFolder | MaskRows:
    """Open a folder of masks, or a file of run-length rows that ends in .csv, .csv.gz or .zip.

    Args:
        path: the folder or file.
        advice: what the user should do if ``path`` is neither, or a folder without masks; ends the message.

    Raises:
        UsageError: there are no masks, or the file cannot be read.
    """
    if path.name.lower().endswith(SUFFIXES) and not path.is_dir():
        return MaskRows(path, dict(sorted(read_rows(path).items())))
    return MaskFolder(path, find_masks(path, advice=advice))


def read_pair(
    first: MaskFolder | MaskRows,
    second: MaskFolder | MaskRows,
    ids: tuple[str, str],
    size: tuple[int, int],
) -> tuple[PackedMask, PackedMask]:
    """Read the two masks of one image, which has the first of ``ids`` on one side, the second on the other.

    A run-length row takes the size of the other mask. If both are rows, they take ``size``, (width, height).

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
