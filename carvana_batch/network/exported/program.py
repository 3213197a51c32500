"""Networks of ``.pt2`` files, as ``torch.export.save`` writes them."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from carvana_batch.errors import ModelError
from carvana_batch.network.exported.header import read_header
from carvana_batch.network.exported.network import ExportedNetwork, InputShape, Output, read_exported_file
from carvana_batch.network.exported.program_archive import checked_archive
from carvana_batch.text import shown

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

HEADER_FILE = "carvana-batch.json"
"""Our metadata among the extra files of the archive."""

PROBABILITIES = {"sigmoid", "sigmoid_", "softmax", "_softmax", "hardsigmoid"}
"""Operators of torch whose results are in [0, 1]."""

UNBOUNDED = {"conv2d", "convolution", "conv_transpose2d", "linear", "addmm", "batch_norm"}
"""Operators that give no probabilities, so that the network ends with logits."""

SAME_VALUES = {"_to_copy", "clone", "contiguous", "permute", "reshape", "slice", "squeeze", "to", "unsqueeze"}
SAME_VALUES |= {"alias", "detach", "transpose", "view"}
"""Operators that may follow without changing what the values are."""


def load_exported_program(path: Path) -> ExportedNetwork:
    """Load a program of ``torch.export``; nothing is unpickled, and it may only call operators of torch.

    It has one float input (N, 3, h, w) or (N, h, w, 3), whose N, h and w may be fixed, and one output of that
    size, with 1 or 2 channels.

    Raises:
        ModelError: the file is damaged, of another version of torch, or holds anything else.
    """
    content, digest = read_exported_file(path)
    try:
        archive = checked_archive(content)
    except ModelError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    extra_files = {HEADER_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes for developers
            program = torch.export.load(io.BytesIO(archive), extra_files=extra_files)
    except Exception as error:  # what is damaged, or of another version, raises anything
        raise ModelError(
            f"{shown(path)}: damaged, or saved by another version of torch ({type(error).__name__}); export"
            " it again"
        ) from error
    header = _header(path, extra_files[HEADER_FILE])
    try:
        network = ProgramNetwork(program, checks_size=header is None)
    except ModelError as error:
        raise ModelError(f"{shown(path)}: {error}") from error
    output = _kind_of_output(program) if header is None else "probability"
    return ExportedNetwork(network, digest, header, network.shape.size, output)


def _header(path: Path, text: str) -> Any:
    try:
        entries = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{shown(path)}: its metadata are damaged; export it again") from error
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise ModelError(f"{shown(path)}: its metadata are damaged; export it again")
    return read_header(path, entries)


def _kind_of_output(program: ExportedProgram) -> Output | None:
    """What the last operator makes of its values."""
    node: Any = program.graph.output_node().args[0]
    while isinstance(node, Sequence) and len(node) == 1:
        node = node[0]
    while getattr(node, "op", None) == "call_function":
        name = getattr(node.target, "_opname", "")
        if name in PROBABILITIES:
            return "probability"
        if name in UNBOUNDED:
            return "logits"
        if name not in SAME_VALUES:
            return None
        node = node.args[0]
    return None


class ProgramNetwork(nn.Module):
    """Runs a program of ``torch.export`` in the dtype that it was exported with.

    A copy of it shares the program.

    Args:
        program: of one input and one output.
        checks_size: whether it refuses sizes of images that it was not exported for. Not needed if it is
            known to be right for all, because these checks also concern what is only laid out otherwise.

    Attributes:
        shape: of its input.

    Raises:
        ModelError: its inputs or outputs are of another kind.
    """

    def __init__(self, program: ExportedProgram, checks_size: bool) -> None:
        super().__init__()
        self._program, self._checks_size = program, checks_size
        self._moved: tuple[torch.device, Any] | None = None
        signature = program.graph_signature
        for kind, names in (("input", signature.user_inputs), ("output", signature.user_outputs)):
            if len(names) != 1:
                listed = shown(", ".join(map(str, names)))
                raise ModelError(f"it has {len(names)} {kind}s ({listed}); export it with one {kind}")
        name = str(signature.user_inputs[0])
        value = _value_of(next(node for node in program.graph.nodes if node.name == name))
        if not value.is_floating_point():
            raise ModelError(
                f"its input {shown(name)} is {value.dtype}, not a tensor of floats; export it with float32"
                " input, without the part that converts and normalises pixels"
            )
        self._dtype = value.dtype
        self.shape = InputShape.of(name, value.shape)

    def __deepcopy__(self, _memo: dict[int, Any]) -> ProgramNetwork:
        return self  # nothing of it changes

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, C, h, w) float32 of (N, 3, h, w) images."""
        module = self._module_on(images.device)
        return self.shape.run(images, lambda part: self._run(module, part))

    def _run(self, module: Any, images: Tensor) -> Tensor:
        try:
            (output,) = tree_leaves(module(images.to(self._dtype).contiguous()))
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("Expected input"):
                raise  # memory may have run out
            shape, reason = tuple(images.shape), shown(str(error).partition("\n")[0][:200])
            raise ModelError(f"the network was not exported for {shape}: {reason}") from error
        if not isinstance(output, Tensor):
            raise ModelError(f"the network returns a {type(output).__name__}, not a tensor")
        return output

    def _module_on(self, device: torch.device) -> Any:
        """The program on a device; it is no submodule, because it can neither be converted nor evaluated."""
        if self._moved is None or self._moved[0] != device:
            program = self._program
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            self._moved = device, program.module(check_guards=self._checks_size)
        return self._moved[1]


def _value_of(node: Node) -> Tensor:
    """The tensor, without content, that stands for the input in the graph."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise ModelError(f"its input {shown(node.name)} is not a tensor; export it with images as input")
    return value
