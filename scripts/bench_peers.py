"""The peers of predict in bench.py: other ways to mask photos with the same weights, as users write them.

They decode with Pillow and let the C library return freed memory to the system. That predict does neither is
part of the comparison.

Each ``make_`` function returns a function from a Pillow image to its (H, W) bool mask on the device.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from carvana_batch.inference.devices import pick_device
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inference.precision import PRECISIONS
from carvana_batch.network.cpu_fusion import prepare_network
from carvana_batch.network.model import Model
from carvana_batch.options import Options

Masker = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Peer:
    """One way to mask photos.

    Attributes:
        make: makes the function that masks a photo.
        target: the speed of predict relative to this peer that we aim for, as text.
        package: the package that it needs, if any.
    """

    make: Callable[[Model, Options], Masker]
    target: str = ""
    package: str = ""

    def is_installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None


class Normaliser:
    """Normalises (N, 3, H, W) uint8 to float32 with the model's mean and deviation, by the usual formula."""

    def __init__(self, model: Model, options: Options) -> None:
        self.device = pick_device(options.device)
        self.mean = torch.tensor(model.mean, device=self.device).reshape(1, 3, 1, 1)
        self.deviation = torch.tensor(model.deviation, device=self.device).reshape(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(self.device).float().div(255).sub(self.mean).div(self.deviation)

    def photo(self, photo: Image.Image) -> Tensor:
        """Normalise a whole photo to (1, 3, H, W) float32."""
        return self(torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].contiguous())


def make_plain(model: Model, options: Options) -> Masker:
    normalise = Normaliser(model, options)
    network = model.network.to(normalise.device)

    def mask(photo: Image.Image) -> Tensor:
        logits: Tensor = network(normalise.photo(photo))
        return torch.sigmoid(logits)[0, 0] > 0.5

    return mask


def make_plain_at_half_size(model: Model, options: Options) -> Masker:
    normalise = Normaliser(model, options)
    network = model.network.to(normalise.device)

    def mask(photo: Image.Image) -> Tensor:
        small = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
        logits = interpolate(network(normalise.photo(small)), (photo.height, photo.width), mode="bilinear")
        return torch.sigmoid(logits)[0, 0] > 0.5

    return mask


def make_monai(model: Model, options: Options) -> Masker:
    from monai.inferers import sliding_window_inference  # here, so that it takes no memory of the other peers

    normalise = Normaliser(model, options)
    network = model.network.to(normalise.device)

    def mask(photo: Image.Image) -> Tensor:
        logits: Tensor = sliding_window_inference(
            normalise.photo(photo), (512, 512), 4, network, overlap=0.25, mode="gaussian"
        )
        return torch.sigmoid(logits)[0, 0] > 0.5

    return mask


def make_monai_with_our_plan(model: Model, options: Options) -> Masker:
    from monai.inferers import sliding_window_inference

    dtype, normalise = PRECISIONS[options.precision], Normaliser(model, options)
    network = prepare_network(model.network, normalise.device, dtype)
    predictor, _ = make_predictor(model, options)
    batch, tiling = predictor.limits.batch, predictor.limits.tiling

    def mask(photo: Image.Image) -> Tensor:
        plan = tiling.plan(photo.height, photo.width, model.network.stride, model.network.unit)
        tile = plan.tile_height, plan.tile_width
        overlap = [min(options.overlap / side, 1 - 1 / side) for side in tile]
        image = normalise.photo(photo).to(dtype, memory_format=torch.channels_last)
        logits: Tensor = sliding_window_inference(
            image, tile, batch, network, overlap=overlap, mode="gaussian"
        )
        return torch.sigmoid(logits)[0, 0] > 0.5

    return mask


def make_toolbelt(model: Model, options: Options) -> Masker:
    tiles_module = load_toolbelt_tiles()
    normalise = Normaliser(model, options)
    network = model.network.to(normalise.device)

    def mask(photo: Image.Image) -> Tensor:
        pixels = np.asarray(photo)
        slicer = tiles_module.ImageSlicer(pixels.shape, tile_size=(512, 512), tile_step=(256, 256))
        tiles = [torch.from_numpy(np.moveaxis(tile, -1, 0).copy()) for tile in slicer.split(pixels)]
        merger = tiles_module.TileMerger(slicer.target_shape, 1, slicer.weight, normalise.device)
        pairs: Any = list(zip(tiles, slicer.crops, strict=True))
        for batch, positions in DataLoader(pairs, batch_size=8):
            merger.integrate_batch(network(normalise(batch)), positions)
        merged = np.moveaxis(torch.sigmoid(merger.merge()).cpu().numpy(), 0, -1)
        return torch.from_numpy(slicer.crop_to_orignal_size(merged)[..., 0] > 0.5)

    return mask


def load_toolbelt_tiles() -> ModuleType:
    """Load only the module that slices and merges: the rest needs a torchvision that matches torch."""
    package = importlib.util.find_spec("pytorch_toolbelt")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("pytorch_toolbelt is not installed")
    path = Path(package.submodule_search_locations[0], "inference", "tiles.py")
    spec = importlib.util.spec_from_file_location("toolbelt_tiles", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PEERS = {
    "plain loop, full size, fp32": Peer(make_plain, "at least 3"),
    "plain loop, half size, fp32": Peer(make_plain_at_half_size),
    "MONAI, 512x512, overlap 0.25, batches of 4, fp32": Peer(make_monai, "at least 3", "monai"),
    "MONAI with predict's tiles, precision and prepared network": Peer(
        make_monai_with_our_plan, "at least 1.2", "monai"
    ),
    "pytorch-toolbelt, 512x512, steps of 256, batches of 8, fp32": Peer(
        make_toolbelt, package="pytorch_toolbelt"
    ),
}
