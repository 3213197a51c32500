"""Photos to packed masks: tiles, batches, precision, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.canvas import Canvas
from carvana_batch.inference.devices import one_of_few_threads
from carvana_batch.inference.memory import FreedMemory, OutOfMemoryGuard, release_unused_memory
from carvana_batch.inference.network_input import area_average
from carvana_batch.inference.pool import _Queue
from carvana_batch.inference.thresholding import expected_dice, threshold_and_pack
from carvana_batch.inference.tiles import TilePlan, Tiling
from carvana_batch.inference.transfer import Download, upload, works_ahead
from carvana_batch.network.checkpoints import Model
from carvana_batch.network.cpu_fusion import prepare_network
from carvana_batch.values import Failure, ImageRef, PackedMask, Photo, Prediction

PRECISION_TOLERANCE = 0.02
"""Mean difference of probabilities from float32 above which half precision is given up."""

COMPARED_PIXELS = 2**18
"""Pixels of the middle of each tile of the first batch that are compared with float32."""

NORMALISED_PIXELS = 2**16
"""Pixels that a CPU normalises at a time: with 12 bytes for each they fit into the cache of a core."""


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
        fused: bool = True,
    ) -> None:
        self.model, self.device, self.dtype, self.tiling = model, device, dtype, tiling
        self.batch, self.threshold, self.flip, self.keep_probability = (
            batch,
            threshold,
            flip,
            keep_probability,
        )
        self.warnings: list[str] = []
        self._network = prepare_network(model.network, device, dtype, fused)
        self._exact: tuple[Tiling, Predictor] | None = None
        self._freed = FreedMemory(device)
        # Not with the maps of a whole batch beside those of the next.
        self._works_ahead = works_ahead(device) and not keep_probability
        self._precision_checked = dtype == torch.float32
        self._scale = 1 / (255 * torch.tensor(model.deviation, device=device))
        self._shift = -torch.tensor(model.mean, device=device) * 255 * self._scale

    @torch.inference_mode()
    def predict(self, photos: Iterable[Photo | Failure]) -> Generator[Prediction | Failure]:
        """Masks for a stream of photos, in their order as long as all have one tile plan; failures pass by.

        When memory runs out, half the batch is tried, then half the tile, and so on. A photo that does not
        fit even in the smallest tiles, although one of them alone does, is a Failure, and what gave way for
        it is taken back. On a device that works ahead, masks come while it is busy with the next batch.

        Raises:
            CarvanaBatchError: memory does not even suffice for the smallest tile.
        """
        queue = _Queue()
        try:
            for photo in photos:
                if isinstance(photo, Failure):
                    yield photo
                    continue
                queue.waiting.append(photo)
                yield from self._work(queue, last=False)
            yield from self._work(queue, last=True)
        finally:
            self._freed.give_back()

    def mask(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The (H, W) bool mask of one (H, W, 3) uint8 RGB image.

        Raises:
            ValueError: another shape or dtype.
            CarvanaBatchError: the network gives no finite output for it, or it does not fit into memory.
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

    def _work(self, queue: _Queue, last: bool) -> Iterator[Prediction | Failure]:
        """Admit and run what the queue holds, with less at a time whenever memory runs out."""
        while True:
            with OutOfMemoryGuard() as guard:
                yield from self._advance(queue, last)
            if guard.error is None:
                return
            queue.clear_device()
            self._freed.stop()
            release_unused_memory(self.device)
            with OutOfMemoryGuard():
                yield from self._read(queue, len(queue.unread))
            queue.start_again()
            failure = self._give_way(queue, guard.error) if queue.waiting else None
            if failure is not None:
                yield failure

    def _advance(self, queue: _Queue, last: bool) -> Iterator[Prediction | Failure]:
        """Admit the photos that wait and run full batches; if the photos are the ``last``, all."""
        while queue.waiting or (last and queue.canvases):
            photo = queue.waiting[0] if queue.waiting else None
            if photo is None or self._is_too_much(queue, photo):
                yield from self._run_batches(queue, partial=True)
                continue
            queue.add(self._admit(photo, queue.limit))
            queue.waiting.popleft()
            yield from self._run_batches(queue, partial=False)
        if last:
            yield from self._read(queue, len(queue.unread))

    def _size(self, photo: Photo) -> tuple[int, int]:
        """(height, width) in which the network wants the photo."""
        width, height = self.model.size or photo.pixels.shape[1::-1]
        return height, width

    def _plan(self, photo: Photo, limit: int | None) -> TilePlan:
        network = self.model.network
        return self.tiling.plan(*self._size(photo), network.stride, network.unit, limit)

    def _is_too_much(self, queue: _Queue, photo: Photo) -> bool:
        """Whether the photo has to wait until those on the device are done.

        Together they may fill two batches of the largest tile, but never be a whole folder of odd sizes.
        """
        height, width = self._size(photo)
        plan = self._plan(photo, queue.limit)
        tiles = [*queue.pools, (plan.tile_height, plan.tile_width)]
        enough = 2 * self.batch * max(tile_height * tile_width for tile_height, tile_width in tiles)
        return bool(queue.canvases) and queue.photo_pixels + height * width > enough

    def _admit(self, photo: Photo, limit: int | None) -> Canvas:
        resized = photo.pixels if self.model.size is None else area_average(photo.pixels, self.model.size)
        return Canvas(photo, self._plan(photo, limit), upload(resized, self.device))

    def _run_batches(self, queue: _Queue, partial: bool) -> Iterator[Prediction | Failure]:
        """Run what is pooled, with ``partial`` also batches that are not full."""
        while True:
            enough = 1 if partial else self.batch
            shapes = [shape for shape, pool in queue.pools.items() if len(pool) >= enough]
            if not shapes:
                break
            pool = queue.pools[shapes[0]]
            jobs = [pool[place] for place in range(min(self.batch, len(pool)))]
            if not self._precision_checked and not self._precision_is_enough(jobs):
                self._change_to_float32()
                queue.start_again()
                break
            ahead = self._works_ahead and not queue.is_in_trouble
            before = len(queue.unread)
            probabilities, finite = self._run(jobs)
            for place, (canvas, top, left) in enumerate(jobs):
                pool.popleft()
                canvas.blend(top, left, probabilities[place, 0], finite[place])
                if canvas.missing == 0:
                    queue.unread.append((canvas.photo, self._finish(canvas)))
                    queue.remove(canvas)
                    if not ahead:
                        yield from self._read(queue, len(queue.unread))
            if not pool:
                del queue.pools[shapes[0]]
            if ahead:  # the device is busy with this batch, and those before are read meanwhile
                yield from self._read(queue, before)

    def _run(self, jobs: list[tuple[Canvas, int, int]]) -> tuple[Tensor, Tensor]:
        """Probabilities (batch, 1, h, w) float32 of the windows, and whether they are finite (batch,)."""
        self._freed.prepare_for((jobs[0][0].plan.tile_height, jobs[0][0].plan.tile_width))
        with one_of_few_threads(self.device):
            images = self._normalise(jobs, self.batch, self.dtype)
        return self._probabilities(self._network, images)

    def _precision_is_enough(self, jobs: list[tuple[Canvas, int, int]]) -> bool:
        """Compare with float32 in the middle of the windows, in fewer rows if memory is short."""
        plan = jobs[0][0].plan
        rows = min(-(-plan.tile_height // 2), max(1, COMPARED_PIXELS // plan.tile_width))
        difference = None
        while difference is None and rows > 0:
            with OutOfMemoryGuard():
                difference = self._difference_from_float32(jobs, rows)
            if difference is None:
                release_unused_memory(self.device)
            rows //= 2
        self._precision_checked = True
        if difference is None:
            self.warnings.append(f"{self.dtype} was not checked: float32 does not fit into the memory")
            return True
        if difference <= PRECISION_TOLERANCE:
            return True
        self.warnings.append(
            f"{self.dtype} differs from float32 by {difference:.3f} on the first batch: using float32"
        )
        return False

    def _difference_from_float32(self, jobs: list[tuple[Canvas, int, int]], rows: int) -> float:
        """Mean over the middle ``rows`` of the windows.

        One window after the other: half a window takes as much memory in float32 as a whole one otherwise.
        """
        network = self._exact_predictor()._network
        differences = []
        for canvas, top, left in jobs:
            window = self._normalise([(canvas, top, left)], 1, torch.float32)
            first = (window.shape[2] - rows) // 2
            window = window[:, :, first : first + rows].contiguous(memory_format=torch.channels_last)
            probability, _ = self._probabilities(self._network, window.to(self.dtype))
            differences.append((self._probabilities(network, window)[0] - probability).abs().mean())
        return torch.stack(differences).mean().item()

    def _change_to_float32(self) -> None:
        """Give up half precision, and half of the batch or of the tiles, as numbers take twice as much."""
        self.dtype, self._network = torch.float32, self._exact_predictor()._network
        if self.batch > 1:
            self.batch //= 2
        else:
            self.tiling = self.tiling.for_float32()

    def _normalise(self, jobs: list[tuple[Canvas, int, int]], batch: int, dtype: torch.dtype) -> Tensor:
        """(batch, 3, h, w) of the windows, padded where they reach beyond the photo; places left are zero."""
        plan = jobs[0][0].plan
        images = torch.empty((batch, plan.tile_height, plan.tile_width, 3), dtype=dtype, device=self.device)
        images[len(jobs) :] = 0
        for image, (canvas, top, left) in zip(images, jobs, strict=False):
            window = canvas.pixels[top : top + plan.tile_height, left : left + plan.tile_width]
            height, width = window.shape[:2]
            self._write_normalised(window, image[:height, :width])
            image[:height, width:] = image[:height, width - 1 : width]
            image[height:] = image[height - 1 : height]
        return images.permute(0, 3, 1, 2)

    def _write_normalised(self, window: Tensor, target: Tensor) -> None:
        """Normalise (h, w, 3) uint8 into the target of the same shape.

        On a CPU this goes in bands that its cache holds. Channels are flattened into the rows, because to go
        through three values at a time takes four times as long.
        """
        height, width = window.shape[:2]
        rows = max(1, NORMALISED_PIXELS // width) if self.device.type == "cpu" else height
        scale, shift = self._scale.repeat(width), self._shift.repeat(width)
        values = torch.empty((min(rows, height), 3 * width), device=self.device)
        for source, band in zip(window.split(rows), target.split(rows), strict=True):
            part = values[: len(source)].copy_(source.flatten(1))
            band.copy_(torch.addcmul(shift, part, scale, out=part).view(band.shape))

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

    def _finish(self, canvas: Canvas) -> Download:
        """Threshold and pack: the mask, what its expected Dice needs, and whether the logits are finite."""
        with one_of_few_threads(self.device):
            probability = canvas.probability()
            packed, sums = threshold_and_pack(probability, self.threshold)
        kept = [probability] if self.keep_probability else []
        return Download(packed, sums, torch.stack(canvas.finite), *kept)

    def _read(self, queue: _Queue, count: int) -> Iterator[Prediction | Failure]:
        """The first ``count`` masks that are done."""
        for _ in range(count):
            result = self._result(*queue.unread[0])
            queue.unread.popleft()
            queue.forget_troubles()
            yield result

    def _result(self, photo: Photo, arriving: Download) -> Prediction | Failure:
        """What came of a photo; one whose logits are not finite gets a second try in float32."""
        packed, sums, finite, *kept = arriving.read()
        if not finite.all():
            return self._try_in_float32(photo)
        mask = PackedMask(packed.numpy(), photo.pixels.shape[1])
        return Prediction(photo, mask, expected_dice(mask.rows, sums), kept[0].numpy() if kept else None)

    def _try_in_float32(self, photo: Photo) -> Prediction | Failure:
        if self.dtype == torch.float32:
            return Failure.of(photo.ref, "predict", "the network's output is not finite, in float32 either")
        exact = self._exact_predictor()
        try:
            result = next(exact.predict([photo]))
        except CarvanaBatchError as error:  # memory may be enough for all others
            reason = f"the network's output is not finite in {self.dtype}, and in float32: {error}"
            return Failure.of(photo.ref, "predict", reason)
        self.warnings += [f"second try in float32: {line}" for line in exact.warnings]
        exact.warnings.clear()
        return result

    def _exact_predictor(self) -> Predictor:
        """The same in float32 for one tile at a time, made when it is needed for these batches and tiles.

        Without fused convolutions, which may hide numbers that are not finite.
        """
        tiling = self.tiling if self.batch > 1 else self.tiling.for_float32()
        if self._exact is None or self._exact[0] != tiling:
            exact = Predictor(
                self.model,
                self.device,
                torch.float32,
                tiling,
                threshold=self.threshold,
                flip=self.flip,
                keep_probability=self.keep_probability,
                fused=False,
            )
            self._exact = tiling, exact
        return self._exact[1]

    def _give_way(self, queue: _Queue, error: str) -> Failure | None:
        """After running out of memory: half the batch, then half the tile.

        Returns:
            the Failure of the first photo if it did not fit in the smallest tiles either, but others may.

        Raises:
            CarvanaBatchError: not even the smallest tile fits.
        """
        alone = self.batch == 1 or len(queue.waiting) == 1
        if alone and queue.before is None:
            queue.before = self.batch, self.tiling, len(self.warnings)
        if self.batch > 1:
            self.batch //= 2
            self.warnings.append(f"out of memory: going on with batches of {self.batch}")
            return None
        photo = queue.waiting[0]
        if self._shrink_tiles(queue, photo):
            return None
        plan = self._plan(photo, queue.limit)
        if not self._fits(plan):
            raise CarvanaBatchError(
                f"{photo.ref.path}: not enough memory on {self.device} for the smallest tile,"
                f" {plan.tile_width}x{plan.tile_height} pixels; close other programs, use a smaller --overlap"
                f" or --device cpu ({error})"
            )
        if not queue.last_try:  # memory may have been short for a moment only
            queue.last_try = True
            return None
        if queue.before is not None:
            self.batch, self.tiling, count = queue.before
            del self.warnings[count:]
        self._freed = FreedMemory(self.device)
        queue.waiting.popleft()
        queue.forget_troubles()
        height, width = photo.pixels.shape[:2]
        return Failure.of(
            photo.ref,
            "predict",
            f"{width}x{height} pixels do not fit into the memory of {self.device}, not even in the smallest"
            f" tiles; close other programs, make the photo smaller, or mask it where there is more memory"
            f" ({error})",
        )

    def _shrink_tiles(self, queue: _Queue, photo: Photo) -> bool:
        """Half the tile for the first photo, and as much less memory for all; False at the smallest tile."""
        height, width = self._size(photo)
        failed = self._plan(photo, queue.limit)
        limit = failed.tile_height * failed.tile_width // 2
        tile = self.tiling.tile
        most = self.tiling.most_pixels if tile is None else tile[0] * tile[1]
        most = min(most, limit + (self.tiling.maps_of(height * width) if failed.tile_count > 1 else 0))
        tiling = replace(self.tiling, tile=None, most_pixels=most)
        plan = tiling.plan(height, width, self.model.network.stride, self.model.network.unit, limit)
        if plan.tile_height * plan.tile_width >= failed.tile_height * failed.tile_width:
            return False
        if tiling != self.tiling:
            self.warnings.append(f"out of memory: going on with tiles of at most {most} pixels")
        self.tiling, queue.limit = tiling, limit
        return True

    def _fits(self, plan: TilePlan) -> bool:
        """Whether a photo of one such tile could be masked, with nothing else on the device."""
        width, height = self.model.size or (plan.tile_width, plan.tile_height)
        blank = Photo(ImageRef("blank", Path("blank")), np.zeros((height, width, 3), np.uint8))
        queue = _Queue(blank)
        queue.limit = plan.tile_height * plan.tile_width
        checked, self._precision_checked = self._precision_checked, True
        with OutOfMemoryGuard() as guard:
            for _ in self._advance(queue, last=True):
                pass
        self._precision_checked = checked
        return guard.error is None
