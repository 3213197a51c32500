"""Masks by id, whether they lie in a folder or are rows of a run-length CSV."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from carvana_batch.errors import ImageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.read import read_mask
from carvana_batch.submission.table import SUFFIXES, read_rows
from carvana_batch.text import shown
from carvana_batch.values import PackedMask


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """The masks of a folder (see ``find_masks``); each knows its size."""

    path: Path
    files: dict[str, Path] = field(repr=False)

    @property
    def ids(self) -> Collection[str]:
        return self.files.keys()

    def read(self, image: str, size: tuple[int, int]) -> PackedMask:
        """One mask, of whatever size; raises ImageError where its file cannot be used."""
        return read_mask(self.files[image])


@dataclass(frozen=True, slots=True)
class MaskRows:
    """The rows of a run-length CSV (see ``read_rows``), in the order of their ids; they know no size."""

    path: Path
    rows: dict[str, str] = field(repr=False)

    @property
    def ids(self) -> Collection[str]:
        return self.rows.keys()

    def read(self, image: str, size: tuple[int, int]) -> PackedMask:
        """One mask of ``size``, (width, height); raises ImageError where its row does not describe any."""
        width, height = size
        try:
            return rle.decode_packed(self.rows[image], height, width)
        except rle.RunLengthError as error:
            row = f"The run-length row of {shown(image)} in {shown(self.path)}"
            raise ImageError(f"{row} cannot be used: {error}") from error


def open_masks(path: Path, *, advice: str) -> MaskFolder | MaskRows:
    """The masks in a folder, or in a file that ends in .csv, .csv.gz or .zip.

    Raises UsageError where there are none to be found; ``advice`` says what to do if ``path`` is neither,
    or a folder without masks.
    """
    if path.name.lower().endswith(SUFFIXES) and not path.is_dir():
        return MaskRows(path, dict(sorted(read_rows(path).items())))
    return MaskFolder(path, find_masks(path, advice=advice))


def read_pair(
    first: MaskFolder | MaskRows, second: MaskFolder | MaskRows, image: str, size: tuple[int, int]
) -> tuple[PackedMask, PackedMask]:
    """The masks of one image; raises ImageError where one cannot be used.

    A row is taken to have the size of the other mask; if both are rows, ``size``, (width, height).
    """
    if isinstance(first, MaskRows) and isinstance(second, MaskFolder):
        other, one = read_pair(second, first, image, size)
        return one, other
    one = first.read(image, size)
    return one, second.read(image, (one.width, one.height))
