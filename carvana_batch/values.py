"""The values that travel through a run, from a path to a mask."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carvana_batch.notes import Note
from carvana_batch.orientation import UPRIGHT, swaps_sides, turn


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ImageRef:
    """A photo that was found.

    Attributes:
        key: its POSIX path below the input folder, without suffix.
        path_text: its path as text. Making a ``Path`` is slow, so that is only done on demand.
    """

    key: str
    path_text: str

    def __init__(self, key: str, path: Path | str) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "path_text", os.fspath(path))

    def __repr__(self) -> str:
        return f"ImageRef(key={self.key!r}, path={self.path!r})"

    @property
    def path(self) -> Path:
        return Path(self.path_text)


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo.

    Attributes:
        ref: where it was found.
        pixels: (H, W, 3) uint8, RGB, on the pixel grid of its mask.
        orientation: the EXIF orientation of this grid, 1 to 8. The network sees the photo turned upright.
        file_bytes: size of the file before it was read.
        file_time: time of the file's last change before it was read, in ns.
        notes: what the user should know about it.
        damage: why it is damaged; "" if it is not.
    """

    ref: ImageRef
    pixels: NDArray[np.uint8] = field(repr=False)
    orientation: int = UPRIGHT
    file_bytes: int = 0
    file_time: int = 0
    notes: tuple[Note, ...] = ()
    damage: str = ""

    @property
    def upright_shape(self) -> tuple[int, int]:
        """(height, width) of the photo turned upright."""
        height, width = self.pixels.shape[:2]
        return (width, height) if swaps_sides(self.orientation) else (height, width)


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be done with one photo, mask or row, and why.

    It is returned in place of the result, so that one bad file never stops the others.

    Attributes:
        id: key of the photo, or id of the mask.
        stage: what failed, such as ``decode``, ``predict`` or ``write``.
        reason: one line for the user.
        source: path of the file, or of a line in it, if the id does not tell.
    """

    id: str
    stage: str
    reason: str
    source: str = ""

    @classmethod
    def of(cls, ref: ImageRef, stage: str, reason: str) -> Failure:
        """The failure of a photo."""
        return cls(ref.key, stage, reason, ref.path_text)


@dataclass(frozen=True, slots=True)
class PackedMask:
    """A hard mask, one bit per pixel.

    Attributes:
        rows: (H, ceil(W / 8)) uint8, the scanlines of a 1-bit PNG. The leftmost pixel is the highest bit, and
            the padding bits at the end of each row are 0.
        width: in pixels.
        ignored: the pixels of which it is not known whether they are car, in the form of ``rows``; None if
            there are none. They are 0 in ``rows``, and count in no metric.
    """

    rows: NDArray[np.uint8] = field(repr=False)
    width: int
    ignored: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def height(self) -> int:
        return int(self.rows.shape[0])

    @property
    def covers_corners(self) -> bool:
        """Whether all four corners are car, which hardly any photo of a car has, but every inverted mask."""
        last = 0x80 >> (self.width - 1) % 8
        return all(row[0] & 0x80 and row[-1] & last for row in (self.rows[0], self.rows[-1]))

    @classmethod
    def from_bool(cls, mask: NDArray[np.bool_], ignored: NDArray[np.bool_] | None = None) -> PackedMask:
        """Pack a (H, W) bool array; ``ignored``, of the same shape, says which of its pixels are unknown."""
        if ignored is None:
            return cls(np.packbits(mask, axis=1), mask.shape[1])
        return cls(np.packbits(mask & ~ignored, axis=1), mask.shape[1], np.packbits(ignored, axis=1))

    def to_bool(self) -> NDArray[np.bool_]:
        """The (H, W) bool array."""
        return np.unpackbits(self.rows, axis=1, count=self.width).view(np.bool_)

    def ignored_to_bool(self) -> NDArray[np.bool_]:
        """The (H, W) bool array of ignored pixels."""
        if self.ignored is None:
            return np.zeros((self.height, self.width), np.bool_)
        return PackedMask(self.ignored, self.width).to_bool()

    def turned(self, orientation: int) -> PackedMask:
        """The mask turned upright, if it is stored with an EXIF orientation."""
        if orientation == UPRIGHT:
            return self
        ignored = None if self.ignored is None else turn(self.ignored_to_bool(), orientation)
        return PackedMask.from_bool(turn(self.to_bool(), orientation), ignored)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The network's result for a photo.

    Attributes:
        photo: the photo.
        mask: its hard mask.
        expected_dice: the Dice to be expected from the probability map alone, in [0, 1].
        probability: (H, W) float32 in [0, 1]; None unless asked for.
        doubt: estimated 1 - Dice, in [0, 1], by a second network; None if there is none.
    """

    photo: Photo
    mask: PackedMask
    expected_dice: float
    probability: NDArray[np.float32] | None = field(default=None, repr=False)
    doubt: float | None = None
