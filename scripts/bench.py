#!/usr/bin/env python
"""How near predict comes to what its network and the decoder permit, and how it compares with its peers.

    scripts/bench.py [PHOTOS] --gt MASKS

Everything masks the same photos with the same weights and number of threads, each in a process of its own.
All take turns, in the opposite order every other turn. A ratio is the median of those of the turns, with the
least and the most of them in brackets. It says something about a machine only if nothing else runs there: the
load is printed first.

predict is carvana_batch.pipeline.run into a folder, timed from when the network is ready until the report is
written. The forward pass is timed within predict's own predictor, with its inputs in memory as it makes them;
decoding is read_image, one photo after the other; the first photo of either warms up. On a CPU they permit
together as many photos as all cores, never idle, could do in the CPU seconds that the two take: network and
decoder share the cores, so seconds of a clock would not add up. On a GPU the slower one is the limit, by the
clock for the network and by CPU seconds over all cores for the decoder.

The peers open photos and save masks with Pillow, and are timed from the first photo on. Peak memory is
the most that was resident; for predict the most that its decoders have for themselves is added, looked at
every half second. On CUDA it is the memory of the device that torch reserves.

The peers need packages: pip install "carvana-batch[bench]".
"""

import argparse
import contextlib
import multiprocessing
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import psutil
import torch
from bench_peers import PEERS, Peer
from bench_submit_score import find_processor
from PIL import Image

from carvana_batch.decode.photo import read_image
from carvana_batch.demo import write_photos
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference.devices import pick_device
from carvana_batch.inference.planning import describe_choice, make_predictor
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.keys import mask_id
from carvana_batch.inputs.masks import TRUTH_ADVICE, find_masks
from carvana_batch.main_memory import peak_memory
from carvana_batch.masks.counts import count
from carvana_batch.masks.read import read_mask
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import PRECISION_NAMES, Options
from carvana_batch.run import Listener, run
from carvana_batch.values import ImageRef, Photo

OURS, FORWARD, DECODING = "predict", "forward pass", "decoding"


@dataclass(frozen=True)
class Task:
    """What all processes are given."""

    photos: Sequence[ImageRef]
    model: str
    options: Options


@dataclass
class Measured:
    """Seconds a photo, by the clock and of the CPU; ``peak`` is in bytes."""

    seconds: float
    cpu_seconds: float
    peak: int
    details: dict[str, Any] = field(default_factory=dict)


