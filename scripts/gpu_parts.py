"""The parts of gpu_check.py: each is a generator of pairs of a name and a value that JSON can hold."""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from carvana_batch import __version__
from carvana_batch.decode.photo import read_image
from carvana_batch.demo import draw_photo
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inference.planning import make_predictor
from carvana_batch.inference.predictor import AnyPredictor
from carvana_batch.inputs.find import find_images
from carvana_batch.masks.counts import count
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import Options
from carvana_batch.values import Failure, ImageRef, Photo, Prediction

Found = Iterator[tuple[str, Any]]

FULL_SIZE = (1918, 1280)

CARD_MEMORY = 6e9
"""Bytes of a card that full-size and large photos have to fit into."""


@dataclass(frozen=True)
class Setup:
    """What each part is given.

    Attributes:
        out: the folder of the results.
        photos: a folder of photos of one size.
        device: as in predict.
        quick: use few and tiny photos.
    """

    out: Path
    photos: Path | None
    device: str
    quick: bool

    @property
    def on_card(self) -> bool:
        return self.device.startswith("cuda")

    def refs(self, number: int) -> list[ImageRef]:
        """So many photos with different keys; those of the folder over and over again."""
        assert self.photos is not None  # drawn by gpu_check.py
        found = find_images(self.photos, follow_links=True).refs
        return [ImageRef(f"{index:05}", ref.path) for index, ref in enumerate(islice(cycle(found), number))]

    def load(self, number: int) -> list[Photo]:
        return [Photo(ref, read_image(ref.path)) for ref in self.refs(number)]


def draw(setup: Setup, folder: Path) -> Setup:
    """Draw some photos for all parts."""
    folder.mkdir(parents=True)
    for seed in range(3 if setup.quick else 8):
        pixels, _ = draw_photo(seed, 1 + 5 * seed % 16, (192, 128) if setup.quick else FULL_SIZE)
        Image.fromarray(pixels).save(folder / f"{seed}.jpg", quality=92)
    return replace(setup, photos=folder)


