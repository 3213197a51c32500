"""How photos are cut: where tiles lie, how many they are, and how their overlaps are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import UsageError

FAINT = 1e-4
"""Weight, in pixels, of what lies so near the edge of a tile that its neighbour sees more around it."""

SENSIBLE_SIDE = 512
"""Pixels, or three times the overlap: large maps do not make tiles smaller than this square."""


def round_up(size: int, stride: int) -> int:
    """The smallest multiple of ``stride`` that is at least ``size``."""
    return -(-size // stride) * stride


def align(size: int, length: int, stride: int) -> int:
    """The smallest number from ``size`` on that differs from ``length`` by a multiple of ``stride``."""
    return size + (length - size) % stride


@dataclass(frozen=True)
class TilePlan:
    """Windows of one size that cover an image padded at the bottom and on the right.

    All numbers are pixels. ``tops`` and ``lefts`` are multiples of the network's stride; they span a grid of
    windows of ``tile_height`` x ``tile_width``, and the last window ends where the padded image ends.
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    tile_height: int
    tile_width: int

    @property
    def padded_height(self) -> int:
        return self.tops[-1] + self.tile_height

    @property
    def padded_width(self) -> int:
        return self.lefts[-1] + self.tile_width

    @property
    def tile_count(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def redundancy(self) -> float:
        """Pixels that the network sees over pixels of the padded image; 1 for the whole image at once."""
        seen = self.tile_count * self.tile_height * self.tile_width
        return seen / (self.padded_height * self.padded_width)

    def windows(self) -> Iterator[tuple[int, int]]:
        """(top, left) of each window, row by row."""
        for top in self.tops:
            for left in self.lefts:
                yield top, left


def plan_tiles(
    height: int, width: int, tile_height: int, tile_width: int, overlap: int, stride: int
) -> TilePlan:
    """Evenly spaced tiles on the stride grid, neighbours sharing at least ``overlap`` pixels.

    ``height`` and ``width`` are those of the padded image. Tile sizes are rounded up to the stride, then to a
    size with which the last tile ends with the image, so that the network sees there what it sees of a whole
    one; where the image is smaller they are its own.

    Raises:
        UsageError: the overlap leaves no room for a step of one stride.
    """
    tile_height = align(round_up(tile_height, stride), height, stride)
    tile_width = align(round_up(tile_width, stride), width, stride)
    return _plan(height, width, tile_height, tile_width, overlap, stride)


def _plan(height: int, width: int, tile_height: int, tile_width: int, overlap: int, stride: int) -> TilePlan:
    """The same for tiles of which the last one ends with the image."""
    tops, tile_height = _axis(height, tile_height, overlap, stride)
    lefts, tile_width = _axis(width, tile_width, overlap, stride)
    return TilePlan(tops, lefts, tile_height, tile_width)


def _axis(length: int, tile: int, overlap: int, stride: int) -> tuple[tuple[int, ...], int]:
    if tile >= length:
        return (0,), length
    longest_step = (tile - overlap) // stride * stride
    if longest_step < stride:
        raise UsageError(
            f"--overlap {overlap} is too much for tiles of {tile} pixels: the network moves in steps of"
            f" {stride}, so at most {tile - stride} is possible"
        )
    steps = math.ceil((length - tile) / longest_step)
    slots = (length - tile) // stride
    return tuple(round(step * slots / steps) * stride for step in range(steps + 1)), tile


@lru_cache(maxsize=1024)
def plan_fewest_tiles(height: int, width: int, most_pixels: int, overlap: int, stride: int) -> TilePlan:
    """The plan with the fewest tiles of at most ``most_pixels`` each; of equals, the least redundant one.

    ``height`` and ``width`` are those of the padded image. Where not even the smallest tile with the wanted
    overlap fits, that smallest tile is used.
    """
    # What neighbours can share differs from the length by a multiple of the stride, as tiles do.
    row_overlap, column_overlap = align(overlap, height, stride), align(overlap, width, stride)

    def cost(plan: TilePlan) -> tuple[int, int, float]:
        excess = max(0, plan.tile_height * plan.tile_width - most_pixels)
        return excess, plan.tile_count, plan.redundancy

    def plan_columns(columns: int) -> TilePlan:
        tile_width = _even_tile(width, columns, column_overlap, stride)
        tallest = align(most_pixels // tile_width - stride + 1, height, stride)
        tallest = max(tallest, row_overlap + stride)
        tile_height = _shortest_tile(height, tallest, row_overlap, stride)
        return _plan(height, width, tile_height, tile_width, overlap, stride)

    best = plan_columns(1)
    for columns in range(2, width // stride + 2):
        # No further where tiles get too narrow, or a plan that fits has fewer tiles than these have columns.
        too_narrow = _even_tile(width, columns, column_overlap, stride) < column_overlap + stride
        if too_narrow or cost(best) < (0, columns):
            break
        best = min(best, plan_columns(columns), key=cost)
    return best


def _even_tile(length: int, count: int, overlap: int, stride: int) -> int:
    """The shortest tile of which ``count`` cover the length with the overlap."""
    if count == 1:
        return length
    return align(math.ceil((length + (count - 1) * overlap) / count), length, stride)


def _shortest_tile(length: int, longest: int, overlap: int, stride: int) -> int:
    """The shortest tile that needs no more rows than the ``longest`` one would."""
    tops, tile = _axis(length, longest, overlap, stride)
    return min(tile, _even_tile(length, len(tops), overlap, stride))


@lru_cache(maxsize=1024)
def blend_weights(starts: tuple[int, ...], length: int, start: int) -> NDArray[np.float32]:
    """Weights (length,) in (0, 1] along one side of the window at ``start``, which is one of ``starts``.

    They grow with the distance from the edges that lie within the image. Nearer to one than seven sixteenths
    of the overlap a tile counts for next to nothing, as it lacks context that its neighbour has. So tiles
    give what the whole image gives if the network looks no further than that in any direction. A pixel of a
    window weighs the product of its row's and its column's weight, so the maps themselves need not be kept.
    """
    steps = [following - before for before, following in itertools.pairwise(starts)]
    margin = (length - max(steps, default=length)) * 7 // 16
    distance = np.full(length, length, np.float32)
    if start > starts[0]:
        distance = np.minimum(distance, np.arange(1, length + 1) - margin)
    if start < starts[-1]:
        distance = np.minimum(distance, np.arange(length, 0, -1) - margin)
    weights: NDArray[np.float32] = np.maximum(distance, FAINT).astype(np.float32) / np.float32(length)
    return weights


@lru_cache(maxsize=64)
def weight_sums(starts: tuple[int, ...], length: int) -> NDArray[np.float32]:
    """The sum of the weights of all windows along one side of the padded image, (starts[-1] + length,).

    For the whole image it is the product of both sides' sums, because the windows lie on a grid.
    """
    sums = np.zeros(starts[-1] + length, np.float32)
    for start in starts:
        sums[start : start + length] += blend_weights(starts, length, start)
    return sums


@dataclass(frozen=True)
class Tiling:
    """How photos are cut: tiles of ``tile`` (width, height) pixels, or the fewest of ``most_pixels``.

    A photo that is cut has maps as large as itself beside its tiles. They share the memory: each of its
    pixels takes ``map_share`` from ``most_pixels``. Where they leave less than a sensible tile, that is
    used all the same: a very large photo takes more memory than planned rather than being refused, or cut
    into so small tiles that overlaps are nearly all that is computed.
    """

    tile: tuple[int, int] | None
    most_pixels: int
    overlap: int
    map_share: float = 0.0

    def plan(self, height: int, width: int, stride: int, unit: int, limit: int | None = None) -> TilePlan:
        """The tiles of one photo.

        Args:
            stride, unit: as in ``AnySizeNetwork``; the photo is padded to ``unit``.
            limit: most pixels of a tile of this photo, if memory ran out for it and tiles have no fixed size.
        """
        height, width = round_up(height, unit), round_up(width, unit)
        if self.tile is not None:
            return plan_tiles(height, width, self.tile[1], self.tile[0], self.overlap, stride)
        most = self.most_pixels if limit is None else min(self.most_pixels, limit)
        plan = plan_fewest_tiles(height, width, most, self.overlap, stride)
        if plan.tile_count > 1 and self.map_share:
            sensible = max(SENSIBLE_SIDE, 3 * self.overlap) ** 2
            left = max(self.most_pixels - self.maps_of(height * width), sensible)
            plan = plan_fewest_tiles(height, width, min(most, left), self.overlap, stride)
        return plan

    def maps_of(self, pixels: int) -> int:
        """What the maps of a photo of so many pixels take from ``most_pixels``."""
        return int(self.map_share * pixels)

    def for_float32(self) -> Tiling:
        """The same memory for numbers of twice the size; tiles of a fixed size stay."""
        return replace(self, most_pixels=self.most_pixels // 2, map_share=self.map_share / 2)
