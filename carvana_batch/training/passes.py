"""The samples of each step, divided into passes through the network and read by worker processes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from carvana_batch.decode.shared_memory import (
    PREFETCHED_PHOTOS,
    InPipe,
    InSlot,
    OpenedSlots,
    SharedMemory,
)
from carvana_batch.decode.worker_pool import WorkerPool, make_do, socket_folder
from carvana_batch.decode.workers import WORKER_POLL_SECONDS, WorkerWatch, is_lost_worker
from carvana_batch.decode.workers_error import WorkersError
from carvana_batch.errors import CarvanaBatchError, ImageError
from carvana_batch.training.processes import Processes
from carvana_batch.training.samples import Draw, Samples, collate, draw_batches, take_passes
from carvana_batch.training.settings import TrainingSettings
from carvana_batch.values import Failure

CHANNELS = (3, 1, 1)
"""Channels of the images, masks and known pixels of a pass."""


@dataclass(frozen=True)
class Pass:
    """The samples that go through the network together.

    Attributes:
        draws: the draws of the samples.
        images: (n, 3, h, w) uint8.
        masks: (n, 1, h, w) uint8 soft masks, 0 to 255.
        known: (n, 1, h, w) uint8, 255 where the mask is known, else 0.
    """

    draws: list[Draw]
    images: Tensor
    masks: Tensor
    known: Tensor


class _Made(NamedTuple):
    """What a worker sends for a pass.

    Attributes:
        values: all values of images, masks and known pixels, one after the other, as a vector.
        shape: (n, h, w).
    """

    values: InSlot | InPipe | NDArray[np.uint8]
    shape: tuple[int, int, int]


class _Making(Dataset[_Made | Failure]):
    """Makes the samples of passes; torch runs it in the workers, each with its own copy of ``memory``."""

    def __init__(self, samples: Samples) -> None:
        self.samples, self.memory = samples, SharedMemory()

    def __getitem__(self, draws: Sequence[Draw]) -> _Made | Failure:
        made = collate([self.samples[draw] for draw in draws])
        if isinstance(made, Failure):
            return made
        count, _, height, width = made[0].shape
        values = np.concatenate([tensor.numpy().ravel() for tensor in made])
        return _Made(self.memory.put(values), (count, height, width))


def passes_of_steps(
    samples: Samples,
    settings: TrainingSettings,
    steps: range,
    processes: Processes,
    device: torch.device,
    workers: int,
    on_say: Callable[[str], object] = lambda line: None,
) -> Generator[list[Pass]]:
    """Yield the passes of this process for each step.

    What keeps workers from starting or sending does not end the run: samples then go through a pipe, or fewer
    workers or this process make them.

    Args:
        samples: makes the samples.
        settings: settings of the run.
        steps: the steps, counted from 0.
        processes: the processes that share the samples of a step.
        device: where the network runs. Memory is pinned for a GPU.
        workers: number of worker processes; with 0, this process reads the photos.
        on_say: called with a line about each restriction that is necessary.

    Raises:
        ImageError: a photo or mask cannot be read.
        CarvanaBatchError: a worker process died.
    """

    def draws() -> Iterator[list[Draw]]:
        for step_draws in draw_batches(len(samples), settings, steps):
            yield from take_passes(step_draws, settings.accumulate, processes.rank, processes.count)

    making, slots = _Making(samples), OpenedSlots()
    results: Iterable[_Made | Failure]
    with contextlib.ExitStack() as stack:
        pool = _start_workers(making, draws, workers, stack, on_say)
        results = map(making.__getitem__, draws()) if pool is None else pool
        made = _receive(results, slots, device.type == "cuda", on_say)
        passes = (Pass(drawn, *tensors) for drawn, tensors in zip(draws(), made, strict=True))
        try:
            while step_passes := list(itertools.islice(passes, settings.accumulate)):
                yield step_passes
        except (RuntimeError, OSError, EOFError, WorkersError) as error:
            if pool is None or not (is_lost_worker(error) or isinstance(error, WorkersError)):
                raise
            reason = (
                f"cannot go on: {error}" if isinstance(error, WorkersError) else "died; memory may be short"
            )
            raise CarvanaBatchError(
                f"A process that reads photos {reason}. Use --resume to go on from the last checkpoint, with"
                " --workers 0 if it happens again."
            ) from error


def _start_workers(
    making: _Making,
    draws: Callable[[], Iterator[list[Draw]]],
    workers: int,
    stack: contextlib.ExitStack,
    on_say: Callable[[str], object],
) -> WorkerPool | None:
    """Start workers, which end with the stack; None if this process has to read the photos itself."""
    sockets = stack.enter_context(socket_folder()) if workers else None
    while workers:
        try:
            pool = WorkerPool(making, draws(), workers, PREFETCHED_PHOTOS, sockets)
        except WorkersError as error:
            fewer = make_do(error, making.memory, workers)
            if fewer < workers:
                how = "a single process" if fewer else "the main process"
                on_say(f"Warning: {error}; photos are read by {how}")
            workers = fewer
            continue
        stack.callback(pool.close)
        watch = WorkerWatch(pool.workers, WORKER_POLL_SECONDS)
        watch.start()
        stack.callback(watch.join)
        stack.callback(watch.ended.set)
        return pool
    return None


def _receive(
    results: Iterable[_Made | Failure], slots: OpenedSlots, pinned: bool, on_say: Callable[[str], object]
) -> Iterator[list[Tensor]]:
    """Yield images, masks and known pixels of each pass.

    Raises:
        ImageError: a photo or mask cannot be read.
        WorkersError: memory of a worker cannot be opened.
    """
    said = False
    for made in results:
        if isinstance(made, Failure):
            raise ImageError(made.reason)
        values = made.values
        if isinstance(values, InPipe):
            if not said:
                on_say(f"Warning: {values.problem}")
            said, values = True, values.pixels
        elif isinstance(values, InSlot):
            values = slots.view(values)
        kept = torch.empty(values.size, dtype=torch.uint8, pin_memory=pinned)
        kept.copy_(torch.from_numpy(values))  # a worker will reuse its slot
        count, height, width = made.shape
        parts = kept.split([count * channels * height * width for channels in CHANNELS])
        yield [part.view(count, -1, height, width) for part in parts]
