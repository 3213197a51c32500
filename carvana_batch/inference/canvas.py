"""Stitching: the tiles of a photo are blended into its probability map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from carvana_batch.inference.resizing import resize_probability
from carvana_batch.inference.tiles import TilePlan, blend_weights, weight_sums
from carvana_batch.inference.transfer import upload
from carvana_batch.values import Photo


class Window(NamedTuple):
    """One tile of a photo, by its top left corner in pixels."""

    canvas: Canvas
    top: int
    left: int


@dataclass(eq=False)
class Canvas:
    """A photo on the device, into which its tiles are blended one by one.

    Attributes:
        pixels: (H, W, 3) uint8 on the device: the photo upright, in the size that the network wants.
        missing: number of tiles that have not been blended yet.
        total: (h, w) float32 on the device, h >= H and w >= W: the sum of the weighted probabilities.
        finite: for each blended tile, whether all its logits are finite, as a () bool tensor on the device.
    """

    photo: Photo
    plan: TilePlan
    pixels: Tensor
    missing: int = field(init=False)
    total: Tensor | None = None
    finite: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.missing = self.plan.tile_count

    def windows(self) -> Iterator[Window]:
        """All tiles of the photo, row by row."""
        for top, left in self.plan.windows():
            yield Window(self, top, left)

    def blend(self, top: int, left: int, probability: Tensor, finite: Tensor) -> None:
        """Add the (h, w) float32 probabilities of the tile at ``top`` and ``left``."""
        plan = self.plan
        self.missing -= 1
        self.finite.append(finite)
        if plan.tile_count == 1:
            self.total = probability
            return
        device = probability.device
        if self.total is None:
            self.total = torch.zeros((plan.padded_height, plan.padded_width), device=device)
        rows = upload(blend_weights(plan.tops, plan.tile_height, top), device)
        columns = upload(blend_weights(plan.lefts, plan.tile_width, left), device)
        window = self.total[top : top + plan.tile_height, left : left + plan.tile_width]
        window.addcmul_(probability * rows[:, None], columns)

    def probability(self) -> Tensor:
        """The (H, W) float32 map of the upright photo, in its own size, once no tile is missing.

        It is computed in place: call it once.
        """
        if self.total is None:
            raise RuntimeError(f"{self.photo.ref.path}: no tile was run")
        total, plan = self.total, self.plan
        if plan.tile_count > 1:
            total.div_(upload(weight_sums(plan.tops, plan.tile_height), total.device)[:, None])
            total.div_(upload(weight_sums(plan.lefts, plan.tile_width), total.device))
        probability = total[: self.pixels.shape[0], : self.pixels.shape[1]]
        return resize_probability(probability, *self.photo.upright_shape)
