"""How photos are cut into tiles, and how the overlaps of tiles are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import UsageError

SMALLEST_WEIGHT = 1e-4
"""Weight of pixels near the edge of a tile, where the neighbouring tile has more context."""

SENSIBLE_SIDE = 512
"""Pixels. Large maps do not make tiles smaller than a square of this side, or of three overlaps."""


def round_up(size: int, stride: int) -> int:
    """The smallest multiple of ``stride`` that is at least ``size``."""
    return -(-size // stride) * stride


def align(size: int, length: int, stride: int) -> int:
    """The smallest number >= ``size`` that differs from ``length`` by a multiple of ``stride``."""
    return size + (length - size) % stride


@dataclass(frozen=True)
class TilePlan:
    """Windows of one size that cover an image padded at the bottom and on the right.

    The windows form a grid, and the last one ends where the padded image ends.

    Attributes:
        tops: top edges of the rows of windows, in pixels, multiples of the network's stride.
        lefts: left edges of the columns of windows.
        tile_height: height of all windows in pixels.
        tile_width: width of all windows in pixels.
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
        """Pixels of all windows divided by the pixels of the padded image; 1 for a single window."""
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
    """Evenly spaced tiles of a given size on the stride grid.

    Tile sizes are rounded up to the stride, and then so that the last tile ends where the image ends: there
    the network sees the same as in a whole image. In smaller images, tiles have the size of the image.

    Args:
        height: of the padded image, in pixels.
        width: of the padded image, in pixels.
        tile_height: wanted height of the tiles.
        tile_width: wanted width of the tiles.
        overlap: pixels that neighbouring tiles share at least.
        stride: see :class:`AnySizeNetwork`.

    Raises:
        UsageError: the overlap leaves no room for a step of one stride.
    """
    tile_height = align(round_up(tile_height, stride), height, stride)
    tile_width = align(round_up(tile_width, stride), width, stride)
    return _plan(height, width, tile_height, tile_width, overlap, stride)


def _plan(height: int, width: int, tile_height: int, tile_width: int, overlap: int, stride: int) -> TilePlan:
    """The same for tile sizes with which the last tile ends where the image ends."""
    tops, tile_height = _axis(height, tile_height, overlap, stride)
    lefts, tile_width = _axis(width, tile_width, overlap, stride)
    return TilePlan(tops, lefts, tile_height, tile_width)


def _axis(length: int, tile: int, overlap: int, stride: int) -> tuple[tuple[int, ...], int]:
    if tile >= length:
        return (0,), length
    longest_step = (tile - overlap) // stride * stride
    if longest_step < stride:
        less = f", or --overlap {tile - stride} at most" if tile > stride else ""
        raise UsageError(
            f"--overlap {overlap} is too much for tiles of {tile} pixels, as the network moves in steps of"
            f" {stride}. Give --tile {round_up(overlap, stride) + stride} at least{less}."
        )
    steps = math.ceil((length - tile) / longest_step)
    slots = (length - tile) // stride
    return tuple(round(step * slots / steps) * stride for step in range(steps + 1)), tile


@lru_cache(maxsize=1024)
def plan_fewest_tiles(height: int, width: int, most_pixels: int, overlap: int, stride: int) -> TilePlan:
    """The plan with the fewest tiles; among equals, the one with the least redundancy.

    If not even the smallest tile with the wanted overlap fits, that tile is used all the same.

    Args:
        height: of the padded image, in pixels.
        width: of the padded image, in pixels.
        most_pixels: most pixels of a tile.
        overlap: pixels that neighbouring tiles share at least.
        stride: see :class:`AnySizeNetwork`.
    """
    # Like tile sizes, possible overlaps differ from the length by a multiple of the stride.
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
        # Stop if tiles get too narrow, or if a plan that fits has fewer tiles than this one has columns.
        too_narrow = _even_tile(width, columns, column_overlap, stride) < column_overlap + stride
        if too_narrow or cost(best) < (0, columns):
            break
        best = min(best, plan_columns(columns), key=cost)
    return best


def plan_fixed_tiles(
    height: int, width: int, tile_height: int, tile_width: int, overlap: int, stride: int
) -> TilePlan:
    """Evenly spaced tiles of exactly this size; images that are smaller are padded to it.

    Args:
        height: of the image, in pixels.
        width: the same.
        tile_height: of the tiles.
        tile_width: the same.
        overlap: pixels that neighbouring tiles share at least.
        stride: see :class:`AnySizeNetwork`.

    Raises:
        UsageError: the overlap leaves no room for a step of one stride.
    """
    height = tile_height + round_up(max(0, height - tile_height), stride)
    width = tile_width + round_up(max(0, width - tile_width), stride)
    return _plan(height, width, tile_height, tile_width, overlap, stride)


def _even_tile(length: int, count: int, overlap: int, stride: int) -> int:
    """The length of the shortest tile so that ``count`` of them cover ``length`` with the overlap."""
    if count == 1:
        return length
    return align(math.ceil((length + (count - 1) * overlap) / count), length, stride)


