"""Photos and masks that stay in the memory of a device, and are augmented there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from carvana_batch.errors import UsageError
from carvana_batch.inference.memory import free_memory
from carvana_batch.parallel import map_in_order
from carvana_batch.training.device_augmentation import augment_on_device
from carvana_batch.training.known import is_all_known
from carvana_batch.training.pairs import Pair, load_pair
from carvana_batch.training.passes import Pass
from carvana_batch.training.processes import Processes
from carvana_batch.training.samples import Draw, draw_batches, take_passes
from carvana_batch.training.settings import TrainingSettings

MOST_KEPT = 0.75
"""Largest share of the free memory of the device that photos and masks may take, as training needs some."""

DIFFERENT_SIZES = "photos have different sizes. Use --size to make them alike."

BYTES_PER_PIXEL = 4
"""Of a photo and its mask, uint8."""


class DeviceSamples:
    """Makes the samples of a run on a device, from photos that were decoded once.

    What is drawn for a sample is what :class:`~carvana_batch.training.samples.Samples` draws for it.

    Args:
        pairs: photos of one size with their masks.
        settings: settings of the run.
        device: where the photos are kept and the network runs.
    """

    def __init__(self, pairs: Sequence[Pair], settings: TrainingSettings, device: torch.device) -> None:
        self.pairs, self.settings, self.device = pairs, settings, device
        self._images = self._masks = torch.empty(0)
        self._known: dict[int, Tensor] = {}

    def load(self, processes: int, on_progress: Callable[[int, int], object] = lambda *_: None) -> None:
        """Decode all pairs and keep them on the device.

        Args:
            processes: number of processes on this machine, which share main memory if that is the device.
            on_progress: called as ``on_progress(done, total)`` after each pair.

        Raises:
            UsageError: they do not fit, or have different sizes.
            ImageError: one of them cannot be read.
        """
        count, size = len(self.pairs), self.settings.size
        for index, loaded in enumerate(map_in_order(lambda pair: load_pair(pair, size), self.pairs)):
            image, mask, known = (np.array(picture) for picture in loaded)
            if index == 0:
                self._reserve(count, mask.shape[0], mask.shape[1], processes)
            elif mask.shape != self._masks.shape[1:]:
                raise UsageError(f"--cache device: {DIFFERENT_SIZES}")
            self._images[index].copy_(torch.from_numpy(image))
            self._masks[index].copy_(torch.from_numpy(mask))
            if not is_all_known(loaded[2]):
                self._known[index] = torch.from_numpy(known).to(self.device)
            on_progress(index + 1, count)

    def _reserve(self, count: int, height: int, width: int, processes: int) -> None:
        """Reserve memory for all photos and masks.

        Raises:
            UsageError: it does not suffice.
        """
        needed = BYTES_PER_PIXEL * count * height * width
        free = free_memory(self.device) // (processes if self.device.type == "cpu" else 1)
        if needed > MOST_KEPT * free:
            raise UsageError(
                f"--cache device: {count:,} photos of {width}x{height} pixels and their masks take"
                f" {needed / 1e9:.1f} GB, more than {MOST_KEPT:.0%} of the {free / 1e9:.1f} GB that are free"
                f" on {self.device}. Use --size, or leave the option out."
            )
        self._images = torch.empty((count, height, width, 3), dtype=torch.uint8, device=self.device)
        self._masks = torch.empty((count, height, width), dtype=torch.uint8, device=self.device)

    def passes_of_steps(self, steps: range, processes: Processes) -> Generator[list[Pass]]:
        """Yield the passes of this process for each step.

        Args:
            steps: the steps, counted from 0.
            processes: the processes that share the samples of a step.
        """
        for draws in draw_batches(len(self.pairs), self.settings, steps):
            parts = take_passes(draws, self.settings.accumulate, processes.rank, processes.count)
            yield [self.make_pass(part) for part in parts]

    @torch.no_grad()
    def make_pass(self, draws: list[Draw]) -> Pass:
        """Make the samples of a pass, which stay on the device."""
        images, masks, known = zip(*(self._make(draw) for draw in draws), strict=True)
        return Pass(draws, torch.stack(images), torch.stack(masks)[:, None], torch.stack(known)[:, None])

    def _make(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """The (3, h, w) image, and its (h, w) masks: the soft one and that of known pixels, all uint8."""
        generator = np.random.default_rng((self.settings.seed, draw.number))
        image, mask, known = augment_on_device(
            self._images[draw.index].permute(2, 0, 1),
            self._masks[draw.index],
            self._known.get(draw.index),
            self.settings.augmentation,
            generator,
        )
        if known is None:
            known = torch.full_like(mask, 255)
        if draw.crop is None:
            return image, mask, known
        width, height = draw.crop
        left = int(generator.integers(0, mask.shape[1] - width + 1))
        top = int(generator.integers(0, mask.shape[0] - height + 1))
        rows, columns = slice(top, top + height), slice(left, left + width)
        return image[:, rows, columns], mask[rows, columns], known[rows, columns]
