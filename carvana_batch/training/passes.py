"""The samples of each step, divided into passes through the network and read by worker processes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from carvana_batch.decode.worker_pool import socket_folder
from carvana_batch.decode.workers import begin_worker, is_lost_worker, workers_starting
from carvana_batch.errors import CarvanaBatchError, ImageError
from carvana_batch.training.processes import Processes
from carvana_batch.training.samples import Draw, Sample, Samples, collate, draw_batches, take_passes
from carvana_batch.training.settings import TrainingSettings
from carvana_batch.values import Failure


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


def passes_of_steps(
    samples: Samples,
    settings: TrainingSettings,
    steps: range,
    processes: Processes,
    device: torch.device,
    workers: int,
) -> Generator[list[Pass]]:
    """Yield the passes of this process for each step.

    Args:
        samples: makes the samples.
        settings: settings of the run.
        steps: the steps, counted from 0.
        processes: the processes that share the samples of a step.
        device: where the network runs. Memory is pinned for a GPU.
        workers: number of worker processes; with 0, this process reads the photos.

    Raises:
        ImageError: a photo or mask cannot be read.
        CarvanaBatchError: a worker process died.
    """
    draws, drawn = itertools.tee(
        pass_draws
        for step_draws in draw_batches(len(samples), settings, steps)
        for pass_draws in take_passes(step_draws, settings.accumulate, processes.rank, processes.count)
    )
    try:
        with socket_folder() if workers else contextlib.nullcontext() as sockets:
            loader = DataLoader(
                samples,
                batch_sampler=draws,
                collate_fn=collate,
                num_workers=workers,
                worker_init_fn=partial(begin_worker, sockets),
                pin_memory=device.type == "cuda",
            )
            with workers_starting():
                tensors = iter(loader)
            passes = itertools.starmap(_make_pass, zip(drawn, tensors, strict=True))
            while step_passes := list(itertools.islice(passes, settings.accumulate)):
                yield step_passes
    except RuntimeError as error:
        if not (is_lost_worker(error) or is_shared_memory_full(error)):
            raise
        raise CarvanaBatchError(
            "A process that reads photos died, or found no room in shared memory (/dev/shm). Use --resume"
            " to go on from the last checkpoint, with --workers 0 if it happens again."
        ) from error


def is_shared_memory_full(error: RuntimeError) -> bool:
    """Whether an exception of a DataLoader means that a worker found no room in shared memory.

    torch has no class for it; these parts of its messages were seen in torch 2.13.0.
    """
    return any(text in str(error) for text in ("shared memory", "No space left on device"))


def _make_pass(draws: list[Draw], tensors: Sample | Failure) -> Pass:
    if isinstance(tensors, Failure):
        raise ImageError(tensors.reason)
    return Pass(draws, *tensors)
