"""What the network is given at a time, and how that is reduced when memory runs out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.tiles import TilePlan, Tiling
from carvana_batch.values import Failure, Photo


@dataclass(frozen=True)
class Limits:
    """How much the network is given at a time, and in which number format.

    Attributes:
        batch: tiles that go through the network together.
        tiling: how photos are cut into tiles.
        dtype: torch.float16, torch.bfloat16 or torch.float32.
    """

    batch: int
    tiling: Tiling
    dtype: torch.dtype

    def in_float32(self) -> Limits:
        """About the same memory in float32: half the batch, or smaller tiles where the batch is 1."""
        if self.batch > 1:
            return Limits(self.batch // 2, self.tiling, torch.float32)
        return self.single_tiles_in_float32()

    def single_tiles_in_float32(self) -> Limits:
        """At most the same memory in float32, one tile at a time."""
        tiling = self.tiling if self.batch > 1 else self.tiling.for_float32()
        return Limits(1, tiling, torch.float32)


@dataclass
class Recovery:
    """What has been reduced for the first photo of a stream since memory ran out for it.

    It starts anew once that photo has been masked or has failed.

    Attributes:
        tile_limit: most pixels of a tile of this photo, None for no limit.
        is_last_attempt: whether memory ran out in the smallest tiles as well.
        limits_before: the limits to go back to if the photo fails; None if nothing is to be undone.
        warnings: lines for the user, which only hold if the photo does not fail.
    """

    tile_limit: int | None = None
    is_last_attempt: bool = False
    limits_before: Limits | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def is_active(self) -> bool:
        """Whether memory ran out for the first photo, which has not been masked since."""
        return self != Recovery()


class Reduction(NamedTuple):
    """What to try next after memory ran out.

    Attributes:
        limits: the lower limits for all photos.
        tile_limit: most pixels of a tile of the photo for which memory ran out, None for no limit.
        warning: a line for the user about what changed for all photos, None if nothing did.
    """

    limits: Limits
    tile_limit: int | None
    warning: str | None


def next_lower_limits(
    limits: Limits,
    tile_limit: int | None,
    height: int,
    width: int,
    stride: int,
    unit: int,
    fixed: tuple[int, int] | None = None,
) -> Reduction | None:
    """Half the batch, or else tiles of half the size; None if the tiles cannot get any smaller.

    Smaller tiles become the rule for all photos only as far as needed: a photo that is cut also keeps maps of
    its full size in memory, so its tiles may have to be smaller than those of others.

    Args:
        limits: the limits with which memory ran out.
        tile_limit: most pixels of a tile of this photo, None for no limit.
        height: of the photo as the network sees it, in pixels.
        width: the same.
        stride: see :class:`AnySizeNetwork`.
        unit: see :class:`AnySizeNetwork`.
        fixed: (height, width) of all tiles, if the network takes no others.
    """
    if limits.batch > 1:
        batch = limits.batch // 2
        warning = f"out of memory: going on with batches of {batch}"
        return Reduction(replace(limits, batch=batch), tile_limit, warning)
    if fixed is not None:
        return None
    tiling = limits.tiling
    failed = tiling.plan(height, width, stride, unit, tile_limit)
    tile_limit = failed.tile_height * failed.tile_width // 2
    most_pixels = tiling.most_pixels if tiling.tile is None else tiling.tile[0] * tiling.tile[1]
    maps = tiling.maps_of(height * width) if failed.tile_count > 1 else 0
    smaller = replace(tiling, tile=None, most_pixels=min(most_pixels, tile_limit + maps))
    plan = smaller.plan(height, width, stride, unit, tile_limit)
    if plan.tile_height * plan.tile_width >= failed.tile_height * failed.tile_width:
        return None
    warning = f"out of memory: going on with tiles of at most {smaller.most_pixels} pixels"
    return Reduction(replace(limits, tiling=smaller), tile_limit, warning if smaller != tiling else None)


def smallest_tile_error(photo: Photo, plan: TilePlan, device: torch.device, error: str) -> CarvanaBatchError:
    """What to raise where not even the smallest tile fits; ``error`` is what torch said."""
    return CarvanaBatchError(
        f"{photo.ref.path}: not enough memory on {device} for the smallest tile,"
        f" {plan.tile_width}x{plan.tile_height} pixels; close other programs, use a smaller --overlap"
        f" or --device cpu ({error})"
    )


def too_large_photo(photo: Photo, device: torch.device, error: str) -> Failure:
    """The failure of a photo that does not fit, though others may; ``error`` is what torch said."""
    height, width = photo.pixels.shape[:2]
    return Failure.of(
        photo.ref,
        "predict",
        f"{width}x{height} pixels do not fit into the memory of {device}, not even in the smallest"
        f" tiles; close other programs, make the photo smaller, or mask it where there is more memory"
        f" ({error})",
    )
