"""Which samples each step uses, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from carvana_batch.errors import ImageError
from carvana_batch.inference.memory import free_memory
from carvana_batch.parallel import map_in_order
from carvana_batch.training.augmentation import augment
from carvana_batch.training.backgrounds import Backgrounds
from carvana_batch.training.pairs import Pair, load_pair
from carvana_batch.training.settings import AugmentationLimits, TrainingSettings
from carvana_batch.values import Failure

KEPT_SHARE = 0.25
"""Share of the free memory in which reduced photos may be kept, so that they are decoded only once."""

KEPT_BYTES_PER_PIXEL = 6
"""Pillow stores RGB in four bytes, and each of the two masks takes one."""


@dataclass(frozen=True)
class Draw:
    """One sample of a run.

    Attributes:
        number: number of the sample, from 0. It seeds the augmentation, so that a resumed run makes the same
            samples.
        index: index of the pair.
        crop: (width, height) of a random crop, or None for the whole photo.
    """

    number: int
    index: int
    crop: tuple[int, int] | None


Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Samples(Dataset[Sample | Failure]):
    """Augmented samples, indexed by :class:`Draw`.

    A sample is a (3, h, w) uint8 image with its (1, h, w) uint8 soft mask, 0 to 255, and a (1, h, w) uint8
    mask that is 255 where the soft mask is known, else 0; or a Failure if it cannot be read.

    Args:
        pairs: photos with their masks.
        size: (width, height) that they are reduced to, or None for their own size.
        limits: how far augmentation may go.
        seed: seed of the augmentation.
        backgrounds: photos over which augmentation may put cars.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        size: tuple[int, int] | None,
        limits: AugmentationLimits,
        seed: int,
        backgrounds: Backgrounds | None = None,
    ) -> None:
        self.pairs, self.size, self.limits, self.seed = pairs, size, limits, seed
        self.backgrounds = backgrounds
        self._kept: list[tuple[Image.Image, Image.Image, Image.Image]] | None = None

    def keep_in_memory(
        self, processes: int = 1, on_progress: Callable[[int, int], object] = lambda *_: None
    ) -> None:
        """Decode all pairs and keep them, if they are reduced and fit into memory.

        Args:
            processes: number of processes on this machine that do the same.
            on_progress: called as ``on_progress(done, total)`` after each pair.
        """
        if self.size is None:
            return
        available = KEPT_SHARE * free_memory(torch.device("cpu")) / processes
        if KEPT_BYTES_PER_PIXEL * self.size[0] * self.size[1] * len(self.pairs) > available:
            return
        kept = []
        for loaded in map_in_order(lambda pair: load_pair(pair, self.size), self.pairs):
            kept.append(loaded)
            on_progress(len(kept), len(self.pairs))
        self._kept = kept

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: Draw) -> Sample | Failure:
        try:
            image, *masks = self.make(draw)
        except ImageError as error:  # raised in a worker, it would include a traceback
            return Failure(self.pairs[draw.index].id, "read", str(error))
        mask, known = (torch.from_numpy(array)[None] for array in masks)
        return torch.from_numpy(image).permute(2, 0, 1), mask, known

    def make(self, draw: Draw) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Make the (h, w, 3) uint8 image and its (h, w) uint8 masks: the soft one and that of known pixels.

        Raises:
            ImageError: the photo, a mask or a background cannot be read.
        """
        generator = np.random.default_rng((self.seed, draw.number))
        loaded = self._kept[draw.index] if self._kept else load_pair(self.pairs[draw.index], self.size)
        pictures = augment(*loaded, self.limits, generator, self.backgrounds)
        if draw.crop is not None:
            width, height = draw.crop
            left = int(generator.integers(0, pictures[0].width - width + 1))
            top = int(generator.integers(0, pictures[0].height - height + 1))
            box = (left, top, left + width, top + height)
            image, mask, known = (np.array(picture.crop(box)) for picture in pictures)
        else:
            image, mask, known = (np.array(picture) for picture in pictures)
        return image, mask, known


def make_samples(pairs: Sequence[Pair], settings: TrainingSettings) -> Samples:
    """Make the samples of a run.

    Raises:
        UsageError: there are no photos in the folder of backgrounds.
    """
    backgrounds = None if settings.backgrounds is None else Backgrounds(Path(settings.backgrounds))
    return Samples(pairs, settings.size, settings.augmentation, settings.seed, backgrounds)


def collate(samples: Sequence[Sample | Failure]) -> Sample | Failure:
    """Stack n samples to (n, 3, h, w) images and (n, 1, h, w) masks, or return the first failure."""
    made: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
        made.append(sample)
    images, masks, known = (torch.stack(tensors) for tensors in zip(*made, strict=True))
    return images, masks, known


def draw_batches(count: int, settings: TrainingSettings, steps: range) -> Iterator[list[Draw]]:
    """Draw the samples of each step: ``settings.batch`` at a time from ``count`` indexes, shuffled per epoch.

    The samples of a step are either all whole or all cropped. They depend only on the arguments, so that a
    resumed run draws the same ones.

    Args:
        count: number of pairs.
        settings: settings of the run.
        steps: the steps to draw for, counted from 0.
    """
    seed, batch = settings.seed, settings.batch
    orders: dict[int, NDArray[np.int64]] = {}
    for step in steps:
        cropped = np.random.default_rng((seed, step, 1)).random() < settings.crop_share
        crop = settings.crop if cropped else None
        draws = []
        for number in range(step * batch, (step + 1) * batch):
            epoch = number // count
            if epoch not in orders:
                orders = {key: order for key, order in orders.items() if key == epoch - 1}
                orders[epoch] = np.random.default_rng((seed, epoch, 2)).permutation(count)
            draws.append(Draw(number, int(orders[epoch][number % count]), crop))
        yield draws


def take_passes(draws: list[Draw], accumulate: int, rank: int, count: int) -> list[list[Draw]]:
    """Divide the draws of a step into equal passes, and return those of one process.

    Args:
        draws: the draws of all processes.
        accumulate: number of passes per process.
        rank: rank of the process.
        count: number of processes.
    """
    size = len(draws) // (accumulate * count)
    starts = [(number * count + rank) * size for number in range(accumulate)]
    return [draws[start : start + size] for start in starts]
