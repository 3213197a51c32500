#!/usr/bin/env python
"""What each choice on the way of a photo is worth: the time with another one over that of predict.

    scripts/bench_choices.py [PHOTOS]

Parts of the way are timed in this process, on photos that are in memory; whole runs of predict each in a
process of its own. All that are compared take turns, in the opposite order every other turn. A ratio is the
median of those of the turns, with the least and the most of them in brackets; above 1 the other choice is
slower. It says something about a machine only if nothing else runs there: the load is printed first.

It is made for a CPU, and for Linux, where processes that decode are forked and so see what is changed here.
simplejpeg has to be installed; OpenVINO is tried where it is: pip install openvino.
torch.compile needs a C++ compiler; its cache lies in a new folder, so its start is that of the first time.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench import Task, in_own_process, print_machine, run_predict, spread
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch import run as pipeline
from carvana_batch.decode import photo as images
from carvana_batch.decode.photo import read_image
from carvana_batch.demo import write_photos
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.inference import devices, predictor
from carvana_batch.inference.planning import default_workers, make_predictor
from carvana_batch.inputs.find import find_images
from carvana_batch.main_memory import keep_freed_memory
from carvana_batch.masks.png import encode_mask
from carvana_batch.network.blocks import halve, spread_channels
from carvana_batch.network.checkpoints import Model, load_model
from carvana_batch.network.cpu_fusion import FusedConvolution, fold_batch_norm, prepare_network
from carvana_batch.options import Options
from carvana_batch.values import PackedMask, Photo

CPU = torch.device("cpu")
PHOTOS_IN_MEMORY = 4
PREDICT = "predict"

Run = Callable[[], object]
Network = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--limit", type=int, default=60, help="photos of a whole run  [default: 60]")
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind  [default: 5]")
    parser.add_argument("--model", default="segunet-s", help="as of predict  [default: segunet-s]")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="[default: bf16]")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        try:
            print_machine()
            photos = arguments.photos or folder / "drawn" / "images"
            if arguments.photos is None:
                write_photos(folder / "drawn")
            refs = find_images(photos, follow_links=True).refs[: arguments.limit]
            task = Task(refs, arguments.model, Options("cpu", arguments.precision, overwrite=True))
            print(f"{len(refs)} photos, {arguments.turns} turns, {task.model} in {arguments.precision}\n")
            print("| part | instead of | | its time / predict's |\n|---|---|---|---|", flush=True)
            measure_runs(task, folder, arguments.turns)
            measure_parts(task, arguments.turns, compiled=not arguments.no_compile)
        except CarvanaBatchError as error:
            parser.error(str(error))


def measure_runs(task: Task, folder: Path, turns: int) -> None:
    """Whole runs, each in a process of its own."""
    writers, workers = pipeline.WRITER_THREADS, default_workers(CPU, len(task.photos))
    others: dict[tuple[str, str], Callable[..., object]] = {
        ("memory kept when freed", "given back"): partial(run_changed, give_memory_back),
        ("simplejpeg", "Pillow"): partial(run_changed, decode_with_pillow),
        ("one of two threads beside the network", "both"): partial(run_changed, use_both_threads),
    }
    for count in (1, 2, 4):
        if count != writers:
            change = partial(set_writers, count)
            others[f"writer threads: {writers}", str(count)] = partial(run_changed, change)
    for count in (1, 2, 3):
        if count != workers:
            others[f"processes that decode: {workers}", str(count)] = partial(run_with_workers, count)
    in_own_process(run_predict, task, folder / "out")  # from now on the system has the files in its cache
    seconds: dict[object, list[float]] = {PREDICT: [], **{choice: [] for choice in others}}
    for turn in range(turns):
        for choice in reversed(seconds) if turn % 2 else seconds:
            run = run_predict if choice == PREDICT else others[choice]
            seconds[choice].append(in_own_process(run, task, folder / "out").seconds)
    for mine, other in others:
        print_row("whole run", mine, other, seconds[mine, other], seconds[PREDICT])


def run_changed(change: Callable[[], None], task: Task, out: Path) -> object:
    change()
    return run_predict(task, out)


def run_with_workers(workers: int, task: Task, out: Path) -> object:
    return run_predict(replace(task, options=replace(task.options, workers=workers)), out)


def give_memory_back() -> None:
    devices.keep_freed_memory = lambda keep: None


def decode_with_pillow() -> None:
    if images.simplejpeg is None:
        raise UsageError("simplejpeg is not installed")
    images.simplejpeg = None


def use_both_threads() -> None:
    predictor.one_of_few_threads = lambda device: contextlib.nullcontext()


def set_writers(count: int) -> None:
    pipeline.WRITER_THREADS = count


def measure_parts(task: Task, turns: int, compiled: bool) -> None:
    model = load_model(task.model)
    ours, _ = make_predictor(model, task.options, {})
    refs = task.photos[:PHOTOS_IN_MEMORY]
    photos = [Photo(ref, read_image(ref.path)) for ref in refs]
    if model.size is not None or len({photo.pixels.shape for photo in photos}) > 1:
        raise UsageError(
            "the parts are compared on photos of one size, with a model that takes them as they are"
        )
    masks = [result.mask for result in ours.predict(photos)]
    keep_freed_memory(True)  # as predict does for photos of one size
    compare(
        "decoding",
        "simplejpeg",
        partial(decode_all, refs),
        {"Pillow": lambda: without_simplejpeg(partial(decode_all, refs))},
        turns,
    )
    compare(
        "PNG",
        "packed rows, zlib level 1",
        lambda: [encode_mask(mask) for mask in masks],
        {
            "Pillow, 1 bit": lambda: [save_with_pillow(mask, 1) for mask in masks],
            "Pillow, 1 bit, level 1": lambda: [save_with_pillow(mask, 1, compress_level=1) for mask in masks],
            "Pillow, 8 bits": lambda: [save_with_pillow(mask, 8) for mask in masks],
        },
        turns,
    )
    canvases = [ours._admit(photo, None) for photo in photos]
    if any(canvas.plan.tile_count > 1 for canvas in canvases):
        raise UsageError("there is not enough memory for whole photos")
    whole = [[(canvas, 0, 0)] for canvas in canvases]
    inputs = [ours._normalise(jobs, 1, ours.dtype) for jobs in whole]
    compare(
        "normalising",
        "flat rows in bands",
        lambda: [ours._normalise(jobs, 1, ours.dtype) for jobs in whole],
        {"the usual formula": lambda: [normalise_plainly(photo, model, ours.dtype) for photo in photos]},
        turns,
    )
    features = torch.randn(1, 16, 640, 959).to(ours.dtype).contiguous(memory_format=torch.channels_last)
    compare(
        "pooling",
        "the larger of pairs",
        torch.inference_mode()(lambda: halve(features)),
        {"max_pool2d": lambda: functional.max_pool2d(features, kernel_size=2, ceil_mode=True)},
        turns,
    )
    cells = torch.randn(1, 4, 640, 959).to(ours.dtype).contiguous(memory_format=torch.channels_last)
    compare(
        "spreading the logits",
        "one copy",
        lambda: spread_channels(cells, 2),
        {"pixel_shuffle": lambda: functional.pixel_shuffle(cells, 2)},
        turns,
    )
    networks = make_networks(model, ours.dtype, inputs[0], compiled)
    network = networks.pop(PREDICT)
    runs = {name: partial(run_all, other, inputs) for name, other in networks.items()}
    compare("forward", "predict's network", partial(run_all, network, inputs), runs, turns)
    print()
    for name, other in networks.items():
        print(f"{name}: {count_differences(other, network, inputs)} pixels of {len(inputs)} masks differ")


def make_networks(model: Model, dtype: torch.dtype, image: Tensor, compiled: bool) -> dict[str, Network]:
    """Functions from a channels_last image to logits; prints how long some take to start."""
    ours = prepare_network(model.network, CPU, dtype)
    as_trained = copy.deepcopy(model.network).to(dtype).to(memory_format=torch.channels_last)
    folded = fold_batch_norm(model.network).to(dtype).to(memory_format=torch.channels_last)
    enlarged = prepare_network(model.network, CPU, dtype)
    for module in enlarged.modules():
        if isinstance(module, FusedConvolution):
            module.enlarging = None
    not_fused = fold_batch_norm(model.network)
    not_fused.simplify()
    not_fused = not_fused.to(dtype).to(memory_format=torch.channels_last)
    exact = prepare_network(model.network, CPU, torch.float32)
    rows = fold_batch_norm(model.network).to(dtype)
    networks: dict[str, Network] = {
        PREDICT: ours,
        "coarse maps enlarged first": enlarged,
        "nor ReLU and joining fused": not_fused,
        "nor stem and first convolution": folded,
        "nor batch norm folded": as_trained,
        "batch norm folded, contiguous": lambda one: rows(one.contiguous()),
        "fp32": lambda one: exact(one.float()),
        "no_grad, not inference_mode": partial(run_without_gradients, ours),
    }
    if compiled:
        start = time.perf_counter()
        networks["torch.compile"] = torch.compile(folded)
        run_all(networks["torch.compile"], [image])
        print(f"| start | of torch.compile | {time.perf_counter() - start:.1f} s | |", flush=True)
    if importlib.util.find_spec("openvino") is not None:
        start = time.perf_counter()
        networks["OpenVINO"] = make_openvino(model, dtype, image)
        run_all(networks["OpenVINO"], [image])
        print(f"| start | of OpenVINO | {time.perf_counter() - start:.1f} s | |", flush=True)
    return networks


def make_openvino(model: Model, dtype: torch.dtype, image: Tensor) -> Network:
    import openvino

    exact = fold_batch_norm(model.network)
    graph = openvino.convert_model(exact, example_input=image.float(), input=[list(image.shape)])
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()

    def run(one: Tensor) -> Tensor:
        array = one.float().contiguous().numpy()  # OpenVINO takes no bf16 from NumPy: part of its time
        return torch.from_numpy(request.infer([array], share_inputs=True, share_outputs=True)[0])

    return run


def run_without_gradients(network: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return network(image)


@torch.inference_mode()
def run_all(network: Network, inputs: list[Tensor]) -> None:
    for image in inputs:
        network(image)


@torch.inference_mode()
def count_differences(network: Network, other: Network, inputs: list[Tensor]) -> int:
    return sum(int(((network(one) > 0) != (other(one) > 0)).sum()) for one in inputs)


def decode_all(refs: list) -> None:
    for ref in refs:
        read_image(ref.path)


def without_simplejpeg(run: Run) -> None:
    module, images.simplejpeg = images.simplejpeg, None
    try:
        run()
    finally:
        images.simplejpeg = module


def save_with_pillow(mask: PackedMask, bits: int, **options: int) -> None:
    array = mask.to_bool()
    picture = Image.fromarray(array) if bits == 1 else Image.fromarray(array.astype(np.uint8) * 255)
    picture.save(io.BytesIO(), "PNG", **options)


def normalise_plainly(photo: Photo, model: Model, dtype: torch.dtype) -> Tensor:
    mean, deviation = torch.tensor(model.mean), torch.tensor(model.deviation)
    pixels = torch.from_numpy(photo.pixels).float().div(255).sub(mean).div(deviation)
    return pixels.to(dtype).permute(2, 0, 1)[None]


def compare(part: str, mine: str, run: Run, others: dict[str, Run], turns: int) -> None:
    """Print a row for each other run; one turn before the first does not count."""
    runs = {mine: run, **others}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name in reversed(runs) if turn % 2 else runs:
            start = time.perf_counter()
            runs[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    for name in others:
        print_row(part, mine, name, seconds[name], seconds[mine])


def print_row(part: str, mine: str, other: str, its: list[float], ours: list[float]) -> None:
    print(f"| {part} | {mine} | {other} | {spread(its, ours)} |", flush=True)


if __name__ == "__main__":
    main()
