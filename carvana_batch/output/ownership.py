"""Telling the files that runs have written from those of the user, which stay."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carvana_batch.files import read_error, remove_file
from carvana_batch.masks.png import SIGNATURE, is_whole_png
from carvana_batch.output.journal import Entry, Journals
from carvana_batch.output.paths import MASK, OutPaths

PORTION = 2**20
"""Bytes that are read at a time."""


class Stamp(NamedTuple):
    """Size of a file in bytes, and the CRC-32 of its content."""

    size: int
    checksum: int

    @classmethod
    def of(cls, content: bytes) -> Stamp:
        """The stamp of a file with this content."""
        return cls(len(content), zlib.crc32(content))

    @classmethod
    def read(cls, path: Path) -> Stamp:
        """The stamp of a file.

        Raises:
            OSError: it cannot be read.
        """
        size = checksum = 0
        with path.open("rb") as file:
            while chunk := file.read(PORTION):
                size += len(chunk)
                checksum = zlib.crc32(chunk, checksum)
        return cls(size, checksum)


class Ownership:
    """Which files in the places of masks and extra files are of a run, as far as the journals say.

    A file that no line of a journal describes may also be replaced if nothing is lost by that: if it is
    damaged, or holds nothing but bytes that the new file has too, as after a kill or a power cut.

    Args:
        paths: the out folder.
        journals: what its journals say.
        keys: of the photos that are asked about; None for all.
        replace_all: whether masks of the user are replaced as well.
    """

    def __init__(
        self,
        paths: OutPaths,
        journals: Journals | None = None,
        keys: Collection[str] | None = None,
        replace_all: bool = False,
    ) -> None:
        self._paths, self.replace_all = paths, replace_all
        self._claims: dict[str, list[Entry]] = {}
        if journals is not None:
            for key in journals.latest.keys() | journals.pending.keys() if keys is None else keys:
                self._claims[key] = list(journals.pending.get(key, ()))
                if key in journals.latest and journals.latest[key].masked:
                    self._claims[key].append(journals.latest[key])

    def learn(self, claims: Mapping[str, Iterable[Entry]]) -> None:
        """Take note of further lines of journals that describe files of a run, by the key of their photo."""
        for key, entries in claims.items():
            self._claims.setdefault(key, []).extend(entries)

    def claims_of(self, key: str) -> tuple[Entry, ...]:
        """The lines of journals that describe files of a photo."""
        return tuple(self._claims.get(key, ()))

    def is_foreign(self, key: str, kind: str, content: bytes | None = None) -> bool:
        """Whether something is in the place of a file that is not of a run, and must stay.

        Args:
            key: of the photo.
            kind: ``MASK``, or the kind of extra file.
            content: what is to be written there; None if the file is to be removed.

        Raises:
            CarvanaBatchError: the file cannot be read.
        """
        path = self._paths.of_photo(key)[kind]
        if content is not None and self.replace_all:
            return False
        try:
            if path.is_dir():  # neither replaced nor removed by anything
                return content is None
            if not path.exists():
                return path.is_symlink()  # whoever made the link knows what it is for
            stamp = Stamp.read(path)
            if self._is_claimed(key, kind, stamp):
                return False
            if content is not None:
                return not (_adds_nothing(path, stamp, content) or _is_damaged(path))
            return not (self._claims.get(key) and _is_damaged(path))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no such file can exist
                return False
            raise read_error(path, error) from error

    def remove_files(self, key: str) -> None:
        """Remove what runs have made of a photo.

        Raises:
            CarvanaBatchError: a file cannot be read or removed.
        """
        for kind, path in self._paths.of_photo(key).items():
            if not self.is_foreign(key, kind):
                remove_file(path)

    def read_kept_mask(self, key: str) -> Stamp:
        """The stamp of a mask of the user, who has put it in the place of a photo's mask.

        Raises:
            ImageError: the file is not a mask.
            CarvanaBatchError: it cannot be read.
        """
        path = self._paths.mask(key)
        check_mask(path)
        try:
            return Stamp.read(path)
        except OSError as error:
            raise read_error(path, error) from error

    def _is_claimed(self, key: str, kind: str, stamp: Stamp) -> bool:
        for entry in self._claims.get(key, ()):
            if kind == MASK:
                same = entry.mask_checksum in (None, stamp.checksum)
                if stamp.size == entry.mask_bytes and (same or not is_whole(self._paths.mask(key))):
                    return True
            elif entry.mask_checksum is None:  # an earlier version did not list extra files
                return True
            elif any(extra.kind == kind and extra.size == stamp.size for extra in entry.extras):
                # Nobody draws in these files: another checksum only means that the file is damaged.
                return True
        return False


def check_mask(path: Path) -> None:
    """Check that a file can be read as a mask, whatever its values.

    Raises:
        ImageError: it cannot.
    """
    # Imported here, because the help text must not wait for the image libraries that it needs.
    from carvana_batch.masks.read import read_mask_pixels

    read_mask_pixels(path)


def _adds_nothing(path: Path, stamp: Stamp, content: bytes) -> bool:
    """Whether each byte of a file is 0, as after a power cut, or the same as in ``content``."""
    if stamp.size > len(content):
        return False
    there = np.frombuffer(path.read_bytes(), np.uint8)
    new = np.frombuffer(content, np.uint8)[: there.size]
    return bool(((there == 0) | (there == new)).all())


def _is_damaged(path: Path) -> bool:
    """Whether a file is empty, begins with zeros as after a power cut, or is a PNG that is not whole."""
    with path.open("rb") as file:
        head = file.read(len(SIGNATURE))
    return not any(head) or (head == SIGNATURE and not is_whole(path))


def is_whole(path: Path) -> bool:
    """See :func:`is_whole_png`."""
    with path.open("rb") as file:
        return is_whole_png(file)
