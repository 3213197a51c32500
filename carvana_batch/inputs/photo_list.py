"""The photos of a run in little memory."""

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
    """Photos by number, as bytes of their keys and paths: 100,000 take some ten megabytes.

    A list of objects would take three times as much, and would be copied page by page into each forked
    worker as reference counts change, and pickled whole for each spawned one. What is selected from a list
    shares its bytes.
    """

    def __init__(self, refs: Iterable[ImageRef]) -> None:
        names = bytearray()  # key, NUL and path of each photo
        ends = array("q", [0])
        for ref in refs:
            names += os.fsencode(f"{ref.key}\0{ref.path_text}")
            ends.append(len(names))
        self._names = bytes(names)
        self._ends = np.array(ends, dtype=np.int64)
        self._places: NDArray[np.int32] = np.arange(len(ends) - 1, dtype=np.int32)

    @classmethod
    def of(cls, refs: Sequence[ImageRef]) -> PhotoList:
        """The same photos; they themselves if they are in such a list already."""
        return refs if isinstance(refs, PhotoList) else cls(refs)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> ImageRef: ...
    @overload
    def __getitem__(self, index: slice) -> PhotoList: ...
    def __getitem__(self, index: int | slice) -> ImageRef | PhotoList:
        if isinstance(index, slice):
            return self._take(self._places[index])
        key, _, path = os.fsdecode(self._name(index)).partition("\0")
        return ImageRef(key, path)

    def select(self, indexes: Iterable[int]) -> PhotoList:
        """The photos of these numbers, in this order."""
        return self._take(self._places[np.fromiter(indexes, np.int64)])

    def sorted(self) -> PhotoList:
        """The photos in the order of their keys, those of one key in that of their paths.

        Names are compared by their bytes, which in valid UTF-8 is the order of the characters.
        """
        indexes = range(len(self))
        if all(first <= second for first, second in pairwise(map(self._name, indexes))):
            return self  # without the memory that sorting takes
        return self.select(sorted(indexes, key=self._name))

    def _name(self, index: int) -> bytes:
        """Key, NUL and path: NUL, which no name contains, comes before all that names contain."""
        place = self._places[index]
        return self._names[self._ends[place] : self._ends[place + 1]]

    def _take(self, places: NDArray[np.int32]) -> PhotoList:
        taken = copy(self)
        taken._places = places
        return taken
