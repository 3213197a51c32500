#!/usr/bin/env python
"""Compare predict with the upper bound that its network and decoder set, and with its peers.

    scripts/bench.py [PHOTOS] --gt MASKS

All methods mask the same photos with the same weights and number of threads, each in its own process, and
take turns; every other turn runs in reverse order. Each ratio is the median over the turns, with the minimum
and the maximum in brackets. The ratios only describe a machine if nothing else runs on it, so its load is
printed first.

predict is carvana_batch.run.run into a folder, timed from the moment the network is ready until the report is
written. The forward pass is timed within predict's own predictor, with its inputs in memory in the form in
which it makes them. Decoding is read_image, one photo after the other. For both, the first photo is a
warm-up. On a CPU, network and decoder share the cores, so wall-clock times would not add up: the upper bound
is the number of photos that all cores, never idle, could process in the CPU seconds of both. On a GPU, the
slower of the two is the bound: wall-clock time for the network, CPU seconds divided by the number of cores
for the decoder.

The peers open photos and save masks with Pillow, and are timed from the first photo on. Peak memory is the
largest resident set size; for predict, the largest unique set size of its decoder processes is added, sampled
every half second. On CUDA, it is the device memory that torch reserves.

The peers need packages: pip install "carvana-batch[bench]".
"""

import argparse
import contextlib
import multiprocessing
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import psutil
import torch
from bench_peers import PEERS, Peer
from measuring import alternate, count_cores, describe_machine, summarise_ratios
from PIL import Image

from carvana_batch.decode.photo import read_image
from carvana_batch.demo import write_photos
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference.devices import pick_device
from carvana_batch.inference.planning import describe_choice, make_predictor
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.keys import mask_id
from carvana_batch.inputs.masks import TRUTH_ADVICE, find_masks
from carvana_batch.main_memory import peak_memory
from carvana_batch.masks.counts import count
from carvana_batch.masks.read import read_mask
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import PRECISION_NAMES, Options
from carvana_batch.run import Listener, run
from carvana_batch.values import Failure, ImageRef, Photo

PREDICT, FORWARD, DECODING = "predict", "forward pass", "decoding"
SAMPLING_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """What every process is given."""

    photos: Sequence[ImageRef]
    model: str
    options: Options


@dataclass
class Measurement:
    """One run of one method.

    Attributes:
        seconds: wall-clock seconds per photo.
        cpu_seconds: CPU seconds per photo.
        peak: peak memory in bytes.
        details: depend on the method.
    """

    seconds: float
    cpu_seconds: float
    peak: int
    details: dict[str, Any] = field(default_factory=dict)


class Stopwatch:
    """Adds up wall-clock and CPU seconds between start and stop, those of ended child processes included."""

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

    def result(self, photos: int, child_memory: int = 0, **details: object) -> Measurement:
        on_cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_reserved(self.device) if on_cuda else peak_memory() + child_memory
        return Measurement(self.seconds / photos, self.cpu_seconds / photos, peak, details)


