"""Photos to packed masks: batches are formed, run, and made smaller when memory runs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from carvana_batch.errors import CarvanaBatchError, ModelError
from carvana_batch.inference.canvas import Window
from carvana_batch.inference.memory import OutOfMemoryGuard, is_out_of_memory, release_unused_memory
from carvana_batch.inference.network_input import as_rgb_pixels
from carvana_batch.inference.pool import TilePool
from carvana_batch.inference.precision import check_precision
from carvana_batch.inference.recovery import Limits, next_lower_limits, smallest_tile_error, too_large_photo
from carvana_batch.inference.runner import MaskOptions, NetworkRunner
from carvana_batch.inference.tiles import TilePlan, describe_context
from carvana_batch.inference.transfer import works_ahead
from carvana_batch.network.measuring import context_of
from carvana_batch.network.model import Model
from carvana_batch.text import cut_short, shown
from carvana_batch.values import Failure, ImageRef, Photo, Prediction


class AnyPredictor(ABC):
    """What masks photos on one device.

    Attributes:
        device: where it runs.
        limits: the present limits, which are reduced when memory runs out.
        warnings: one line each time that precision, batch or tiles were reduced.
    """

    device: torch.device
    limits: Limits
    warnings: list[str]

    @abstractmethod
    def predict(self, photos: Iterable[Photo | Failure]) -> Generator[Prediction | Failure]:
        """Mask a stream of photos; failures in it are passed on.

        Raises:
            CarvanaBatchError: memory does not even suffice for the smallest tile.
        """

    def mask(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The (H, W) bool mask of one (H, W, 3) uint8 RGB image.

        Raises:
            ValueError: another shape or dtype.
            CarvanaBatchError: the output of the network is not finite, or the image does not fit into memory.
        """
        (result,) = self.predict([Photo(ImageRef("image", "image"), as_rgb_pixels(pixels))])
        if isinstance(result, Failure):
            raise CarvanaBatchError(result.reason)
        return result.mask.to_bool()