def show_versions(setup: Setup) -> Found:
    yield "carvana-batch", __version__
    yield "python", platform.python_version()
    yield "torch", str(torch.__version__)
    yield "cores", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not setup.on_card:
        return
    yield "cuda, cudnn", [torch.version.cuda, torch.backends.cudnn.version()]
    card = torch.cuda.get_device_properties(setup.device)
    yield "card", [card.name, f"{card.total_memory / 1e9:.1f} GB", f"sm_{card.major}{card.minor}"]
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv,noheader"]
    yield "driver", subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def run_tests(_setup: Setup) -> Found:
    """tests/test_gpu.py, which skips itself without a card."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    print(ended.stdout, ended.stderr)
    yield "outcome", ended.stdout.strip().splitlines()[-1] if ended.stdout.strip() else "no output"
    yield "failed", re.findall(r"^(?:FAILED|ERROR) (.*)", ended.stdout, re.MULTILINE)
    if ended.returncode:
        raise RuntimeError("some tests failed")


def predict(predictor: AnyPredictor, photos: Sequence[Photo]) -> list[Prediction]:
    """The predictions, in the order of the photos.

    Raises:
        RuntimeError: a photo failed.
    """
    results: dict[str, Prediction] = {}
    for result in predictor.predict(photos):
        if isinstance(result, Failure):
            raise RuntimeError(f"{result.id}: {result.reason}")
        results[result.photo.ref.key] = result
    return [results[photo.ref.key] for photo in photos]


def make(setup: Setup, precision: str = "fp16", **options: Any) -> AnyPredictor:
    if not setup.on_card and precision == "fp16":
        precision = "bf16"  # a CPU is slow in fp16
    predictor, line = make_predictor(load_model("segunet-s"), Options(setup.device, precision, **options))
    print(line)
    return predictor


def compare_masks(setup: Setup) -> Found:
    """Masks of the device in each precision, compared with those of the CPU in float32."""
    photos = setup.load(3 if setup.quick else 40)
    size: Any = "native" if setup.quick else None
    on_cpu, _ = make_predictor(load_model("segunet-s"), Options("cpu", "fp32", size=size))
    expected = predict(on_cpu, photos)
    for name in ("fp32", "fp32 without TF32", "fp16", "bf16"):
        torch.backends.cudnn.allow_tf32 = "without" not in name
        predictor = make(setup, name.split()[0], size=size)
        results = predict(predictor, photos)
        different = [
            int((result.mask.to_bool() != other.mask.to_bool()).sum())
            for result, other in zip(results, expected, strict=True)
        ]
        dice = [count(result.mask, other.mask).dice for result, other in zip(results, expected, strict=True)]
        yield (
            name,
            {
                "different pixels a photo, mean": float(np.mean(different)),
                "most": max(different),
                "Dice, mean": float(np.mean(dice)),
                "lowest": min(dice),
                "warnings": predictor.warnings,
            },
        )


def compare_company(setup: Setup) -> Found:
    """The mask of a photo alone, and among others."""
    photos = setup.load(2 if setup.quick else 8)
    batch = len(photos)
    size: Any = "native" if setup.quick else None
    for precision in ("fp32", "fp16", "bf16"):
        predictor = make(setup, precision, batch=batch, size=size)
        together = predict(predictor, photos)
        alone = [predict(predictor, [photo])[0] for photo in photos]
        single = predict(make(setup, precision, batch=1, size=size), photos)
        yield (
            precision,
            {
                "different pixels, alone in a batch": count_different(together, alone),
                "different pixels, batches of one": count_different(together, single),
                "the same again": count_different(together, predict(predictor, photos)),
            },
        )


def count_different(results: Sequence[Prediction], others: Sequence[Prediction]) -> int:
    pairs = zip(results, others, strict=True)
    return sum(int((one.mask.to_bool() != other.mask.to_bool()).sum()) for one, other in pairs)


def find_waiting(setup: Setup) -> Found:
    """Whether anything in the loop waits for the device but reading masks."""
    photos = setup.load(4 if setup.quick else 24)
    for name, options in {"whole": {}, "tiles": {"tile": (512, 512), "overlap": 64}}.items():
        predictor = make(setup, batch=2, **({"size": "native"} if setup.quick else options))
        predict(predictor, photos[:2])  # compares the first batch with float32, which waits
        if not setup.on_card:
            yield name, "not to be seen without a card"
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            predict(predictor, photos)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield name, "nothing waits"


def measure_memory(setup: Setup) -> Found:
    """Large photos within 6 GB, and what happens when memory really runs out."""
    (photo,) = setup.load(1)
    sizes = {"full size": FULL_SIZE, "25 megapixels": (6120, 4080), "100 megapixels": (12240, 8160)}
    if setup.quick:
        sizes = {"full size": (192, 128), "large": (384, 256)}
    for name, size in sizes.items():
        pixels = np.array(Image.fromarray(photo.pixels).resize(size))
        number = 4 if setup.quick else 24 if name == "full size" else 2
        large = [Photo(ImageRef(str(index), name), pixels) for index in range(number)]
        yield name, run_within(setup, large, CARD_MEMORY, size="native")
    pixels = np.array(Image.fromarray(photo.pixels).resize(sizes["full size"]))
    many = [Photo(ImageRef(str(index), "many"), pixels) for index in range(4 if setup.quick else 24)]
    for limit in (3e9, 1.5e9, 0.6e9):
        promised: dict[str, Any] = {"batch": 8, "memory": 10**10} if setup.on_card else {}
        yield f"{limit / 1e9:g} GB, promised 10", run_within(setup, many, limit, size="native", **promised)


def run_within(setup: Setup, photos: Sequence[Photo], limit: float, **options: Any) -> dict[str, Any]:
    """Mask photos while torch gets at most ``limit`` bytes of the card."""
    if setup.on_card:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(setup.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        torch.cuda.reset_peak_memory_stats()
    predictor = make(setup, **options)
    before, start = predictor.limits, time.perf_counter()
    try:
        results = list(predictor.predict(photos))
    except CarvanaBatchError as error:
        return {"not even the smallest tile fits": str(error)}
    seconds = (time.perf_counter() - start) / len(photos)
    failures = [result.reason for result in results if isinstance(result, Failure)]
    found: dict[str, Any] = {"seconds a photo": round(seconds, 4), "failures": failures}
    found |= {"batch": [before.batch, predictor.limits.batch], "warnings": predictor.warnings}
    if setup.on_card:
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        found["peak GB, allocated and reserved"] = [round(peak / 1e9, 2) for peak in peaks]
    return found


def measure_speed(setup: Setup) -> Found:
    """Whole runs, compared with what the network and the decoders could do alone."""
    import bench
    from measuring import count_cores

    number = 4 if setup.quick else 240
    options = Options(setup.device, "fp16" if setup.on_card else "bf16", overwrite=True)
    options = replace(options, size="native" if setup.quick else None)
    task = bench.Task(setup.refs(number), "segunet-s", options)
    with tempfile.TemporaryDirectory() as name:
        forward = bench.run_forward(task, Path(name)).seconds
        decoding = bench.run_decoding(replace(task, photos=task.photos[: max(2, number // 6)]), Path(name))
        decode = decoding.cpu_seconds / count_cores()
        yield "forward alone, photos/s", round(1 / forward, 1)
        yield "decoding alone on all cores, photos/s", round(1 / decode, 1)
        bound = 1 / (max(forward, decode) if setup.on_card else forward + decode)
        for workers in (1, 2) if setup.quick else (1, 4, 8, 16):
            result = bench.run_predict(
                replace(task, options=replace(options, workers=workers)), Path(name) / "out"
            )
            speed = 1 / result.seconds
            found = {"photos/s": round(speed, 1), "of the bound": round(speed / bound, 3)}
            yield f"{workers} workers", found | {"seconds waited for": result.details["stages"]}
        result = bench.run_predict(replace(task, model="auto"), Path(name) / "auto")
        yield "model auto, photos/s", round(1 / result.seconds, 1)


def profile(setup: Setup) -> Found:
    """What the device and the main thread do during a few batches; the trace is in trace.json.gz."""
    from torch.profiler import ProfilerActivity

    photos = setup.load(2 if setup.quick else 24)
    predictor = make(setup, **({"size": "native"} if setup.quick else {}))
    predict(predictor, photos)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.on_card else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        predict(predictor, photos)
    trace = setup.out / "trace.json.gz"
    profiler.export_chrome_trace(str(trace))
    yield "trace", f"{trace.stat().st_size / 1e6:.2f} MB"
    by = "self_cuda_time_total" if setup.on_card else "self_cpu_time_total"
    print(table := profiler.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=60))
    yield "most time", table.splitlines()


def compare_peers(setup: Setup) -> Found:
    """The plain loop and MONAI beside predict, on the same photos."""
    import bench
    from bench_peers import PEERS

    options = Options(setup.device, "fp16" if setup.on_card else "bf16", overwrite=True)
    options = replace(options, size="native" if setup.quick else None)
    task = bench.Task(setup.refs(2 if setup.quick else 40), "segunet-s", options)
    with tempfile.TemporaryDirectory() as name:
        bench.run_predict(task, Path(name) / "first")  # files and libraries are in memory then
        yield "predict, photos/s", round(1 / bench.run_predict(task, Path(name) / "predict").seconds, 2)
        for peer, what in PEERS.items():
            if "pytorch-toolbelt" in peer or not what.is_installed():
                yield peer, "not measured"
                continue
            bench.run_peer(peer, replace(task, photos=task.photos[:2]), Path(name) / "warm-up")
            yield f"{peer}, photos/s", round(1 / bench.run_peer(peer, task, Path(name) / "peer").seconds, 2)


def train_distributed(setup: Setup) -> Found:
    import gpu_training_parts

    yield from gpu_training_parts.train_distributed(setup)


def measure_training(setup: Setup) -> Found:
    import gpu_training_parts

    yield from gpu_training_parts.measure_training(setup)


@dataclass(frozen=True)
class Part:
    """One part: what it does, and most seconds that it may take."""

    title: str
    seconds: float
    run: Callable[[Setup], Found]


PARTS = {
    "versions": Part("what there is", 25, show_versions),
    "masks": Part("masks compared with those of the CPU in float32", 60, compare_masks),
    "company": Part("a photo alone and among others", 30, compare_company),
    "waiting": Part("calls that wait for the device", 25, find_waiting),
    "memory": Part("large photos, and when memory runs out", 60, measure_memory),
    "speed": Part("whole runs, compared with forward pass and decoding", 60, measure_speed),
    "profile": Part("what takes the time", 30, profile),
    "training": Part("training steps with photos on the device", 90, measure_training),
    "distributed": Part("two training steps of a process group", 30, train_distributed),
    "tests": Part("tests/test_gpu.py", 90, run_tests),
    "peers": Part("other ways to mask photos", 40, compare_peers),
}
"""In order of importance, as those at the end may find no time left."""
