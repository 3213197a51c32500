"""The network on its device: photos are uploaded, tiles are run, masks are downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carvana_batch.errors import ModelError
from carvana_batch.inference.canvas import Canvas, Window
from carvana_batch.inference.devices import single_thread_on_small_cpus
from carvana_batch.inference.memory import FreedMemory, OutOfMemoryGuard, is_out_of_memory
from carvana_batch.inference.network_input import NetworkInput
from carvana_batch.inference.recovery import Limits
from carvana_batch.inference.resizing import InputSize, resize_photo
from carvana_batch.inference.thresholding import expected_dice, threshold_and_pack
from carvana_batch.inference.tiles import TilePlan, Tiling
from carvana_batch.inference.transfer import Download, upload
from carvana_batch.network.cpu_fusion import prepare_network
from carvana_batch.network.model import Model
from carvana_batch.options import DEFAULT_THRESHOLD, NetworkSize
from carvana_batch.orientation import inverse, turn
from carvana_batch.text import cut_short, shown
from carvana_batch.values import ImageRef, PackedMask, Photo, Prediction


@dataclass(frozen=True)
class MaskOptions:
    """What a mask depends on besides the network.

    Attributes:
        threshold: probability above which a pixel is car.
        flip: also run the mirrored photo, and average.
        keep_probability: put the probability map into predictions.
        size: in which the network sees photos.
    """

    threshold: float = DEFAULT_THRESHOLD
    flip: bool = False
    keep_probability: bool = False
    size: NetworkSize = None


class NetworkRunner:
    """One network on one device in one number format, and what happens to a photo there.

    Args:
        model: the network and what its input must look like.
        device: where it runs.
        dtype: number format of the network.
        options: what masks depend on besides.
        fused: let convolutions compute what follows them, where the CPU can do that.
    """

    def __init__(
        self, model: Model, device: torch.device, dtype: torch.dtype, options: MaskOptions, fused: bool = True
    ) -> None:
        self.model, self.device, self.dtype, self.options = model, device, dtype, options
        self.input_size = InputSize.choose(model, options.size)
        self.input = NetworkInput(model.mean, model.deviation, device)
        self.freed_memory = FreedMemory(device)
        self._network = prepare_network(model.network, device, dtype, fused)

    def network_size(self, photo: Photo) -> tuple[int, int]:
        """(height, width) of the photo as the network sees it."""
        return self.input_size.of(*photo.upright_shape)

    def plan(self, photo: Photo, tiling: Tiling, tile_limit: int | None = None) -> TilePlan:
        """The tiles of a photo; ``tile_limit``: most pixels of one of them, None for no limit."""
        network = self.model.network
        return tiling.plan(
            *self.network_size(photo), network.stride, network.unit, tile_limit, network.fixed_size
        )

    def load(self, photo: Photo, plan: TilePlan) -> Canvas:
        """Put a photo on the device, upright and in the size that the network wants."""
        # Turned before it is resized, so that the result does not depend on how the photo is stored.
        upright = turn(photo.pixels, photo.orientation)
        pixels = np.ascontiguousarray(resize_photo(upright, *self.network_size(photo)))
        return Canvas(photo, plan, upload(pixels, self.device))

    def run(self, windows: Sequence[Window], batch: int) -> tuple[Tensor, Tensor]:
        """Run up to ``batch`` windows of one tile size.

        Returns:
            Probabilities (batch, 1, h, w) float32, and whether the logits are finite, (batch,) bool. Both are
            on the device.
        """
        plan = windows[0].canvas.plan
        self.freed_memory.prepare_for((plan.tile_height, plan.tile_width))
        with single_thread_on_small_cpus(self.device):
            images = self.input.normalise(windows, batch, self.dtype)
        return self.probabilities(images)

    def probabilities(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (N, 1, h, w) float32 of normalised (N, 3, h, w) images, and if they are finite."""
        logits = self._logits(images)
        probabilities = torch.sigmoid(logits)
        # A sum is finite only if every summand is; it takes one number per tile instead of a map.
        finite = torch.isfinite(logits.sum(dim=(1, 2, 3)))
        if self.options.flip:
            mirrored = self._logits(images.flip(3)).flip(3)
            probabilities = (probabilities + torch.sigmoid(mirrored)) / 2
            finite = finite & torch.isfinite(mirrored.sum(dim=(1, 2, 3)))
        return probabilities, finite

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (N, 1, h, w) float32.

        Raises:
            ModelError: the code of a network that is not ours fails.
        """
        try:
            logits: Tensor = self._network(images)
            return logits.float()
        except Exception as error:
            if not self.model.network.is_foreign or is_out_of_memory(error) or isinstance(error, ModelError):
                raise
            size = f"{len(images)} of {images.shape[3]}x{images.shape[2]} pixels in {images.dtype}"
            raise ModelError(
                f"{self.model.name}: its code fails on tiles, {size} ({type(error).__name__}:"
                f" {shown(cut_short(str(error), 300))})"
            ) from error

    def download(self, canvas: Canvas) -> Download:
        """Threshold the map of a photo and start to download its packed mask; see :meth:`read`."""
        with single_thread_on_small_cpus(self.device):
            probability = canvas.probability()
            packed, sums = threshold_and_pack(probability, self.options.threshold)
        kept = [probability] if self.options.keep_probability else []
        return Download(packed, sums, torch.stack(canvas.finite), *kept)

    def read(self, photo: Photo, download: Download) -> Prediction | None:
        """The prediction of a photo once its download is complete; None if its logits are not finite."""
        packed, sums, finite, *kept = download.read()
        if not finite.all():
            return None
        return make_prediction(photo, packed, sums, kept[0] if kept else None)

    def fits(self, plan: TilePlan, limits: Limits) -> bool:
        """Whether a photo of one tile of this plan could be masked with nothing else on the device."""
        blank = Photo(
            ImageRef("blank", Path("blank")), np.zeros((plan.tile_height, plan.tile_width, 3), np.uint8)
        )
        single = replace(plan, tops=(0,), lefts=(0,))
        with OutOfMemoryGuard() as guard:
            canvas = Canvas(blank, single, upload(blank.pixels, self.device))
            for window in canvas.windows():
                probabilities, finite = self.run([window], limits.batch)
                canvas.blend(window.top, window.left, probabilities[0, 0], finite[0])
            self.download(canvas).read()
        return guard.error is None


def make_prediction(photo: Photo, packed: Tensor, sums: Tensor, probability: Tensor | None) -> Prediction:
    """The prediction of a photo from its map, which is upright, in main memory.

    Args:
        photo: as it is stored.
        packed: from :func:`threshold_and_pack`.
        sums: the same.
        probability: (H, W) float32 in [0, 1], None if the prediction does not keep it.
    """
    upright = PackedMask(packed.numpy(), photo.upright_shape[1])
    back = inverse(photo.orientation)
    kept = None if probability is None else np.ascontiguousarray(turn(probability.numpy(), back))
    return Prediction(photo, upright.turned(back), expected_dice(upright.rows, sums), kept)
