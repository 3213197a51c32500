#!/usr/bin/env python
"""Would another runtime, or 8-bit integers, mask photos faster than torch does, and as well?

    scripts/bench_runtimes.py data/val --calibrate data/train/images

The network alone is timed, on whole photos that are normalised before, in all runtimes alternately: torch
as predict prepares it for this CPU, ONNX Runtime and OpenVINO (extra `bench`). The 8-bit network is made by
ONNX Runtime, statically, with ranges from photos that it is not measured on. Dice is the mean over --photos
photos, with the mask where the probability exceeds 0.5. Keep 8 bits if they are 1.3 times as fast as torch,
and their Dice is at most 0.0002 less.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import alternate, describe_machine, summarise, summarise_ratios
from numpy.typing import NDArray

from carvana_batch.decode.photo import read_image
from carvana_batch.inference.precision import choose_precision, precision_name
from carvana_batch.inputs.find import find_images
from carvana_batch.masks.counts import count
from carvana_batch.masks.read import read_mask
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.cpu_fusion import prepare_network
from carvana_batch.network.exported.header import INPUT_NAME
from carvana_batch.network.exported.onnx_graph import load_onnx
from carvana_batch.network.exported.writing import write_model
from carvana_batch.network.model import Model
from carvana_batch.values import PackedMask

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Probabilities (1, 1, H, W) of normalised images (1, 3, H, W)."""

CPU = torch.device("cpu")

NEEDED_SPEED, MOST_LOSS = 1.3, 0.0002
"""The rule by which 8 bits are kept."""


def make_torch(model: Model, dtype: torch.dtype) -> Run:
    network = prepare_network(model.network, CPU, dtype)

    @torch.inference_mode()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        given = torch.from_numpy(images).to(dtype, memory_format=torch.channels_last)
        result: NDArray[np.float32] = torch.sigmoid(network(given).float()).numpy()
        return result

    return run


def make_onnxruntime_of_product(path: Path) -> Run:
    """As predict runs ONNX files."""
    network = load_onnx(path).network

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
        return result

    return run


def make_onnxruntime(path: Path) -> Run:
    """With its own defaults, which keep memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(None, {INPUT_NAME: images})[0]
        return result

    return run


def make_openvino(path: Path, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        str(path),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = np.array(compiled(images)[0])
        return result

    return run


def quantise(
    source: Path, target: Path, images: Sequence[NDArray[np.float32]], method: str, keep: int
) -> None:
    """Write a network of 8-bit integers.

    Args:
        source: of float32.
        target: where to write.
        images: normalised, from which the ranges of activations are found.
        method: how: ``minmax``, ``percentile`` or ``entropy``.
        keep: number of convolutions at the beginning, and at the end, that stay as they are.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.waiting = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.waiting, None)
            return None if image is None else {INPUT_NAME: image}

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    nodes = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Concat", "MaxPool", "Resize"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=[*nodes[:keep], *nodes[len(nodes) - keep :]],
        calibrate_method={
            "minmax": quantization.CalibrationMethod.MinMax,
            "percentile": quantization.CalibrationMethod.Percentile,
            "entropy": quantization.CalibrationMethod.Entropy,
        }[method],
    )


def read_normalised(model: Model, folder: Path, number: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Key and normalised (1, 3, H, W) of photos that are spread evenly over a folder."""
    refs = find_images(folder).refs
    for ref in refs[:: max(1, len(refs) // number)][:number]:
        pixels = read_image(ref.path).astype(np.float32)
        values = (pixels / 255 - np.array(model.mean)) / np.array(model.deviation)
        yield ref.key, np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


def make_runs(model: Model, folder: Path, options: argparse.Namespace) -> dict[str, Run]:
    dtype, why = choose_precision(model.network, CPU)
    chosen = precision_name(dtype)
    print(f"torch: {why}")
    runs = {f"torch {chosen}": make_torch(model, dtype)}
    if dtype != torch.float32:
        runs["torch fp32"] = make_torch(model, torch.float32)
    path = folder / "network.onnx"
    photo = torch.randint(0, 256, (320, 480, 3), dtype=torch.uint8)
    write_model(model, path, photo, "outside")
    runs["onnxruntime fp32, as predict"] = make_onnxruntime_of_product(path)
    runs["onnxruntime fp32, its defaults"] = make_onnxruntime(path)
    runs["openvino fp32"] = make_openvino(path, "f32")
    if chosen == "bf16":
        runs["openvino bf16"] = make_openvino(path, "bf16")
    if options.calibrate is not None:
        images = [image for _, image in read_normalised(model, options.calibrate, options.calibration_photos)]
        for keep in (0, 1):
            quantised = folder / f"int8-{keep}.onnx"
            quantise(path, quantised, images, options.method, keep)
            name = "int8" if keep == 0 else "int8, first and last convolution fp32"
            runs[f"onnxruntime {name}"] = make_onnxruntime(quantised)
            runs[f"openvino {name}"] = make_openvino(quantised, "f32")
    return runs


def measure_dice(runs: dict[str, Run], model: Model, options: argparse.Namespace) -> dict[str, float]:
    """The mean Dice of each runtime."""
    masks = {path.name.partition("_mask")[0]: path for path in (options.data / "masks").iterdir()}
    dice: dict[str, list[float]] = {name: [] for name in runs}
    for key, image in read_normalised(model, options.data / "images", options.photos):
        true = read_mask(masks[key])
        for name, run in runs.items():
            dice[name].append(count(PackedMask.from_bool(run(image)[0, 0] > 0.5), true).dice)
    return {name: statistics.fmean(values) for name, values in dice.items()}


def measure_seconds(
    runs: dict[str, Run], model: Model, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each runtime for a photo, in each turn."""
    ((_, image),) = read_normalised(model, options.data / "images", 1)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, options.turns):  # the first one warms up
        for name in alternate(runs, turn):
            start = time.perf_counter()
            runs[name](image)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with images/ and masks/, for speed and Dice")
    parser.add_argument("--calibrate", type=Path, help="folder of photos for the 8-bit network; none without")
    parser.add_argument("--calibration-photos", type=int, default=24, help="how many of them (24)")
    parser.add_argument("--method", choices=["minmax", "percentile", "entropy"], default="minmax")
    parser.add_argument("--model", default="segunet-s")
    parser.add_argument("--photos", type=int, default=60, help="photos for Dice (60)")
    parser.add_argument("--turns", type=int, default=10, help="turns of timing (10)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    model: Any = load_model(options.model)
    print(describe_machine(f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"))
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(model, Path(folder), options)
        seconds = measure_seconds(runs, model, options)
        dice = measure_dice(runs, model, options)
    first = next(iter(runs))
    print(f"\n{'runtime':<54}{'seconds a photo':<22}{'times as fast':<22}{'Dice':>8}{'difference':>12}")
    for name in runs:
        difference = dice[name] - dice[first]
        ratios = summarise_ratios(seconds[first], seconds[name])
        print(f"{name:<54}{summarise(seconds[name]):<22}{ratios:<22}{dice[name]:>8.5f}{difference:>+12.5f}")
    for name in runs:
        speed = statistics.median(
            one / other for one, other in zip(seconds[first], seconds[name], strict=True)
        )
        if "int8" in name:
            kept = speed >= NEEDED_SPEED and dice[first] - dice[name] <= MOST_LOSS
            print(f"{name}: {'worth keeping' if kept else 'not worth it'}, by the rule above")


if __name__ == "__main__":
    main()
