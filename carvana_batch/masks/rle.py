"""Run-length rows of the Carvana competition.

A row is "start length start length ...". Pixels are counted from 1 in row-major order, so that a run can
continue from the end of an image row into the next one. A mask without foreground is the empty string.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.text import cut_short
from carvana_batch.values import PackedMask

Order = Literal["rows", "columns"]

NUMBER = re.compile("[0-9]{1,18}")
"""Numbers that fit into int64."""

LAST_PAIR = re.compile(r"\b([0-9]{1,18}) +([0-9]{1,18})\s*$")


class RunLengthError(CarvanaBatchError):
    """A run-length row does not describe a mask; the message names the pair, counted from 1."""


def encode(mask: NDArray[np.bool_]) -> str:
    """The run-length row of a (H, W) bool array."""
    return encode_packed(PackedMask.from_bool(mask))


def encode_packed(mask: PackedMask) -> str:
    """The run-length row of a packed mask; the padding bits of its rows are ignored."""
    edges = _find_edges(mask)
    if len(edges) % 2:  # the last run reaches the last pixel
        edges = np.append(edges, mask.height * mask.width)
    pairs = edges.reshape(-1, 2)
    pairs[:, 1] -= pairs[:, 0]
    pairs[:, 0] += 1
    return " ".join(map(str, edges.tolist()))


def decode(text: str, height: int, width: int, order: Order = "rows") -> NDArray[np.bool_]:
    """The (height, width) bool array of a run-length row.

    Runs may touch each other. ``order`` tells how pixels are counted; this competition counts along the rows,
    many others down the columns.

    Raises:
        RunLengthError: something is not a number, a start has no length, a start or length is below 1, or
            runs overlap, are out of order or end beyond the image.
    """
    return draw(parse(text, height, width), height, width, order)


def draw(runs: NDArray[np.int64], height: int, width: int, order: Order = "rows") -> NDArray[np.bool_]:
    """The (height, width) bool array of the (N, 2) runs that :func:`parse` returns."""
    mask = np.zeros(height * width, np.bool_)
    for start, end in runs.tolist():
        mask[start:end] = True
    return mask.reshape(height, width) if order == "rows" else mask.reshape(width, height).T


def decode_packed(text: str, height: int, width: int, order: Order = "rows") -> PackedMask:
    """The packed mask of ``height`` by ``width`` pixels of a run-length row; see :func:`decode`."""
    return PackedMask.from_bool(decode(text, height, width, order))


def _find_edges(mask: PackedMask) -> NDArray[np.int64]:
    """The pixels, counted from 0 in row-major order, that differ from the previous pixel.

    The first pixel is compared with background. Only bytes that contain an edge are unpacked, because most
    bytes of a mask do not.
    """
    rows = mask.rows
    if not rows.size:
        return np.empty(0, np.int64)
    padding = -mask.width % 8
    before = np.right_shift(rows, 1)
    before[:, 1:] |= rows[:, :-1] << 7
    before[1:, 0] |= (
        rows[:-1, -1] >> padding
    ) << 7  # the pixel before a row is the last one of the row above
    before ^= rows
    before[:, -1] &= 0xFF << padding & 0xFF
    changed = before.ravel()
    offsets = np.flatnonzero(changed != 0)
    index, bit = np.nonzero(np.unpackbits(changed[offsets]).reshape(-1, 8))
    row, column = np.divmod(offsets, rows.shape[1])
    edges: NDArray[np.int64] = (row * mask.width + column * 8)[index] + bit
    return edges


def parse(text: str, height: int, width: int) -> NDArray[np.int64]:
    """The (N, 2) runs of a row: start and exclusive end, counted from 0.

    Raises:
        RunLengthError: see :func:`decode`.
    """
    size = f"the image of {width}x{height} = {height * width} pixels"
    most = 2 * height * width  # numbers: each pixel may be a run
    words = text.split(maxsplit=most)
    if len(words) > most:
        raise RunLengthError(f"Pair {height * width + 1} is one more than there can be in {size}.")
    for index, word in enumerate(words):
        if not NUMBER.fullmatch(word):
            raise RunLengthError(
                f"Pair {index // 2 + 1} holds {cut_short(word, 40)!r}, not a positive whole number of usual"
                " size."
            )
    if len(words) % 2:
        raise RunLengthError(f"Pair {len(words) // 2 + 1} has a start ({words[-1]}) but no length.")
    runs = np.fromiter(map(int, words), np.int64, len(words)).reshape(-1, 2)
    starts, lengths = runs[:, 0], runs[:, 1]
    ends = starts + lengths
    _refuse(runs, starts < 1, "starts below 1, the first pixel")
    _refuse(runs, lengths < 1, "has no length")
    _refuse(runs, ends > height * width + 1, f"ends beyond {size}")
    _refuse(runs[1:], starts[1:] < ends[:-1], "overlaps the pair before it or is out of order", first=2)
    return np.stack([starts - 1, ends - 1], axis=1)


def find_last_pixel(text: str) -> int:
    """The last pixel of a run-length row, counted from 1, read from its last pair; 0 if that is not one."""
    pair = LAST_PAIR.search(text[-80:])
    return int(pair[1]) + int(pair[2]) - 1 if pair else 0


def _refuse(runs: NDArray[np.int64], bad: NDArray[np.bool_], reason: str, first: int = 1) -> None:
    if bad.any():
        index = int(bad.argmax())
        start, length = runs[index].tolist()
        raise RunLengthError(f"Pair {index + first} ({start} {length}) {reason}.")