class ChildMemory(threading.Thread):
    """Samples the memory of all child processes during a with block.

    Attributes:
        peak: the largest sum of their unique set sizes in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._ended = 0, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SAMPLING_SECONDS):
            with contextlib.suppress(psutil.Error):  # a child has just ended
                children = psutil.Process().children(recursive=True)
                self.peak = max(self.peak, sum(child.memory_full_info().uss for child in children))

    def __enter__(self) -> "ChildMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--gt", type=Path, help="a folder of true masks")
    parser.add_argument("--limit", type=int, help="use only this many photos, the first ones")
    parser.add_argument("--turns", type=int, default=5, help="runs of each method  [default: 5]")
    parser.add_argument("--no-peers", action="store_true", help="measure only predict and its upper bound")
    parser.add_argument("--model", default="segunet-s", help="as in predict  [default: segunet-s]")
    parser.add_argument("--device", default="auto", help="as in predict  [default: auto]")
    parser.add_argument("--precision", choices=PRECISION_NAMES, default="auto", help="as in predict")
    parser.add_argument("--tile", type=int, help="side of the tiles in pixels  [default: auto]")
    arguments = parser.parse_args()
    if arguments.turns < 1:
        parser.error("--turns must be at least 1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if arguments.photos is None:
                write_photos(folder / "drawn")
                arguments.photos, arguments.gt = folder / "drawn" / "images", folder / "drawn" / "masks"
            photos = find_images(arguments.photos, follow_links=True).refs[: arguments.limit]
            truth = find_masks(arguments.gt, advice=TRUTH_ADVICE) if arguments.gt else {}
            if len(photos) < 2:
                raise UsageError("at least two photos are needed")
            if load_model(arguments.model).size is not None:
                raise UsageError("--model: use one that takes photos at their own size, as the peers do")
            tile = (arguments.tile, arguments.tile) if arguments.tile else None
            options = Options(arguments.device, arguments.precision, tile=tile, overwrite=True)
            peers = {} if arguments.no_peers else PEERS
            measure_all(Task(photos, arguments.model, options), peers, folder, arguments.turns, truth)
        except CarvanaBatchError as error:
            parser.error(str(error))


def measure_all(task: Task, peers: dict[str, Peer], folder: Path, turns: int, truth: dict[str, Path]) -> None:
    print(describe_machine(f"Python {platform.python_version()}", f"torch {torch.__version__}"))
    # The precision is chosen once: if each turn timed it again, another one might result.
    first = run_in_process(run_forward, replace(task, photos=task.photos[:2]), folder).details
    task = replace(task, options=replace(task.options, precision=first["precision"]))
    run_in_process(run_decoding, task, folder)  # fill the file cache of the system
    print(f"{len(task.photos)} photos, {turns} turns, {task.model} on {first['line']}\n", flush=True)
    methods = {FORWARD: run_forward, DECODING: run_decoding, PREDICT: run_predict}
    methods |= {name: partial(run_peer, name) for name, peer in peers.items() if peer.is_installed()}
    measured: dict[str, list[Measurement]] = {name: [] for name in methods}
    for turn in range(turns):
        for name in alternate(methods, turn):
            measured[name].append(run_in_process(methods[name], task, folder / name))
    print_table(measured, {name: mean_dice(task, folder / name, truth) for name in [PREDICT, *peers]})
    print_time_shares(measured)


def run_in_process(method: Callable[[Task, Path], Measurement], task: Task, out: Path) -> Measurement:
    """Run the method in a new process, so that none inherits memory or warm caches from another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, use_default_start_method) as pool:
        return pool.submit(method, task, out).result()


def use_default_start_method() -> None:
    """In a spawned process, let predict start its decoders in the default way of the system."""
    multiprocessing.set_start_method(None, force=True)


def run_forward(task: Task, _out: Path) -> Measurement:
    predictor, device = make_predictor(load_model(task.model), task.options)
    if not isinstance(predictor, Predictor):
        raise UsageError("the forward pass is measured with a single model, such as --model segunet-s")
    photos = (Photo(ref, read_image(ref.path)) for ref in task.photos)
    list(predictor.predict([next(photos)]))  # also compares the precision with float32
    stopwatch = Stopwatch(predictor.device)
    pixels: list[int] = []
    network = predictor.runner._network
    network.register_forward_pre_hook(stopwatch.start)
    network.register_forward_hook(stopwatch.stop)
    network.register_forward_hook(lambda _network, inputs, _logits: pixels.append(inputs[0][:, 0].numel()))
    photo_pixels = 0
    for result in predictor.predict(photos):
        if isinstance(result, Failure):
            raise CarvanaBatchError(f"{result.source}: {result.reason}")
        photo_pixels += result.photo.pixels[..., 0].size
    choice = describe_choice(predictor.device, predictor.limits)
    return stopwatch.result(
        len(task.photos) - 1,
        redundancy=sum(pixels) / photo_pixels,
        line=device,
        device=choice.device,
        precision=choice.precision,
    )


def run_decoding(task: Task, _out: Path) -> Measurement:
    stopwatch = Stopwatch(torch.device("cpu"))
    read_image(task.photos[0].path)
    stopwatch.start()
    for ref in task.photos[1:]:
        read_image(ref.path)
    stopwatch.stop()
    return stopwatch.result(len(task.photos) - 1)


