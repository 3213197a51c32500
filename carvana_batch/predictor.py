"""Photos to packed masks: tiles, batches, precision, stitching, and what to do when memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carvana_batch.devices import is_out_of_memory, prepare_network
from carvana_batch.models.blocks import pad_to
from carvana_batch.models.checkpoints import Model
from carvana_batch.pixels import area_average
from carvana_batch.probability import enlarge_probability, expected_dice, pack_bits
from carvana_batch.records import CarvanaBatchError, Failure, ImageRef, PackedMask, Photo, Prediction
from carvana_batch.tiles import TilePlan, blend_weights, plan_fewest_tiles, plan_tiles, round_up, weight_sums

PRECISION_TOLERANCE = 0.02
"""Mean difference of probabilities from float32 above which half precision is given up."""


@dataclass(frozen=True)
class Tiling:
    """How photos are cut: tiles of ``tile`` (width, height) pixels, or the fewest of ``most_pixels``."""

    tile: tuple[int, int] | None
    most_pixels: int
    overlap: int

    def plan(self, height: int, width: int, stride: int, unit: int) -> TilePlan:
        """``stride`` and ``unit`` as in ``AnySizeNetwork``: a whole image is padded to the latter only."""
        if self.tile is None:
            plan = plan_fewest_tiles(height, width, self.most_pixels, self.overlap, stride)
        else:
            plan = plan_tiles(height, width, self.tile[1], self.tile[0], self.overlap, stride)
        if plan.tile_count > 1:
            return plan
        return TilePlan((0,), (0,), round_up(height, unit), round_up(width, unit))


@dataclass(eq=False)
class _Canvas:
    """A photo on its way: its tiles come back one by one and are blended into ``total``.

    ``pixels`` is (3, H, W) uint8 on the device: the photo in the size that the network wants.
    """

    photo: Photo
    plan: TilePlan
    pixels: Tensor
    missing: int
    total: Tensor | None = None
    finite: list[Tensor] = field(default_factory=list)


class _Queue:
    """What waits for a batch: windows (canvas, top, left) by (height, width), and their photos' pixels.

    Each stream of photos has its own, so that one left halfway does not leave its photos to the next.
    """

    def __init__(self) -> None:
        self.pools: dict[tuple[int, int], deque[tuple[_Canvas, int, int]]] = {}
        self.photo_pixels = 0


class Predictor:
    """Masks photos with one network on one device.

    Tiles of several photos, also of different sizes, are pooled into batches that always have ``batch``
    places, empty ones filled up, so that a photo's mask does not depend on its company.

    Attributes:
        warnings: one line for each time that precision, batch or tile had to give way.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        tiling: Tiling,
        *,
        batch: int = 1,
        threshold: float = 0.5,
        flip: bool = False,
        keep_probability: bool = False,
    ) -> None:
        self.model, self.device, self.dtype, self.tiling = model, device, dtype, tiling
        self.batch, self.threshold, self.flip, self.keep_probability = (
            batch,
            threshold,
            flip,
            keep_probability,
        )
        self.warnings: list[str] = []
        self._network = prepare_network(model.network, device, dtype)
        self._exact: Predictor | None = None
        self._precision_checked = dtype == torch.float32
        shape = (1, 3, 1, 1)
        self._scale = (1 / (255 * torch.tensor(model.deviation, device=device))).reshape(shape)
        self._shift = (-torch.tensor(model.mean, device=device)).reshape(shape) * 255 * self._scale

    @torch.inference_mode()
    def predict(self, photos: Iterable[Photo | Failure]) -> Generator[Prediction | Failure]:
        """Masks for a stream of photos, in their order as long as all have one tile plan; failures pass by.

        Raises:
            CarvanaBatchError: memory does not even suffice for the smallest tile.
        """
        queue = _Queue()
        for photo in photos:
            if isinstance(photo, Failure):
                yield photo
                continue
            self._admit(queue, photo)
            yield from self._run_batches(queue, partial=False)
            if queue.photo_pixels > self._most_pending_pixels(queue):
                yield from self._run_batches(queue, partial=True)
        yield from self._run_batches(queue, partial=True)

    def mask(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The (H, W) bool mask of one (H, W, 3) uint8 RGB image.

        Raises:
            ValueError: another shape or dtype.
            CarvanaBatchError: the network gives no finite output for it.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise ValueError(f"expected (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
        # torch takes neither the negative strides of a BGR image's [..., ::-1] nor Pillow's read-only memory.
        pixels = np.require(pixels, requirements=["C_CONTIGUOUS", "WRITEABLE"])
        for result in self.predict([Photo(ImageRef("image", Path("image")), pixels)]):
            if isinstance(result, Failure):
                raise CarvanaBatchError(result.reason)
            return result.mask.to_bool()
        raise CarvanaBatchError("no mask came back")

    def _most_pending_pixels(self, queue: _Queue) -> int:
        """Enough for two batches of the largest tile, but never a whole folder of odd sizes."""
        return 2 * self.batch * max((height * width for height, width in queue.pools), default=0)

    def _admit(self, queue: _Queue, photo: Photo) -> None:
        resized = photo.pixels if self.model.size is None else area_average(photo.pixels, self.model.size)
        height, width = resized.shape[:2]
        network = self.model.network
        plan = self.tiling.plan(height, width, network.stride, network.unit)
        pixels = torch.from_numpy(resized).to(self.device, non_blocking=True).permute(2, 0, 1)
        canvas = _Canvas(photo, plan, pixels, plan.tile_count)
        pool = queue.pools.setdefault((plan.tile_height, plan.tile_width), deque())
        pool.extend((canvas, top, left) for top, left in plan.windows())
        queue.photo_pixels += height * width

    def _run_batches(self, queue: _Queue, partial: bool) -> Iterator[Prediction | Failure]:
        """Run what is pooled, with ``partial`` also batches that are not full."""
        while True:
            enough = 1 if partial else self.batch
            shapes = [shape for shape, pool in queue.pools.items() if len(pool) >= enough]
            if not shapes:
                break
            pool = queue.pools[shapes[0]]
            jobs = [pool[place] for place in range(min(self.batch, len(pool)))]
            try:
                probabilities, finite = self._run(jobs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                probabilities = None
            if probabilities is None:
                # Outside the except block: the traceback would keep the failed tensors alive.
                self._shrink(queue, shapes[0])
                continue
            for place, (canvas, top, left) in enumerate(jobs):
                pool.popleft()
                self._blend(canvas, top, left, probabilities[place, 0], finite[place])
                if canvas.missing == 0:
                    queue.photo_pixels -= canvas.pixels.shape[1] * canvas.pixels.shape[2]
                    yield self._finish(canvas)
            if not pool:
                del queue.pools[shapes[0]]

    def _run(self, jobs: list[tuple[_Canvas, int, int]]) -> tuple[Tensor, Tensor]:
        """Probabilities (batch, 1, h, w) float32 of the windows, and whether they are finite (batch,)."""
        plan = jobs[0][0].plan
        height, width = plan.tile_height, plan.tile_width
        shape = (self.batch, 3, height, width)
        images = torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
        images[len(jobs) :] = 0
        for place, (canvas, top, left) in enumerate(jobs):
            images[place] = self._normalised_window(canvas, top, left)[0]
        probabilities, finite = self._probabilities(self._network, images)
        if not self._precision_checked:
            difference = self._difference_from_float32(images, probabilities, len(jobs))
            self._precision_checked = True
            if not difference <= PRECISION_TOLERANCE:
                self.warnings.append(
                    f"{self.dtype} differs from float32 by {difference:.3f} on the first batch: using float32"
                )
                self.dtype, self._network = torch.float32, self._exact_predictor()._network
                del images, probabilities, finite  # float32 takes twice as much
                return self._run(jobs)
        return probabilities, finite

    def _difference_from_float32(self, images: Tensor, probabilities: Tensor, used: int) -> float:
        """Mean over the first ``used`` places, one after the other, as a batch in float32 may not fit."""
        network = self._exact_predictor()._network
        differences = [
            (self._probabilities(network, image[None].float())[0][0] - probability).abs().mean()
            for image, probability in zip(images[:used], probabilities[:used], strict=True)
        ]
        return torch.stack(differences).mean().item()

    def _normalised_window(self, canvas: _Canvas, top: int, left: int) -> Tensor:
        """(1, 3, h, w) float32 of one window, padded where it reaches beyond the photo."""
        plan = canvas.plan
        window = canvas.pixels[None, :, top : top + plan.tile_height, left : left + plan.tile_width]
        normalised = window.to(torch.float32).mul_(self._scale).add_(self._shift)
        return pad_to(normalised, plan.tile_height, plan.tile_width)

    def _probabilities(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(images).float()
        probabilities = torch.sigmoid(logits)
        # A sum is finite only if every summand is; one number a tile instead of a map.
        finite = torch.isfinite(logits.sum(dim=(1, 2, 3)))
        if self.flip:
            mirrored = network(images.flip(3)).float().flip(3)
            probabilities = (probabilities + torch.sigmoid(mirrored)) / 2
            finite = finite & torch.isfinite(mirrored.sum(dim=(1, 2, 3)))
        return probabilities, finite

    def _blend(self, canvas: _Canvas, top: int, left: int, probability: Tensor, finite: Tensor) -> None:
        plan = canvas.plan
        canvas.missing -= 1
        canvas.finite.append(finite)
        if plan.tile_count == 1:
            canvas.total = probability
            return
        if canvas.total is None:
            canvas.total = torch.zeros((plan.padded_height, plan.padded_width), device=self.device)
        rows = torch.from_numpy(blend_weights(plan.tile_height)).to(self.device)
        columns = torch.from_numpy(blend_weights(plan.tile_width)).to(self.device)
        window = canvas.total[top : top + plan.tile_height, left : left + plan.tile_width]
        window.addcmul_(probability * rows[:, None], columns)

    def _finish(self, canvas: _Canvas) -> Prediction | Failure:
        """Threshold and pack; a photo whose logits are not finite gets a second try in float32."""
        if not all(flag.item() for flag in canvas.finite):
            if self.dtype == torch.float32:
                reason = "the network's output is not finite, in float32 either"
                return Failure(canvas.photo.ref, "predict", reason)
            return next(self._exact_predictor().predict([canvas.photo]))
        total = canvas.total
        if total is None:  # a plan has at least one window
            raise CarvanaBatchError(f"{canvas.photo.ref.path}: no tile was run")
        plan = canvas.plan
        if plan.tile_count > 1:
            rows = torch.from_numpy(weight_sums(plan.tops, plan.tile_height)).to(self.device)
            columns = torch.from_numpy(weight_sums(plan.lefts, plan.tile_width)).to(self.device)
            total.div_(rows[:, None]).div_(columns)
        probability = total[: canvas.pixels.shape[1], : canvas.pixels.shape[2]]
        height, width = canvas.photo.pixels.shape[:2]
        if probability.shape != (height, width):
            probability = enlarge_probability(probability, height, width)
        mask = probability > self.threshold
        kept = probability.cpu().numpy() if self.keep_probability else None
        packed = PackedMask(pack_bits(mask), width)
        return Prediction(canvas.photo, packed, expected_dice(probability, mask), kept)

    def _exact_predictor(self) -> Predictor:
        """The same in float32, made when it is first needed."""
        if self._exact is None:
            self._exact = Predictor(
                self.model,
                self.device,
                torch.float32,
                self.tiling,
                threshold=self.threshold,
                flip=self.flip,
                keep_probability=self.keep_probability,
            )
        return self._exact

    def _shrink(self, queue: _Queue, shape: tuple[int, int]) -> None:
        """After running out of memory: half the batch, then half the tile, and the pooled photos again."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.batch > 1:
            self.batch //= 2
            self.warnings.append(f"out of memory: going on with batches of {self.batch}")
            return
        height, width = shape
        self.tiling = Tiling(None, height * width // 2, self.tiling.overlap)
        canvases = list(dict.fromkeys(canvas for pool in queue.pools.values() for canvas, _, _ in pool))
        queue.pools.clear()
        queue.photo_pixels = 0
        for canvas in canvases:
            self._admit(queue, canvas.photo)
            if height * width <= max(h * w for h, w in queue.pools):
                raise CarvanaBatchError(
                    f"{canvas.photo.ref.path}: not enough memory on {self.device} for the smallest tile,"
                    f" {width}x{height} pixels; close other programs, use a smaller --overlap or --device cpu"
                )
        self.warnings.append(f"out of memory: going on with tiles of at most {height * width // 2} pixels")
