#!/usr/bin/env python
"""Measure what each design choice of predict is worth: the time of an alternative relative to predict's.

    scripts/bench_choices.py [PHOTOS]

Single steps are timed in this process, on photos in memory; whole runs of predict are timed in a process
each. All alternatives take turns; every other turn runs in reverse order. Each ratio is the median over the
turns, with the minimum and the maximum in brackets; above 1, the alternative is slower. The ratios only
describe a machine if nothing else runs on it, so its load is printed first.

It is meant for a CPU and for Linux, where decoder processes are forked and therefore see what is patched
here. OpenVINO is tried if it is installed: pip install openvino.
torch.compile needs a C++ compiler; its cache is in a new folder, so its start takes as long as it does for
the first time.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from bench import Measurement, Task, run_in_process, run_predict
from measuring import alternate, describe_machine, summarise_ratios
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.decode import image_file
from carvana_batch.decode import photo as photo_decoder
from carvana_batch.decode.photo import read_image
from carvana_batch.demo import write_photos
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference import memory, runner
from carvana_batch.inference.planning import default_workers, make_predictor
from carvana_batch.inference.predictor import Predictor
from carvana_batch.inputs.find import find_images
from carvana_batch.main_memory import keep_freed_memory
from carvana_batch.masks.png import encode_mask
from carvana_batch.network.blocks import AnySizeNetwork, halve, spread_channels
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.cpu_fusion import FusedConvolution, fold_batch_norm, prepare_network
from carvana_batch.network.model import Model
from carvana_batch.options import Options
from carvana_batch.output import writer_threads
from carvana_batch.values import Failure, ImageRef, PackedMask, Photo

CPU = torch.device("cpu")
PHOTOS_IN_MEMORY = 4
PREDICT = "predict"

Step = Callable[[], object]
Network = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--limit", type=int, default=60, help="photos of a whole run  [default: 60]")
    parser.add_argument("--turns", type=int, default=5, help="runs of each alternative  [default: 5]")
    parser.add_argument("--model", default="segunet-s", help="as in predict  [default: segunet-s]")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="[default: bf16]")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        try:
            print(describe_machine(f"Python {platform.python_version()}", f"torch {torch.__version__}"))
            photos = arguments.photos or folder / "drawn" / "images"
            if arguments.photos is None:
                write_photos(folder / "drawn")
            refs = find_images(photos, follow_links=True).refs[: arguments.limit]
            task = Task(refs, arguments.model, Options("cpu", arguments.precision, overwrite=True))
            print(f"{len(refs)} photos, {arguments.turns} turns, {task.model} in {arguments.precision}\n")
            print("| step | predict's choice | alternative | its time / predict's |", flush=True)
            print("|---|---|---|---|", flush=True)
            measure_runs(task, folder, arguments.turns)
            measure_steps(task, arguments.turns, with_compile=not arguments.no_compile)
        except CarvanaBatchError as error:
            parser.error(str(error))


def measure_runs(task: Task, folder: Path, turns: int) -> None:
    """Time whole runs, each in its own process."""
    writers, workers = writer_threads.WRITER_THREADS, default_workers(CPU, len(task.photos))
    runs: dict[tuple[str, str], Callable[[Task, Path], Measurement]] = {
        (PREDICT, ""): run_predict,
        ("freed memory kept", "returned to the system"): partial(run_patched, return_freed_memory),
        ("simplejpeg", "Pillow"): partial(run_patched, decode_with_pillow),
        ("one of two threads beside the network", "both"): partial(run_patched, use_all_threads),
    }
    for count in (1, 2, 4):
        if count != writers:
            patch = partial(set_writers, count)
            runs[f"writer threads: {writers}", str(count)] = partial(run_patched, patch)
    for count in (1, 2, 3):
        if count != workers:
            runs[f"decoder processes: {workers}", str(count)] = partial(run_with_workers, count)
    run_in_process(run_predict, task, folder / "out")  # fill the file cache of the system
    seconds: dict[tuple[str, str], list[float]] = {choice: [] for choice in runs}
    for turn in range(turns):
        for choice in alternate(runs, turn):
            seconds[choice].append(run_in_process(runs[choice], task, folder / "out").seconds)
    ours = seconds.pop((PREDICT, ""))
    for (chosen, alternative), theirs in seconds.items():
        print_row("whole run", chosen, alternative, theirs, ours)


def run_patched(patch: Callable[[], object], task: Task, out: Path) -> Measurement:
    """Run predict after ``patch`` has changed something for the rest of this process."""
    patch()
    return run_predict(task, out)


def run_with_workers(workers: int, task: Task, out: Path) -> Measurement:
    return run_predict(replace(task, options=replace(task.options, workers=workers)), out)


def return_freed_memory() -> None:
    mock.patch.object(memory, "keep_freed_memory", lambda keep: None).start()


@contextlib.contextmanager
def without_simplejpeg() -> Iterator[None]:
    def decode(*arguments: object) -> None:
        """Leave the file to Pillow."""

    with (
        mock.patch.object(photo_decoder, "decode_jpeg", decode),
        mock.patch.object(image_file, "decode_jpeg", decode),
    ):
        yield


def decode_with_pillow() -> None:
    without_simplejpeg().__enter__()


def use_all_threads() -> None:
    mock.patch.object(runner, "single_thread_on_small_cpus", lambda device: contextlib.nullcontext()).start()


def set_writers(count: int) -> None:
    mock.patch.object(writer_threads, "WRITER_THREADS", count).start()


def measure_steps(task: Task, turns: int, with_compile: bool) -> None:
    """Time single steps of a run in this process."""
    model = load_model(task.model)
    predictor, _ = make_predictor(model, task.options)
    if not isinstance(predictor, Predictor):
        raise UsageError("steps are measured with a single model, such as --model segunet-s")
    dtype, network_input = predictor.limits.dtype, predictor.runner.input
    refs = task.photos[:PHOTOS_IN_MEMORY]
    photos = [Photo(ref, read_image(ref.path)) for ref in refs]
    as_they_are = all(predictor.runner.network_size(photo) == photo.upright_shape for photo in photos)
    if not as_they_are or len({photo.pixels.shape for photo in photos}) > 1:
        raise UsageError("use photos of one size, which the model takes as they are")
    masks = [result.mask for result in predictor.predict(photos) if not isinstance(result, Failure)]
    canvases = [
        predictor.runner.load(photo, predictor.runner.plan(photo, predictor.limits.tiling))
        for photo in photos
    ]
    if len(masks) < len(photos) or any(canvas.plan.tile_count > 1 for canvas in canvases):
        raise UsageError("there is not enough memory for whole photos")
    keep_freed_memory(True)  # as predict does for photos of one size

    def decode_with_pillow() -> None:
        with without_simplejpeg():
            decode_all(refs)

    compare("decoding", "simplejpeg", partial(decode_all, refs), {"Pillow": decode_with_pillow}, turns)
    compare(
        "PNG",
        "packed rows, zlib level 1",
        lambda: [encode_mask(mask) for mask in masks],
        {
            "Pillow, 1 bit": partial(save_with_pillow, masks, 1),
            "Pillow, 1 bit, level 1": partial(save_with_pillow, masks, 1, compress_level=1),
            "Pillow, 8 bits": partial(save_with_pillow, masks, 8),
        },
        turns,
    )
    windows = [window for canvas in canvases for window in canvas.windows()]
    inputs = [network_input.normalise([window], 1, dtype) for window in windows]
    compare(
        "normalising",
        "flattened rows in bands",
        lambda: [network_input.normalise([window], 1, dtype) for window in windows],
        {"usual formula": lambda: [normalise_plainly(photo, model, dtype) for photo in photos]},
        turns,
    )
    features = torch.randn(1, 16, 640, 959).to(dtype).contiguous(memory_format=torch.channels_last)
    compare(
        "pooling",
        "maximum of pairs",
        torch.inference_mode()(lambda: halve(features)),
        {"max_pool2d": lambda: functional.max_pool2d(features, kernel_size=2, ceil_mode=True)},
        turns,
    )
    cells = torch.randn(1, 4, 640, 959).to(dtype).contiguous(memory_format=torch.channels_last)
    compare(
        "rearranging the logits",
        "one copy",
        lambda: spread_channels(cells, 2),
        {"pixel_shuffle": lambda: functional.pixel_shuffle(cells, 2)},
        turns,
    )
    networks = make_networks(model, dtype, inputs[0], with_compile)
    ours = networks.pop(PREDICT)
    runs = {name: partial(run_all, network, inputs) for name, network in networks.items()}
    compare("forward pass", "predict's network", partial(run_all, ours, inputs), runs, turns)
    print()
    for name, network in networks.items():
        print(f"{name}: {count_differences(network, ours, inputs)} pixels of {len(inputs)} masks differ")


def make_networks(model: Model, dtype: torch.dtype, image: Tensor, with_compile: bool) -> dict[str, Network]:
    """Return functions from a channels_last image to logits; print how long some of them take to start."""
    ours = prepare_network(model.network, CPU, dtype)
    as_trained = convert(copy.deepcopy(model.network), dtype)
    folded = fold_batch_norm(model.network).to(dtype)
    folded_channels_last = convert(fold_batch_norm(model.network), dtype)
    upsampled_first = prepare_network(model.network, CPU, dtype)
    for module in upsampled_first.modules():
        if isinstance(module, FusedConvolution):
            module.enlarging = None
    not_fused = fold_batch_norm(model.network)
    if isinstance(not_fused, AnySizeNetwork):
        not_fused.simplify()
    exact = prepare_network(model.network, CPU, torch.float32)
    networks: dict[str, Network] = {
        PREDICT: ours,
        "coarse maps upsampled first": upsampled_first,
        "also without fused ReLU and concatenation": convert(not_fused, dtype),
        "also without merged stem": folded_channels_last,
        "also without folded batch norm": as_trained,
        "folded batch norm, contiguous": lambda images: call(folded, images.contiguous()),
        "fp32": lambda images: call(exact, images.float()),
        "no_grad instead of inference_mode": partial(run_without_gradients, ours),
    }
    if with_compile:
        start = time.perf_counter()
        networks["torch.compile"] = torch.compile(folded_channels_last)
        run_all(networks["torch.compile"], [image])
        print(f"| start | | torch.compile | {time.perf_counter() - start:.1f} s |", flush=True)
    if importlib.util.find_spec("openvino") is not None:
        start = time.perf_counter()
        networks["OpenVINO"] = make_openvino(model, dtype, image)
        run_all(networks["OpenVINO"], [image])
        print(f"| start | | OpenVINO | {time.perf_counter() - start:.1f} s |", flush=True)
    return networks


def convert(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the network to the dtype and to channels_last."""
    return network.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def call(network: Network, images: Tensor) -> Tensor:
    return network(images)