class Predictor(AnyPredictor):
    """Masks photos with one network.

    Tiles of several photos, also of different sizes, are pooled into batches. A batch always has the same
    number of places, unused ones being filled up, so that a mask does not depend on the other photos in it.

    Args:
        model: the network and what its input must look like.
        device: where it runs.
        limits: how much the network is given at a time, and in which number format.
        options: what masks depend on besides.
        fused: let convolutions compute what follows them, where the CPU can do that.
        on_change: called with the new limits after they were reduced for good.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        limits: Limits,
        options: MaskOptions | None = None,
        *,
        fused: bool = True,
        on_change: Callable[[Limits], object] = lambda _: None,
    ) -> None:
        self.model, self.device, self.limits = model, device, limits
        self.options, self.on_change = options or MaskOptions(), on_change
        self.runner = NetworkRunner(model, device, limits.dtype, self.options, fused)
        self.warnings: list[str] = []
        # With maps, those of a whole batch would be kept beside those of the next.
        self._works_ahead = works_ahead(device) and not self.options.keep_probability
        self._precision_checked = limits.dtype == torch.float32
        self._reported_limits = limits
        self._float32: tuple[Limits, Predictor] | None = None
        self._context_checked = False

    @torch.inference_mode()
    def predict(self, photos: Iterable[Photo | Failure]) -> Generator[Prediction | Failure]:
        """Mask a stream of photos; failures in it are passed on.

        Results come in the order of the photos as long as all have the same tile plan. When memory runs out,
        the batch is halved, then the tiles, and so on. A photo that does not fit even in the smallest tiles,
        although a single tile does, becomes a Failure, and what was reduced for it is restored. On a device
        that works asynchronously, masks are read while it is busy with the next batch.

        Raises:
            CarvanaBatchError: memory does not even suffice for the smallest tile.
        """
        pool = TilePool()
        try:
            for photo in photos:
                if isinstance(photo, Failure):
                    yield photo
                    continue
                pool.waiting.append(photo)
                yield from self._work(pool, is_last=False)
            yield from self._work(pool, is_last=True)
        finally:
            self.runner.freed_memory.give_back()

    def float32_predictor(self) -> Predictor:
        """The same predictor in float32, one tile at a time; made when it is first needed for these limits.

        Its convolutions are not fused, because a fused ReLU may hide values that are not finite.
        """
        limits = self.limits.single_tiles_in_float32()
        if self._float32 is None or self._float32[0] != limits:
            predictor = Predictor(self.model, self.device, limits, self.options, fused=False)
            predictor.runner.freed_memory = self.runner.freed_memory.start_again()
            predictor._context_checked = True
            self._float32 = limits, predictor
        return self._float32[1]

    def _work(self, pool: TilePool, is_last: bool) -> Iterator[Prediction | Failure]:
        """Run what is in the pool, with lower limits each time that memory runs out."""
        while True:
            with OutOfMemoryGuard() as guard:
                yield from self._advance(pool, is_last)
            if guard.error is None:
                return
            pool.clear_device()
            self.runner.freed_memory.stop()
            release_unused_memory(self.device)
            with OutOfMemoryGuard():
                yield from self._read(pool, len(pool.finished))
            pool.start_again()
            failure = self._reduce_memory(pool, guard.error) if pool.waiting else None
            if failure is not None:
                yield failure

    def _advance(self, pool: TilePool, is_last: bool) -> Iterator[Prediction | Failure]:
        """Load the waiting photos and run full batches; after the last photo, run all that is left."""
        while pool.waiting or (is_last and pool.canvases):
            photo = pool.waiting[0] if pool.waiting else None
            if photo is None or self._has_to_wait(pool, photo):
                yield from self._run_batches(pool, allow_partial=True)
                continue
            plan = self._plan(pool, photo)
            self._check_context(plan)
            pool.add(self.runner.load(photo, plan))
            pool.waiting.popleft()
            yield from self._run_batches(pool, allow_partial=False)
        if is_last:
            yield from self._read(pool, len(pool.finished))

    def _plan(self, pool: TilePool, photo: Photo) -> TilePlan:
        return self.runner.plan(photo, self.limits.tiling, pool.recovery.tile_limit)

    def _check_context(self, plan: TilePlan) -> None:
        """Warn, once, if tiles show less than the network looks at."""
        if plan.tile_count == 1 or self._context_checked:
            return
        self._context_checked = True
        try:
            context = context_of(self.model.network)
        except Exception as error:
            if is_out_of_memory(error):
                self.warnings.append("not enough memory to measure how far the network looks beyond a tile")
                return
            raise ModelError(
                f"{self.model.name}: its code fails on images of some hundred pixels ({type(error).__name__}:"
                f" {shown(cut_short(str(error), 300))}); say how far it looks: context = N in model.toml"
            ) from error
        line = describe_context(context, self.limits.tiling.overlap)
        self.warnings += [line] if line else []

    def _has_to_wait(self, pool: TilePool, photo: Photo) -> bool:
        """Whether the photo has to wait until those on the device are finished.

        Together they may fill two batches of the largest tile, so that a folder of many odd sizes does not
        end up on the device as a whole.
        """
        height, width = self.runner.network_size(photo)
        plan = self._plan(pool, photo)
        largest_tile = max(pool.largest_tile, plan.tile_height * plan.tile_width)
        most_pixels = 2 * self.limits.batch * largest_tile
        return bool(pool.canvases) and pool.photo_pixels + height * width > most_pixels

    def _run_batches(self, pool: TilePool, allow_partial: bool) -> Iterator[Prediction | Failure]:
        """Run the waiting windows in full batches, and with ``allow_partial`` the rest as well."""
        while windows := pool.next_batch(self.limits.batch, allow_partial):
            if not (self._precision_checked or self._is_precise_enough(windows)):
                self._change_to_float32(pool)
                pool.start_again()
                return
            works_ahead = self._works_ahead and not pool.recovery.is_active
            finished_before = len(pool.finished)
            probabilities, finite = self.runner.run(windows, self.limits.batch)
            for index, window in enumerate(windows):
                pool.remove_window(window)
                canvas = window.canvas
                canvas.blend(window.top, window.left, probabilities[index, 0], finite[index])
                if canvas.missing == 0:
                    pool.finish(canvas, self.runner.download(canvas))
                    if not works_ahead:
                        yield from self._read(pool, len(pool.finished))
            if works_ahead:  # the device is busy with this batch; meanwhile read those before it
                yield from self._read(pool, finished_before)

    def _read(self, pool: TilePool, count: int) -> Iterator[Prediction | Failure]:
        """Read the masks of the first ``count`` finished photos."""
        for _ in range(count):
            photo, download = pool.finished[0]
            result = self.runner.read(photo, download) or self._retry_in_float32(photo)
            pool.finished.popleft()
            self.warnings += pool.recovery.warnings
            self._reset_recovery(pool)
            yield result

    def _retry_in_float32(self, photo: Photo) -> Prediction | Failure:
        """Mask a photo again whose logits were not finite."""
        if self.limits.dtype == torch.float32:
            return Failure.of(photo.ref, "predict", "the network's output is not finite, in float32 either")
        predictor = self.float32_predictor()
        try:
            result = next(predictor.predict([photo]))
        except CarvanaBatchError as error:  # memory may suffice for all other photos
            reason = f"the network's output is not finite in {self.limits.dtype}, and in float32: {error}"
            return Failure.of(photo.ref, "predict", reason)
        self.warnings += [f"second try in float32: {line}" for line in predictor.warnings]
        predictor.warnings.clear()
        return result

    def _is_precise_enough(self, windows: Sequence[Window]) -> bool:
        """Compare the first batch with float32."""
        is_precise, warning = check_precision(windows, self.runner, lambda: self.float32_predictor().runner)
        self._precision_checked = True
        self.warnings += [warning] if warning else []
        return is_precise

    def _change_to_float32(self, pool: TilePool) -> None:
        self.runner = self.float32_predictor().runner
        self.limits = self.limits.in_float32()
        if pool.recovery.limits_before is not None:
            pool.recovery.limits_before = pool.recovery.limits_before.in_float32()

    def _reduce_memory(self, pool: TilePool, error: str) -> Failure | None:
        """Lower the limits after memory ran out.

        Returns:
            The Failure of the first photo if it does not fit in the smallest tiles either, though others may.

        Raises:
            CarvanaBatchError: not even the smallest tile fits.
        """
        photo, recovery, before = pool.waiting[0], pool.recovery, self.limits
        if recovery.limits_before is None and (before.batch == 1 or len(pool.waiting) == 1):
            recovery.limits_before = before
        network, size = self.model.network, self.runner.network_size(photo)
        reduction = next_lower_limits(
            before, recovery.tile_limit, *size, network.stride, network.unit, network.fixed_size
        )
        if reduction is not None:
            self.limits, recovery.tile_limit, warning = reduction
            warnings = self.warnings if recovery.limits_before is None else recovery.warnings
            warnings += [warning] if warning else []
            return None
        plan = self._plan(pool, photo)
        if not self.runner.fits(plan, self.limits):
            raise smallest_tile_error(photo, plan, self.device, error)
        if not recovery.is_last_attempt:  # memory may have been short for a moment only
            recovery.is_last_attempt = True
            return None
        self.limits = recovery.limits_before or before
        self.runner.freed_memory = self.runner.freed_memory.start_again()
        pool.waiting.popleft()
        self._reset_recovery(pool)
        return too_large_photo(photo, self.device, error)

    def _reset_recovery(self, pool: TilePool) -> None:
        """Start anew after the first photo is finished, and report the limits if they have changed."""
        pool.reset_recovery()
        if self.limits != self._reported_limits:
            self._reported_limits = self.limits
            self.on_change(self.limits)
