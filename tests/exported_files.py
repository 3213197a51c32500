"""ONNX graphs and programs of torch.export whose results are known by hand."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

WEIGHTS, BIAS = (1.0, 2.0, -0.5), 0.25
"""Of a 1x1 convolution of red, green and blue."""


def known_logits(images: np.ndarray) -> np.ndarray:
    """(N, 1, h, w) of (N, 3, h, w), without any convolution."""
    red, green, blue = (images[:, index : index + 1].astype(np.float64) for index in range(3))
    return WEIGHTS[0] * red + WEIGHTS[1] * green + WEIGHTS[2] * blue + BIAS


def known_probabilities(images: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-known_logits(images)))


def some_images(count: int = 2, height: int = 9, width: int = 14) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, height, width)).astype(np.float32)


def write_graph(
    path: Path,
    operators: Sequence[tuple[Any, ...]] = (("Conv",),),
    shape: Sequence[Any] = ("n", 3, "h", "w"),
    *,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] | None = None,
    dtype: str = "FLOAT",
    output_shape: Sequence[Any] | None = None,
    external: bool = False,
) -> Path:
    """A graph of operators one after the other: their names, and attributes; ``Conv`` is the known one."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    helper = onnx.helper
    kind = getattr(onnx.TensorProto, dtype)
    weight = np.array(WEIGHTS, np.float32).reshape(1, 3, 1, 1)
    constants: dict[str, np.ndarray] = {
        "weight": weight,
        "bias": np.array([BIAS], np.float32),
        "both": np.concatenate((0 * weight, weight)),
        "biases": np.array([0, BIAS], np.float32),
        "two": np.array(2, np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "axis": np.array([1], np.int64),
        "half": np.array([1, 1, 0.5, 0.5], np.float32),
        "empty": np.array([], np.float32),
    }
    further = {
        "Conv": ["weight", "bias"],
        "Conv2": ["both", "biases"],
        "Add": ["two"],
        "Clip": ["zero", "one"],
        "Squeeze": ["axis"],
        "Resize": ["empty", "half"],
    }
    nodes, last = [], inputs[0]
    for index, (name, *attributes) in enumerate(operators):
        result = f"v{index}"
        operator = name.removesuffix("2")
        keys = {} if not attributes else attributes[0]
        nodes.append(helper.make_node(operator, [last, *further.get(name, [])], [result], **keys))
        last = result
    used = {name for node in nodes for name in node.input}
    floats = (
        np.float32
        if dtype not in ("FLOAT16", "DOUBLE")
        else {"FLOAT16": np.float16, "DOUBLE": np.float64}[dtype]
    )
    tensors = [
        onnx.numpy_helper.from_array(value.astype(floats) if value.dtype == np.float32 else value, name)
        for name, value in constants.items()
        if name in used
    ]
    graph = helper.make_graph(
        nodes,
        "known",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info(name, kind, output_shape) for name in outputs or [last]],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if external:
        onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        onnx.save_model(model, path)
    return path


class Known(nn.Module):
    """The same in torch.

    Args:
        after: what is done with the logits.
        channels_last: whether input and output are (N, h, w, C).
    """

    def __init__(self, after: Callable[[Tensor], Any] = lambda logits: logits, channels_last=False) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        self.layer.weight.data = torch.tensor(WEIGHTS).reshape(1, 3, 1, 1)
        self.layer.bias.data = torch.tensor([BIAS])
        self.after, self.channels_last = after, channels_last

    def forward(self, images: Tensor) -> Any:
        if self.channels_last:
            return self.after(self.layer(images.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.after(self.layer(images))


def save_program(
    path: Path, module: nn.Module, *example: Tensor, dynamic: dict[int, Any] | None = None
) -> Path:
    """Export a module, by default for one image of any size."""
    if not example:
        example = (torch.zeros(1, 3, 24, 36),)
    if dynamic is None:
        dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = tuple(dynamic or None for _ in example)
    torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=shapes), path)
    return path


def change_archive(
    path: Path,
    change: Callable[[str, bytes], bytes | None] = lambda _, content: content,
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Change the members of an archive; None leaves one out. Names are those below its folder."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(members)).partition("/")[0]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            changed = change(name.partition("/")[2], content)
            if changed is not None:
                archive.writestr(name, changed)
        for name, content in (extra or {}).items():
            archive.writestr(f"{folder}/{name}", content)
    path.write_bytes(buffer.getvalue())
    return path


def change_program(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the JSON of a program in place."""

    def edit(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    return change_archive(path, edit)