def _shortest_tile(length: int, longest: int, overlap: int, stride: int) -> int:
    """The length of the shortest tile that needs no more tiles than the ``longest`` one."""
    tops, tile = _axis(length, longest, overlap, stride)
    return min(tile, _even_tile(length, len(tops), overlap, stride))


SEEN_OF_OVERLAP = 7 / 16
"""Part of the overlap from whose edge on a tile counts: the context that all pixels which count have."""


def describe_context(context: float | None, overlap: int) -> str | None:
    """A warning if tiles with this overlap show less than the network looks at; None if they do not.

    Args:
        context: see :class:`AnySizeNetwork`.
        overlap: pixels that neighbouring tiles share at least.
    """
    if context is None or context <= overlap * SEEN_OF_OVERLAP:
        return None
    if math.isinf(context):
        seen, advice = "more than 512 pixels around", "give --size or --memory so that photos are not cut"
    else:
        needed = math.ceil(context / SEEN_OF_OVERLAP)
        seen, advice = f"up to {context:.0f} pixels around", f"give --overlap {needed}, or more --memory"
    return (
        f"the network looks at {seen}, and tiles that overlap by {overlap} show"
        f" {int(overlap * SEEN_OF_OVERLAP)}: masks of photos that are cut may differ near the seams; {advice}"
    )


@lru_cache(maxsize=1024)
def blend_weights(starts: tuple[int, ...], length: int, start: int) -> NDArray[np.float32]:
    """Weights along one axis of a window; the weight of a pixel is that of its row times that of its column.

    Weights increase with the distance from those edges of the window that lie inside the image. Closer to
    such an edge than 7/16 of the overlap, a weight is practically 0, because the neighbouring tile has more
    context there. So tiles give the same as the whole image if the network looks no further than that in any
    direction.

    Args:
        starts: where the windows of this axis start, in pixels.
        length: of a window along this axis.
        start: that of this window, one of ``starts``.

    Returns:
        (length,) float32 in (0, 1].
    """
    steps = [following - before for before, following in itertools.pairwise(starts)]
    margin = (length - max(steps, default=length)) * 7 // 16
    distance = np.full(length, length, np.float32)
    if start > starts[0]:
        distance = np.minimum(distance, np.arange(1, length + 1) - margin)
    if start < starts[-1]:
        distance = np.minimum(distance, np.arange(length, 0, -1) - margin)
    distance = np.maximum(distance, SMALLEST_WEIGHT).astype(np.float32)
    weights: NDArray[np.float32] = distance / np.float32(length)
    return weights


@lru_cache(maxsize=64)
def weight_sums(starts: tuple[int, ...], length: int) -> NDArray[np.float32]:
    """The sums of the weights of all windows along one axis, (starts[-1] + length,) float32.

    Because windows form a grid, the sum at a pixel is that of its row times that of its column.
    """
    sums = np.zeros(starts[-1] + length, np.float32)
    for start in starts:
        sums[start : start + length] += blend_weights(starts, length, start)
    return sums


@dataclass(frozen=True)
class Tiling:
    """How photos are cut into tiles.

    A photo that is cut needs maps of its full size in addition to its tiles, and they share the memory. If
    the maps leave less than a tile of sensible size, a sensible tile is used all the same: a very large photo
    takes more memory than planned rather than being refused, or cut into tiles that consist mostly of
    overlaps.

    Attributes:
        tile: (width, height) of the tiles in pixels; None for the fewest tiles of at most ``most_pixels``.
        most_pixels: most pixels of a tile of automatic size.
        overlap: pixels that neighbouring tiles share at least.
        map_share: by how much each pixel of a photo that is cut reduces ``most_pixels``.
    """

    tile: tuple[int, int] | None
    most_pixels: int
    overlap: int
    map_share: float = 0.0

    def plan(
        self,
        height: int,
        width: int,
        stride: int,
        unit: int,
        limit: int | None = None,
        fixed: tuple[int, int] | None = None,
    ) -> TilePlan:
        """The tiles of one photo.

        Args:
            height: of the photo as the network sees it, in pixels.
            width: the same.
            stride: see :class:`AnySizeNetwork`.
            unit: see :class:`AnySizeNetwork`; the photo is padded to multiples of it.
            limit: most pixels of a tile of this photo, None for no limit; ignored if tiles have a fixed size.
            fixed: (height, width) of all tiles, if the network takes no others.
        """
        if fixed is not None:
            return plan_fixed_tiles(height, width, *fixed, self.overlap, stride)
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
        """By how much the maps of a photo of so many pixels reduce ``most_pixels``."""
        return int(self.map_share * pixels)

    def for_float32(self) -> Tiling:
        """The same memory for values of twice the size; tiles of a fixed size keep it."""
        return replace(self, most_pixels=self.most_pixels // 2, map_share=self.map_share / 2)
