"""The parts of gpu_check.py that train."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_parts import FULL_SIZE, Found, Setup
from PIL import Image
from torch import distributed, nn

from carvana_batch.demo import draw_photo
from carvana_batch.training.loop import Training
from carvana_batch.training.pairs import Pair, find_pairs
from carvana_batch.training.processes import Processes
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.settings import TrainingSettings


class ProcessGroup(Processes):
    """A single process that nevertheless averages gradients as several do."""

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        ids = [device.index or 0] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)


@contextlib.contextmanager
def start_training(
    setup: Setup, pairs: list[Pair], settings: TrainingSettings, **options: Any
) -> Iterator[Training]:
    with tempfile.TemporaryDirectory() as name, RunFolder(Path(name) / "run") as run:
        run.begin(settings)
        training = Training(pairs, pairs[:1], run, settings, torch.device(setup.device), workers=0, **options)
        training._read_photos()
        yield training


def draw_pairs(setup: Setup, folder: Path) -> list[Pair]:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for seed in range(4 if setup.quick else 16):
        pixels, mask = draw_photo(seed, 1 + 5 * seed % 16, (64, 32) if setup.quick else FULL_SIZE)
        Image.fromarray(pixels).save(folder / "images" / f"car{seed}_01.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"car{seed}_01_mask.png")
    return find_pairs(folder)


def train_distributed(setup: Setup) -> Found:
    """Two steps, with and without a process group of one process."""
    size = (64, 32) if setup.quick else (480, 320)
    settings = TrainingSettings(size=size, batch=2, precision="fp32", cache="device", init="segunet-s")
    with tempfile.TemporaryDirectory() as name:
        pairs = draw_pairs(replace(setup, quick=True), Path(name))
        backend = "nccl" if setup.on_card else "gloo"
        if setup.on_card:
            torch.cuda.set_device(torch.device(setup.device))
        distributed.init_process_group(backend, init_method=f"file://{name}/rendezvous", world_size=1, rank=0)
        try:
            for kind, processes in {"one process": Processes(), backend: ProcessGroup()}.items():
                with start_training(setup, pairs, settings, processes=processes) as training:
                    passes = training._passes(range(2))
                    yield kind, [training.step_runner.take_step(next(passes)) for _ in range(2)]
        finally:
            distributed.destroy_process_group()


def measure_training(setup: Setup) -> Found:
    """Photos per second of training steps at full size, with photos on the device."""
    with tempfile.TemporaryDirectory() as name:
        pairs = draw_pairs(setup, Path(name))
        for model, batch, compiled in (
            [("segunet-s", 2, False)]
            if setup.quick
            else [
                ("segunet-s", 4, False),
                ("segunet-s", 8, False),
                ("segunet-s", 16, False),
                ("segunet-m", 8, False),
                ("segunet-s", 8, True),
            ]
        ):
            settings = TrainingSettings(
                model=model, batch=batch, loss="boundary", precision="bf16", cache="device", epochs=100
            )
            yield (
                f"{model}, batches of {batch}{', compiled' * compiled}",
                time_steps(setup, pairs, settings, compiled),
            )


def time_steps(setup: Setup, pairs: list[Pair], settings: TrainingSettings, compiled: bool) -> dict[str, Any]:
    """The seconds of the first step, and of a later one; photos per second; peak memory."""
    number = 1 if setup.quick else 8
    if setup.on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with start_training(setup, pairs, settings, compiled=compiled) as training:
        passes, take_step = training._passes(range(2 * number + 2)), training.step_runner.take_step
        start = time.perf_counter()
        take_step(next(passes))
        first = time.perf_counter() - start
        take_step(next(passes))
        start = time.perf_counter()
        for _ in range(number):
            take_step(next(passes))  # waits, because it looks at the loss
        seconds = (time.perf_counter() - start) / number
        start = time.perf_counter()
        for _ in range(number):
            next(passes)
        if setup.on_card:
            torch.cuda.synchronize()
        making = (time.perf_counter() - start) / number
    found = {"seconds, first step": round(first, 2), "seconds, later": round(seconds, 4)}
    found |= {"of them, samples": round(making, 4), "photos/s": round(settings.batch / seconds, 1)}
    if setup.on_card:
        found["peak GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return found
