"""Pairs of photos and masks, and the samples drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from carvana_batch.images import read_image, read_mask
from carvana_batch.inputs import find_images, shown
from carvana_batch.masks import find_masks
from carvana_batch.records import ImageError, UsageError
from carvana_batch.training.augmentation import AugmentationLimits, augment


@dataclass(frozen=True)
class Pair:
    """A photo and its true mask."""

    id: str
    image: Path
    mask: Path

    @property
    def car(self) -> str:
        """The part of the id before the underscore: all views of a car share it."""
        return self.id.rsplit("_", 1)[0]


def find_pairs(folder: Path) -> list[Pair]:
    """The pairs of ``folder/images`` and ``folder/masks``, sorted by id.

    Raises:
        UsageError: a folder is missing or empty, or a photo has no mask, or a mask no photo.
    """
    images = {ref.key: ref.path for ref in find_images(folder / "images").refs}
    masks = find_masks(folder / "masks")
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired:
        raise UsageError(
            f"{folder}: {len(unpaired)} photos or masks without the other, such as {shown(unpaired[0])};"
            " every images/<id>.jpg needs a masks/<id>_mask.gif"
        )
    return [Pair(id, images[id], masks[id]) for id in sorted(images)]


def load_pair(pair: Pair, size: tuple[int, int] | None) -> tuple[Image.Image, Image.Image]:
    """The RGB photo and its L mask (0 to 255), area-averaged to ``size`` (width, height) if given.

    Raises:
        ImageError: one of them cannot be read, or their sizes differ.
    """
    image = Image.fromarray(read_image(pair.image))
    mask = Image.fromarray(read_mask(pair.mask).to_bool().astype(np.uint8) * 255)
    if image.size != mask.size:
        raise ImageError(f"{shown(pair.mask)} is {mask.size} pixels, its photo {image.size}")
    if size is not None:
        image = image.resize(size, Image.Resampling.BOX)
        mask = mask.resize(size, Image.Resampling.BOX)
    return image, mask


@dataclass(frozen=True)
class Draw:
    """One sample of a run: its number seeds the augmentation, so that a resumed run draws the same."""

    number: int
    index: int
    crop: tuple[int, int] | None


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Augmented (3, h, w) uint8 images and (1, h, w) uint8 soft masks, addressed by :class:`Draw`."""

    def __init__(
        self,
        pairs: list[Pair],
        size: tuple[int, int] | None,
        limits: AugmentationLimits,
        seed: int,
        keep_in_memory: bool,
    ) -> None:
        self.pairs, self.size, self.limits, self.seed = pairs, size, limits, seed
        self.kept = [load_pair(pair, size) for pair in pairs] if keep_in_memory else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        generator = np.random.default_rng((self.seed, draw.number))
        image, mask = self.kept[draw.index] if self.kept else load_pair(self.pairs[draw.index], self.size)
        image, mask = augment(image, mask, self.limits, generator)
        if draw.crop is not None:
            width, height = draw.crop
            left = int(generator.integers(0, image.width - width + 1))
            top = int(generator.integers(0, image.height - height + 1))
            image = image.crop((left, top, left + width, top + height))
            mask = mask.crop((left, top, left + width, top + height))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels, torch.from_numpy(np.array(mask))[None]


def draw_batches(
    count: int, batch: int, steps: range, seed: int, crop: tuple[int, int] | None, crop_share: float
) -> Iterator[list[Draw]]:
    """The batches of the steps: epoch after epoch of shuffled indices, each batch whole or cropped.

    Depends on the arguments alone, so a run that starts at a later step draws what it would have drawn.
    """
    orders: dict[int, np.ndarray] = {}
    for step in steps:
        cropped = crop if np.random.default_rng((seed, step, 1)).random() < crop_share else None
        draws = []
        for number in range(step * batch, (step + 1) * batch):
            epoch = number // count
            if epoch not in orders:
                orders = {epoch: np.random.default_rng((seed, epoch, 2)).permutation(count)} | orders
                orders = dict(list(orders.items())[:2])
            draws.append(Draw(number, int(orders[epoch][number % count]), cropped))
        yield draws
