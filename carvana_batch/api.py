"""carvana-batch from Python, for notebooks and other programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inputs.find import find_images
from carvana_batch.masks.specks import clean
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import Options
from carvana_batch.values import Failure, PackedMask, Prediction


class Masker:
    """A model that is loaded once and masks arrays or folders; nothing is written.

    Example::

        from carvana_batch import Masker

        masker = Masker()                      # or Masker("weights.safetensors", device="cuda")
        mask = masker.mask(pixels)             # (H, W, 3) uint8 RGB -> (H, W) bool
        for result in masker.mask_folder("photos"):
            ...                                # a Prediction or a Failure for each photo

    Args:
        model: name of bundled weights, a weights file, or the folder of a training run; ``auto`` has masks of
            ``segunet-s`` checked, and if need be replaced, by ``segunet-s-anywhere``.
        options: the fields of ``carvana_batch.options.Options`` that concern the network and decoding.

    Raises:
        CarvanaBatchError: the model or the device cannot be used.
        TypeError: an option that does not exist.
    """

    def __init__(self, model: str | Path = "auto", **options: Any) -> None:
        self.options = Options(**options)
        self._predictor, self.description = make_predictor(
            load_model(model, self.options.model_settings), self.options
        )

    def mask(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The (H, W) bool mask of one (H, W, 3) uint8 RGB image.

        Raises:
            ValueError: another shape or dtype.
            CarvanaBatchError: the output of the network is not finite, or the image does not fit into memory.
        """
        mask = self._predictor.mask(pixels)
        return clean(PackedMask.from_bool(mask)).to_bool() if self.options.clean else mask

    def mask_folder(self, folder: str | Path) -> Iterator[Prediction | Failure]:
        """Mask the photos below a folder, or a single photo.

        Args:
            folder: the folder, or the photo.

        Yields:
            For each photo a :class:`Prediction`, which holds the photo, its packed mask (``.mask.to_bool()``
            gives (H, W) bool, on the pixel grid of ``.photo.pixels``), the expected Dice and the doubt, or a
            :class:`Failure` with the reason. They come in the order of their keys if all photos have the same
            size.

        Raises:
            UsageError: the folder cannot be read or holds no photos.
        """
        options = DecodeOptions(
            self.options.pixel_limit, self.options.apply_exif, accept_damage=self.options.accept_damage
        )
        loader = PhotoLoader(find_images(Path(folder)).refs, options, self.options.workers or 0)
        for result in self._predictor.predict(loader):
            if self.options.clean and isinstance(result, Prediction):
                result = replace(result, mask=clean(result.mask))
            yield result