class Clock:
    """Adds up what passes between start and stop, CPU seconds of ended child processes included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.cpu_seconds = device, 0.0, 0.0

    def start(self, *_: object) -> None:
        self._add(-1)

    def stop(self, *_: object) -> None:
        self._add(1)

    def _add(self, sign: int) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.seconds += sign * time.perf_counter()
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            self.cpu_seconds += sign * (usage.ru_utime + usage.ru_stime)

    def result(self, photos: int, of_children: int = 0, **details: object) -> Measured:
        on_cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_reserved(self.device) if on_cuda else peak_memory() + of_children
        return Measured(self.seconds / photos, self.cpu_seconds / photos, peak, details)


class ChildrenWatch(threading.Thread):
    """In a with block: ``peak`` is the most memory that child processes have and share with no other."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            with contextlib.suppress(psutil.Error):  # one has just ended
                children = psutil.Process().children(recursive=True)
                self.peak = max(self.peak, sum(child.memory_full_info().uss for child in children))

    def __enter__(self) -> "ChildrenWatch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--gt", type=Path, help="a folder of true masks")
    parser.add_argument("--limit", type=int, help="take only the first so many photos")
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind  [default: 5]")
    parser.add_argument("--no-peers", action="store_true", help="measure predict and its limit alone")
    parser.add_argument("--model", default="segunet-s", help="as of predict  [default: segunet-s]")
    parser.add_argument("--device", default="auto", help="as of predict  [default: auto]")
    parser.add_argument("--precision", choices=PRECISION_NAMES, default="auto", help="as of predict")
    parser.add_argument("--tile", type=int, help="side of the tiles in pixels  [default: auto]")
    arguments = parser.parse_args()
    if arguments.turns < 1:
        parser.error("--turns is at least 1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if arguments.photos is None:
                write_photos(folder / "drawn")
                arguments.photos, arguments.gt = folder / "drawn" / "images", folder / "drawn" / "masks"
            photos = find_images(arguments.photos, follow_links=True).refs[: arguments.limit]
            truth = find_masks(arguments.gt, advice=TRUTH_ADVICE) if arguments.gt else {}
            if len(photos) < 2:
                raise UsageError("there is too little to measure: at least two photos")
            if load_model(arguments.model).size is not None:
                raise UsageError("--model: one that takes photos as they are, as the peers do")
            tile = (arguments.tile, arguments.tile) if arguments.tile else None
            options = Options(arguments.device, arguments.precision, tile=tile, overwrite=True)
            peers = {} if arguments.no_peers else PEERS
            measure_all(Task(photos, arguments.model, options), peers, folder, arguments.turns, truth)
        except CarvanaBatchError as error:
            parser.error(str(error))


def measure_all(task: Task, peers: dict[str, Peer], folder: Path, turns: int, truth: dict[str, Path]) -> None:
    print_machine()
    # The precision is chosen once: timed again in each turn, another one might come out.
    first = in_own_process(run_forward, replace(task, photos=task.photos[:2]), folder).details
    task = replace(task, options=replace(task.options, precision=first["precision"]))
    in_own_process(run_decoding, task, folder)  # from now on the system has the files in its cache
    print(f"{len(task.photos)} photos, {turns} turns, {task.model} on {first['line']}\n", flush=True)
    runs = {FORWARD: run_forward, DECODING: run_decoding, OURS: run_predict}
    runs |= {name: partial(run_peer, name) for name, peer in peers.items() if peer.is_installed()}
    measured: dict[str, list[Measured]] = {name: [] for name in runs}
    for turn in range(turns):
        for name in reversed(runs) if turn % 2 else runs:
            measured[name].append(in_own_process(runs[name], task, folder / name))
    print_table(measured, {name: mean_dice(task, folder / name, truth) for name in [OURS, *peers]})
    print_shares(measured)


def print_machine() -> None:
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{date.today()}, {platform.machine()}, {find_processor()}, {count_cores()} cores,", end=" ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, load before: {load}")


def in_own_process(function: Callable[..., Measured], *arguments: object) -> Measured:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, use_default_start_method) as pool:
        return pool.submit(function, *arguments).result()


def use_default_start_method() -> None:
    """In a spawned process: predict's decoders are forked where they usually are."""
    multiprocessing.set_start_method(None, force=True)


def run_forward(task: Task, _out: Path) -> Measured:
    predictor, device = make_predictor(load_model(task.model), task.options, {})
    photos = (Photo(ref, read_image(ref.path)) for ref in task.photos)
    list(predictor.predict([next(photos)]))  # also compares the precision with float32
    clock, seen = Clock(predictor.device), []
    network = predictor._network
    network.register_forward_pre_hook(clock.start)
    network.register_forward_hook(clock.stop)
    network.register_forward_hook(lambda _network, inputs, _logits: seen.append(inputs[0][:, 0].numel()))
    whole = sum(result.photo.pixels[..., 0].size for result in predictor.predict(photos))
    choice = describe_choice(predictor)
    details = {"line": device, "device": choice["device"], "precision": choice["precision"]}
    return clock.result(len(task.photos) - 1, redundancy=sum(seen) / whole, **details)


def run_decoding(task: Task, _out: Path) -> Measured:
    clock = Clock(torch.device("cpu"))
    read_image(task.photos[0].path)
    clock.start()
    for ref in task.photos[1:]:
        read_image(ref.path)
    clock.stop()
    return clock.result(len(task.photos) - 1)


