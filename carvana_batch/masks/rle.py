"""Run-length rows of the Carvana competition.

A row is "start length start length ...": pixels counted from 1 in row-major order, so that a run goes on
over the end of an image row into the next one. A mask without foreground is the empty string.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.values import PackedMask

NUMBER = re.compile("[0-9]{1,18}")
"""What surely fits an int64."""


class RunLengthError(CarvanaBatchError):
    """A run-length row that does not describe a mask; the message names the pair, counted from 1."""


def encode(mask: NDArray[np.bool_]) -> str:
    """The run-length row of a (H, W) bool array."""
    return encode_packed(PackedMask.from_bool(mask))


def encode_packed(mask: PackedMask) -> str:
    """The run-length row of a packed mask; the padding bits of its rows are not looked at."""
    edges = _find_edges(mask)
    if len(edges) % 2:  # the last run reaches the last pixel
        edges = np.append(edges, mask.height * mask.width)
    pairs = edges.reshape(-1, 2)
    pairs[:, 1] -= pairs[:, 0]
    pairs[:, 0] += 1
    return " ".join(map(str, edges.tolist()))


def decode(text: str, height: int, width: int) -> NDArray[np.bool_]:
    """The (height, width) bool array of a run-length row.

    Runs that touch one another are taken as they are. Raises RunLengthError for anything but numbers, an
    odd count of them, a start below 1, a length below 1, runs that overlap or are not in order, and runs
    beyond the image.
    """
    mask = np.zeros(height * width, np.bool_)
    for start, end in _parse(text, height, width).tolist():
        mask[start:end] = True
    return mask.reshape(height, width)


def decode_packed(text: str, height: int, width: int) -> PackedMask:
    """The packed mask, ``height`` by ``width`` pixels, of a run-length row; raises what ``decode`` raises."""
    return PackedMask.from_bool(decode(text, height, width))


def _find_edges(mask: PackedMask) -> NDArray[np.int64]:
    """The pixels, counted from 0 in row-major order, that differ from the pixel before them.

    Before the first pixel is background. Most bytes of a mask hold no edge, so only those that do are
    unpacked.
    """
    rows = mask.rows
    if not rows.size:
        return np.empty(0, np.int64)
    padding = -mask.width % 8
    before = np.right_shift(rows, 1)
    before[:, 1:] |= rows[:, :-1] << 7
    before[1:, 0] |= (rows[:-1, -1] >> padding) << 7  # before a row's first pixel: the last of the row above
    before ^= rows
    before[:, -1] &= 0xFF << padding & 0xFF
    changed = before.ravel()
    places = np.flatnonzero(changed != 0)
    place, bit = np.nonzero(np.unpackbits(changed[places]).reshape(-1, 8))
    row, column = np.divmod(places, rows.shape[1])
    edges: NDArray[np.int64] = (row * mask.width + column * 8)[place] + bit
    return edges


def _parse(text: str, height: int, width: int) -> NDArray[np.int64]:
    """The (N, 2) runs of a row as start and end, counted from 0, end exclusive."""
    words = text.split()
    for index, word in enumerate(words):
        if not NUMBER.fullmatch(word):
            shown = word if len(word) <= 40 else word[:40] + "..."
            raise RunLengthError(
                f"Pair {index // 2 + 1} holds {shown!r}, not a positive whole number of usual size."
            )
    if len(words) % 2:
        raise RunLengthError(f"Pair {len(words) // 2 + 1} has a start ({words[-1]}) but no length.")
    runs = np.array(list(map(int, words)), np.int64).reshape(-1, 2)
    starts, lengths = runs[:, 0], runs[:, 1]
    ends = starts + lengths
    size = f"the image of {width}x{height} = {height * width} pixels"
    _refuse(runs, starts < 1, "starts below 1, the first pixel")
    _refuse(runs, lengths < 1, "has no length")
    _refuse(runs, ends > height * width + 1, f"ends beyond {size}")
    _refuse(runs[1:], starts[1:] < ends[:-1], "overlaps the pair before it or is out of order", first=2)
    return np.stack([starts - 1, ends - 1], axis=1)


def _refuse(runs: NDArray[np.int64], bad: NDArray[np.bool_], reason: str, first: int = 1) -> None:
    if bad.any():
        index = int(bad.argmax())
        start, length = runs[index].tolist()
        raise RunLengthError(f"Pair {index + first} ({start} {length}) {reason}.")