def run_predict(task: Task, out: Path) -> Measurement:
    model, stopwatch = load_model(task.model), Stopwatch(pick_device(task.options.device))
    with ChildMemory() as children:
        report = run(task.photos, out, model, task.options, Listener(on_start=stopwatch.start))
        stopwatch.stop()
    if report.failures or report.warnings:
        problems = report.warnings + [f"{entry.source}: {entry.reason}" for entry in report.failures]
        raise CarvanaBatchError("this run cannot be compared with others: " + "; ".join(problems))
    return stopwatch.result(len(task.photos), children.peak, stages=report.stages)


@torch.inference_mode()
def run_peer(name: str, task: Task, out: Path) -> Measurement:
    mask = PEERS[name].make(load_model(task.model), task.options)
    stopwatch = Stopwatch(pick_device(task.options.device))
    stopwatch.start()
    for ref in task.photos:
        with Image.open(ref.path) as photo:
            car = mask(photo.convert("RGB")).cpu().numpy()
        target = out / f"{ref.key}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(car.astype(np.uint8) * 255).save(target)
    stopwatch.stop()
    return stopwatch.result(len(task.photos))


def mean_dice(task: Task, masks: Path, truth: dict[str, Path]) -> float | None:
    """Return the mean Dice of the photos that have a true mask, None if none has."""
    keys = [ref.key for ref in task.photos if mask_id(ref.key) in truth and masks.is_dir()]
    scores = [count(read_mask(masks / f"{key}.png"), read_mask(truth[mask_id(key)])).dice for key in keys]
    return mean(scores) if scores else None


def print_table(measured: dict[str, list[Measurement]], dice: dict[str, float | None]) -> None:
    """Print a row for the upper bound and for each method that has a (possibly missing) Dice."""
    ours = [each.seconds for each in measured[PREDICT]]
    our_peak = max(each.peak for each in measured[PREDICT])
    combine = sum if ran_on_cpu(measured) else max
    bounds = [combine(parts) for parts in zip(*bound_parts(measured), strict=True)]
    print(
        "| method | photos/s | predict's speed / its | target | peak MB | its peak / predict's | mean Dice |"
    )
    print("|---|---|---|---|---|---|---|")
    ratios = summarise_ratios(bounds, ours)
    print(f"| upper bound: {FORWARD} and {DECODING} alone | {1 / median(bounds):.2f} | {ratios} | | | | |")
    for name, score in dice.items():
        target = PEERS[name].target if name in PEERS else ""
        if name not in measured:
            print(f"| {name} | not installed | | {target} | | | |")
            continue
        seconds = [each.seconds for each in measured[name]]
        peak = max(each.peak for each in measured[name])
        cells = [name, f"{1 / median(seconds):.2f}", summarise_ratios(seconds, ours), target]
        cells += [f"{peak / 1e6:.0f}", f"{peak / our_peak:.2f}", "" if score is None else f"{score:.4f}"]
        print(f"| {' | '.join(cells)} |")


def bound_parts(measured: dict[str, list[Measurement]]) -> tuple[list[float], list[float]]:
    """Return the fewest seconds per photo that forward pass and decoding can take, for each turn."""
    forward = [each.cpu_seconds / count_cores() for each in measured[FORWARD]]
    decoding = [each.cpu_seconds / count_cores() for each in measured[DECODING]]
    return forward if ran_on_cpu(measured) else [each.seconds for each in measured[FORWARD]], decoding


def ran_on_cpu(measured: dict[str, list[Measurement]]) -> bool:
    return bool(measured[FORWARD][0].details["device"] == "cpu")


def print_time_shares(measured: dict[str, list[Measurement]]) -> None:
    ours = [each.seconds for each in measured[PREDICT]]
    forward, decoding = (summarise_ratios(part, ours) for part in bound_parts(measured))
    print(f"\nShares of predict's time: {FORWARD} {forward}, {DECODING} {decoding}")
    stages = [each.details["stages"] for each in measured[PREDICT]]
    totals = [sum(turn.values()) for turn in stages]
    for stage, what in (
        ("predict", "predicting"),
        ("decode", "waiting for photos"),
        ("write", "waiting for writers"),
    ):
        share = summarise_ratios([turn[stage] for turn in stages], totals)
        print(f"Share of its main thread's time: {what} {share}")
    redundancy = median(each.details["redundancy"] for each in measured[FORWARD])
    print(f"Pixels that the network processes / pixels of the photos: {redundancy:.3f}")


if __name__ == "__main__":
    main()
