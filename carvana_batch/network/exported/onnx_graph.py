"""Networks of ONNX files, run by ONNX Runtime; the extra ``onnx`` installs what they need."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from carvana_batch.errors import ModelError
from carvana_batch.network.exported.header import read_header
from carvana_batch.network.exported.network import ExportedNetwork, InputShape, Output, read_exported_file
from carvana_batch.text import shown

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from onnxruntime import InferenceSession, RunOptions

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Dtypes of the input, as ONNX Runtime names them."""

SILENT = 4
"""Level of the log of ONNX Runtime, which otherwise prints errors that are raised as well."""

OUT_OF_MEMORY_TEXTS = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
"""Parts of the messages of ONNX Runtime when memory runs out."""

CHECKSUM_BYTES = 78
"""Of the entry that :func:`with_checksum` appends."""

PROBABILITIES = {"Sigmoid", "Softmax", "HardSigmoid"}
"""Operators whose results are in [0, 1]."""

UNBOUNDED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}
"""Operators that give no probabilities, so that the network ends with logits."""

SAME_VALUES = {
    "Cast",
    "DequantizeLinear",
    "Identity",
    "QuantizeLinear",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators that may follow without changing what the values are."""


def need_packages(purpose: str, *packages: str) -> None:
    """Import what the extra ``onnx`` installs.

    Raises:
        ModelError: one of the packages is missing.
    """
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"{purpose} needs the package {error.name}: pip install 'carvana-batch[onnx]'"
        ) from error


def load_onnx(path: Path) -> ExportedNetwork:
    """Load an ONNX file whose weights lie in the file itself; no code in it is executed.

    The network has one float input (N, 3, h, w) or (N, h, w, 3), whose N, h and w may be fixed, and one
    output of that size, with 1 or 2 channels.

    Raises:
        ModelError: a package is missing; or the file is damaged, or holds a network of another kind.
    """
    need_packages(f"{shown(path)}: an ONNX network", "onnx", "onnxruntime")
    import onnx
    from google.protobuf.message import DecodeError

    content, digest = read_exported_file(path)
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{shown(path)}: damaged, or not an ONNX file; export it again") from error
    entries = {str(entry.key): str(entry.value) for entry in proto.metadata_props}
    if "checksum" in entries and with_checksum(content[:-CHECKSUM_BYTES]) != content:
        raise ModelError(
            f"{shown(path)}: its content does not match the checksum in its metadata; it is damaged. If"
            " another program has changed it on purpose, remove the entry checksum of its metadata"
        )
    _refuse_external_weights(path, proto)
    try:
        network = OnnxNetwork(content)
        output = _kind_of_output(proto.graph)
    except ModelError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    except (TypeError, ValueError) as error:  # names that are not UTF-8, among others
        raise ModelError(f"{shown(path)}: damaged ({type(error).__name__}); export it again") from error
    header = read_header(path, entries)
    return ExportedNetwork(network, digest, header, network.shape.size, "probability" if header else output)


def with_checksum(content: bytes) -> bytes:
    """An ONNX file with a last entry ``checksum`` of its metadata: the SHA-256 of what is before."""
    from onnx import ModelProto

    entry = ModelProto()
    entry.metadata_props.add(key="checksum", value=hashlib.sha256(content).hexdigest())
    return content + bytes(entry.SerializeToString())  # to append a message is to merge it


def _refuse_external_weights(path: Path, proto: ModelProto) -> None:
    from onnx import TensorProto

    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(
                f"{shown(path)}: its weights lie in another file; save them inside, with onnx.save_model(...,"
                " save_as_external_data=False)"
            )


def _kind_of_output(graph: GraphProto) -> Output | None:
    """What the last operator of a graph makes of its values."""
    makers = {name: node for node in graph.node for name in node.output}
    name = graph.output[0].name if graph.output else ""
    for _ in range(len(graph.node)):
        node = makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in PROBABILITIES:
            return "probability"
        if node.op_type in UNBOUNDED:
            return "logits"
        if node.op_type not in SAME_VALUES:
            return None
        name = node.input[0]
    return None


class OnnxNetwork(nn.Module):
    """Runs an ONNX network on the CPU, or on a CUDA device if ONNX Runtime can do that.

    A copy of it shares the session. Sessions are opened when they are needed: those of another process, or
    with another number of threads than torch has now, cannot be used.

    Args:
        content: of the file.

    Attributes:
        shape: of its input.

    Raises:
        ModelError: ONNX Runtime cannot load it, or its input or output is of another kind.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content
        self._opened: tuple[tuple[Any, ...], InferenceSession] | None = None
        self._shape_before: tuple[int, ...] | None = None
        session = self._session(torch.device("cpu"))
        inputs, outputs = session.get_inputs(), session.get_outputs()
        for kind, values in (("input", inputs), ("output", outputs)):
            if len(values) != 1:
                names = ", ".join(value.name for value in values)
                raise ModelError(f"it has {len(values)} {kind}s ({shown(names)}); export it with one {kind}")
        self.name, dtype, shape = inputs[0].name, inputs[0].type, inputs[0].shape
        if dtype not in DTYPES:
            raise ModelError(
                f"its input {shown(self.name)} is a {dtype}, not a tensor of floats; export it with float32"
                " input, without the part that converts and normalises pixels"
            )
        self._dtype = DTYPES[dtype]
        self.shape = InputShape.of(self.name, shape)

    def __deepcopy__(self, _memo: dict[int, Any]) -> OnnxNetwork:
        return self  # nothing of it changes

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, C, h, w) float32 of (N, 3, h, w) images."""
        session = self._session(images.device)
        return self.shape.run(images, lambda part: self._run(session, part))

    def _run(self, session: InferenceSession, images: Tensor) -> Tensor:
        values = np.ascontiguousarray(images.float().cpu().numpy(), self._dtype)
        try:
            results = session.run(None, {self.name: values}, self._run_options(values.shape))
            return torch.from_numpy(np.asarray(results[0]))
        except Exception as error:  # the errors of ONNX Runtime have no other common class
            line = _first_line(error)
            if any(text in str(error) for text in OUT_OF_MEMORY_TEXTS):
                raise MemoryError(line) from None
            raise ModelError(f"ONNX Runtime cannot run the network on {values.shape}: {line}") from error

    def _run_options(self, shape: tuple[int, ...]) -> RunOptions:
        """Memory is kept for the next run, which saves half of the time, as long as inputs have one shape;
        otherwise it would only grow."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        if shape != self._shape_before:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._shape_before = shape
        return options

    def _session(self, device: torch.device) -> InferenceSession:
        """The session of this process, for the device and the threads that torch has now."""
        key = (os.getpid(), device.type, torch.get_num_threads())
        if self._opened is None or self._opened[0] != key:
            self._opened = None
            self._opened = key, _open(self._content, device)
        return self._opened[1]


def _open(content: bytes, device: torch.device) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_mem_pattern = False  # which takes twice the memory, and is not faster here
    wanted = {"cuda": ["CUDAExecutionProvider"], "cpu": ["OpenVINOExecutionProvider"]}.get(device.type, [])
    there = onnxruntime.get_available_providers()
    providers = [name for name in (*wanted, "CPUExecutionProvider") if name in there]
    try:  # without fallback, which prints what is raised as well
        return onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # the errors of ONNX Runtime have no other common class
        raise ModelError(f"ONNX Runtime cannot load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return shown(str(error).partition("\n")[0][:300])