def make_openvino(model: Model, dtype: torch.dtype, image: Tensor) -> Network:
    import openvino

    exact = fold_batch_norm(model.network)
    graph = openvino.convert_model(exact, example_input=image.float(), input=[list(image.shape)])
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()

    def run(images: Tensor) -> Tensor:
        array = images.float().contiguous().numpy()  # OpenVINO takes no bf16 from NumPy: part of its time
        return torch.from_numpy(request.infer([array], share_inputs=True, share_outputs=True)[0])

    return run


def run_without_gradients(network: Network, images: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return network(images)


@torch.inference_mode()
def run_all(network: Network, inputs: Sequence[Tensor]) -> None:
    for images in inputs:
        network(images)


@torch.inference_mode()
def count_differences(network: Network, other: Network, inputs: Sequence[Tensor]) -> int:
    return sum(int(((network(images) > 0) != (other(images) > 0)).sum()) for images in inputs)


def decode_all(refs: Sequence[ImageRef]) -> None:
    for ref in refs:
        read_image(ref.path)


def save_with_pillow(masks: Sequence[PackedMask], bits: int, **options: int) -> None:
    for mask in masks:
        array = mask.to_bool()
        image = Image.fromarray(array) if bits == 1 else Image.fromarray(array.astype(np.uint8) * 255)
        image.save(io.BytesIO(), "PNG", **options)


def normalise_plainly(photo: Photo, model: Model, dtype: torch.dtype) -> Tensor:
    mean, deviation = torch.tensor(model.mean), torch.tensor(model.deviation)
    pixels = torch.from_numpy(photo.pixels).float().div(255).sub(mean).div(deviation)
    return pixels.to(dtype).permute(2, 0, 1)[None]


def compare(step: str, choice: str, ours: Step, alternatives: Mapping[str, Step], turns: int) -> None:
    """Print a row for each alternative; an additional first turn warms up and does not count."""
    runs = {choice: ours, **alternatives}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name in alternate(runs, turn):
            start = time.perf_counter()
            runs[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    for name in alternatives:
        print_row(step, choice, name, seconds[name], seconds[choice])


def print_row(step: str, choice: str, alternative: str, theirs: list[float], ours: list[float]) -> None:
    print(f"| {step} | {choice} | {alternative} | {summarise_ratios(theirs, ours)} |", flush=True)


if __name__ == "__main__":
    main()
