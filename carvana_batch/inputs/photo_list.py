"""A list of photos that takes little memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from carvana_batch.values import ImageRef


class PhotoList(Sequence[ImageRef]):
    """A sequence of photos, stored as the bytes of their keys and paths: 100,000 take about ten megabytes.

    A list of objects would take three times as much. It would also be copied page by page into each forked
    worker, because reference counts change, and pickled as a whole for each spawned one. Selections share the
    bytes of the list that they are made from.
    """

    def __init__(self, refs: Iterable[ImageRef]) -> None:
        names = bytearray()  # key, NUL and path of each photo
        ends = array("q", [0])
        for ref in refs:
            names += os.fsencode(f"{ref.key}\0{ref.path_text}")
            ends.append(len(names))
        self._names = bytes(names)
        self._ends = np.array(ends, dtype=np.int64)
        self._indexes: NDArray[np.int32] = np.arange(len(ends) - 1, dtype=np.int32)

    @classmethod
    def of(cls, refs: Sequence[ImageRef]) -> PhotoList:
        """The same photos as such a list; ``refs`` itself if it is one."""
        return refs if isinstance(refs, PhotoList) else cls(refs)

    def __len__(self) -> int:
        return len(self._indexes)

    @overload
    def __getitem__(self, index: int) -> ImageRef: ...
    @overload
    def __getitem__(self, index: slice) -> PhotoList: ...
    def __getitem__(self, index: int | slice) -> ImageRef | PhotoList:
        if isinstance(index, slice):
            return self._take(self._indexes[index])
        key, _, path = os.fsdecode(self._name(index)).partition("\0")
        return ImageRef(key, path)

    def select(self, indexes: Iterable[int]) -> PhotoList:
        """The photos with these indexes, in this order."""
        return self._take(self._indexes[np.fromiter(indexes, np.int64)])

    def sorted(self) -> PhotoList:
        """The photos sorted by key, and by path where keys are equal.

        Keys are compared byte by byte, which for valid UTF-8 is the order of the characters.
        """
        indexes = range(len(self))
        if all(first <= second for first, second in pairwise(map(self._name, indexes))):
            return self  # saves the memory that sorting takes
        return self.select(sorted(indexes, key=self._name))

    def _name(self, index: int) -> bytes:
        """Key, NUL and path; NUL sorts before all characters, and no name contains it."""
        entry = self._indexes[index]
        return self._names[self._ends[entry] : self._ends[entry + 1]]

    def _take(self, indexes: NDArray[np.int32]) -> PhotoList:
        taken = copy(self)
        taken._indexes = indexes
        return taken
