"""Writes a network with its weights as ONNX, or as a program of torch.export."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from carvana_batch.errors import ModelError, UsageError
from carvana_batch.files import atomic_writer
from carvana_batch.network import AUTO_WEIGHTS
from carvana_batch.network.cpu_fusion import fold_batch_norm
from carvana_batch.network.exported.header import INPUT_NAME, OUTPUT_NAME, ExportHeader, Normalisation
from carvana_batch.network.exported.onnx_graph import load_onnx, need_packages, with_checksum
from carvana_batch.network.exported.program import HEADER_FILE, load_exported_program
from carvana_batch.network.model import Model
from carvana_batch.text import cut_short, shown

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

SUFFIXES = (".onnx", ".pt2")

MOST_DIFFERENCE = 1e-3
"""Largest difference in probability at any pixel between torch and the file; rounding gives about 1e-5."""


class _Exported(nn.Module):
    """What is exported: pixels or normalised values in, probabilities out."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, header: ExportHeader) -> None:
        super().__init__()
        self.network, self.normalises = network, header.normalisation == "inside"
        self.register_buffer("mean", torch.tensor(header.mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(header.deviation)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self.normalises:
            images = (images / 255 - self.mean) / self.deviation
        return torch.sigmoid(self.network(images))


def write_model(model: Model, path: Path, pixels: Tensor, normalisation: Normalisation = "inside") -> float:
    """Write a model to ``path``, complete or not at all, after the file was run on a photo.

    The suffix says which format: ``.onnx`` or ``.pt2``. Input ``images``: (N, 3, height, width) float32 of
    any N, height and width; output ``probability``: (N, 1, height, width) in [0, 1]. Batch norms are folded
    into convolutions.

    Args:
        model: one network, no pair.
        path: where to write.
        pixels: (H, W, 3) uint8, a photo as the network sees it.
        normalisation: ``inside``: the input has values of 0 to 255. ``outside``: it is normalised by the mean
            and deviation in the metadata.

    Returns:
        The largest difference in probability between the network in torch and the file, on the photo.

    Raises:
        UsageError: another suffix, or a pair of models.
        ModelError: a package is missing, or the file gives something else than the network.
        CarvanaBatchError: it cannot be written.
    """
    check_request(model, path)
    network = model.network
    header = ExportHeader(
        network=model.name,
        normalisation=normalisation,
        mean=model.mean,
        deviation=model.deviation,
        stride=network.stride,
        unit=network.unit,
        digest=model.digest,
        size=model.size,
        scale=model.scale,
        context=network.context,
    )
    images = pixels.permute(2, 0, 1)[None].float()
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (model.mean, model.deviation))
    normalised = (images / 255 - mean) / deviation
    with torch.inference_mode():
        expected = torch.sigmoid(network(normalised))
    program = _trace(model, header)
    content = _as_onnx(program, header) if path.suffix.lower() == ".onnx" else _as_pt2(program, header)
    with atomic_writer(path) as file:
        file.write(content)
        file.flush()
        written = Path(file.name)
        load = load_onnx if path.suffix.lower() == ".onnx" else load_exported_program
        read = load(written).network
        with torch.inference_mode():
            result = read(images if normalisation == "inside" else normalised)
        difference = float((result - expected).abs().max())
        if not difference <= MOST_DIFFERENCE:
            raise ModelError(
                f"{shown(path)}: not written, because its probabilities differ from those of the network by"
                f" up to {difference:.2g} (more than {MOST_DIFFERENCE:g}); try the other format, or other"
                " versions of torch and onnxruntime"
            )
    return difference


def check_request(model: Model, path: Path) -> None:
    """Refuse, before any work, what cannot be exported; see :func:`write_model`."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"Cannot export to {shown(path)}: its name has to end in {' or '.join(SUFFIXES)}.")
    if model.second is not None:
        raise UsageError(
            f"{model.name} is a pair of networks, and a file holds one; export {' or '.join(AUTO_WEIGHTS)}."
        )
    if model.network.only_float32:
        raise UsageError(f"{model.name} has been exported already; export the weights that it was made of.")
    if model.network.fixed_size is not None:
        raise UsageError(f"{model.name} takes images of one size only, and exports are for any size.")
    if path.suffix.lower() == ".onnx":
        need_packages("exporting to ONNX", "onnx", "onnxscript", "onnxruntime")


def _trace(model: Model, header: ExportHeader) -> ExportedProgram:
    """The program of a model for images of any number and size."""
    copied: Any = model.network
    if copied.is_foreign:
        copied = copy.deepcopy(copied)
    else:
        copied = fold_batch_norm(copied)
        copied.simplify()
    exported = _Exported(copied, header).requires_grad_(False).eval()
    # Two images of sides that are no multiples of anything, so that no size is taken for a constant.
    example = torch.zeros((2, 3, 2 * header.stride + 1, 3 * header.stride + 1))
    dynamic = torch.export.Dim.DYNAMIC
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                exported, (example,), dynamic_shapes={INPUT_NAME: {0: dynamic, 2: dynamic, 3: dynamic}}
            )
        except Exception as error:  # code of others, and exporters, raise anything
            raise ModelError(
                f"{model.name}: torch.export cannot follow its code for images of any size"
                f" ({type(error).__name__}: {shown(cut_short(str(error).strip(), 300))})"
            ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _as_pt2(program: ExportedProgram, header: ExportHeader) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={HEADER_FILE: json.dumps(header.to_strings())})
    return buffer.getvalue()


def _as_onnx(program: ExportedProgram, header: ExportHeader) -> bytes:
    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT_NAME], output_names=[OUTPUT_NAME], verbose=False
        )
    if converted is None:
        raise ModelError("torch.onnx.export has given no model; use torch 2.6 or later")
    proto: ModelProto = converted.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        for index, name in ((0, "batch"), (2, "height"), (3, "width")):
            dimensions[index].dim_param = name
    del proto.graph.value_info[:]  # they have the names of torch for the same dimensions
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        del node.metadata_props[:]  # stack traces with paths of this machine
        node.doc_string = ""
    for key, value in header.to_strings().items():
        proto.metadata_props.add(key=key, value=value)
    return with_checksum(proto.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A with block without the notes of exporters, which concern their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