def run_predict(task: Task, out: Path) -> Measured:
    model, clock = load_model(task.model), Clock(pick_device(task.options.device))
    with ChildrenWatch() as children:
        report = run(task.photos, out, model, task.options, Listener(on_start=clock.start))
        clock.stop()
    if report.failures or report.warnings:
        problems = report.warnings + [f"{entry.source}: {entry.reason}" for entry in report.failures]
        raise CarvanaBatchError("not to be compared with: " + "; ".join(problems))
    return clock.result(len(task.photos), children.peak, stages=report.stages)


@torch.inference_mode()
def run_peer(name: str, task: Task, out: Path) -> Measured:
    mask = PEERS[name].make(load_model(task.model), task.options)
    clock = Clock(pick_device(task.options.device))
    clock.start()
    for ref in task.photos:
        with Image.open(ref.path) as photo:
            car = mask(photo.convert("RGB")).cpu().numpy()
        target = out / f"{ref.key}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(car.astype(np.uint8) * 255).save(target)
    clock.stop()
    return clock.result(len(task.photos))


def mean_dice(task: Task, masks: Path, truth: dict[str, Path]) -> float | None:
    """Of the photos that have a true mask; None if none has."""
    keys = [ref.key for ref in task.photos if mask_id(ref.key) in truth and masks.is_dir()]
    scores = [count(read_mask(masks / f"{key}.png"), read_mask(truth[mask_id(key)])).dice for key in keys]
    return mean(scores) if scores else None


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_table(measured: dict[str, list[Measured]], dice: dict[str, float | None]) -> None:
    ours = [one.seconds for one in measured[OURS]]
    peak = max(one.peak for one in measured[OURS])
    combine = sum if on_cpu(measured) else max
    limits = [combine(parts) for parts in zip(*find_parts(measured), strict=True)]
    print("| what | photos/s | predict's / these | aim | peak MB | these / predict's | mean Dice |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {FORWARD} and {DECODING} permit | {1 / median(limits):.2f} | {spread(limits, ours)} | | | | |")
    for name, score in dice.items():
        aim = PEERS[name].aim if name in PEERS else ""
        if name not in measured:
            print(f"| {name} | not installed | | {aim} | | | |")
            continue
        seconds = [one.seconds for one in measured[name]]
        highest = max(one.peak for one in measured[name])
        memory = f"{highest / 1e6:.0f} | {highest / peak:.2f}"
        shown = "" if score is None else f"{score:.4f}"
        print(
            f"| {name} | {1 / median(seconds):.2f} | {spread(seconds, ours)} | {aim} | {memory} | {shown} |"
        )


def find_parts(measured: dict[str, list[Measured]]) -> tuple[list[float], list[float]]:
    """Of each turn, the least seconds a photo that the forward pass takes, and those that decoding takes."""
    forward = [one.cpu_seconds / count_cores() for one in measured[FORWARD]]
    decoding = [one.cpu_seconds / count_cores() for one in measured[DECODING]]
    return forward if on_cpu(measured) else [one.seconds for one in measured[FORWARD]], decoding


def on_cpu(measured: dict[str, list[Measured]]) -> bool:
    return measured[FORWARD][0].details["device"] == "cpu"


def print_shares(measured: dict[str, list[Measured]]) -> None:
    ours = [one.seconds for one in measured[OURS]]
    forward, decoding = find_parts(measured)
    print(f"\nOf the time of predict: {FORWARD} {spread(forward, ours)}, {DECODING} {spread(decoding, ours)}")
    for stage, what in (("predict", "at work"), ("decode", "waiting for photos"), ("write", "for writers")):
        stages = [one.details["stages"] for one in measured[OURS]]
        seconds = [turn[stage] for turn in stages]
        print(
            f"Of that of its main thread: {what} {spread(seconds, [sum(turn.values()) for turn in stages])}"
        )
    redundancy = median(one.details["redundancy"] for one in measured[FORWARD])
    print(f"Pixels that the network sees over those of the photos: {redundancy:.3f}")


def spread(values: Sequence[float], others: Sequence[float]) -> str:
    """Of the ratios of the turns the median, and the least and the most in brackets."""
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


if __name__ == "__main__":
    main()
