"""Networks of TorchScript files, for as long as torch loads these: they are deprecated (torch 2.13).

A TorchScript file is a program that may call any operator of torch, also those that write files. So it is
only run if the user says so.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from carvana_batch.errors import ModelError
from carvana_batch.network.exported.network import ExportedNetwork, InputShape, read_exported_file
from carvana_batch.text import shown


def load_torchscript(path: Path, *, is_trusted: bool, size: tuple[int, int] | None) -> ExportedNetwork:
    """Load a TorchScript network of one float32 input (N, 3, h, w) and one output with 1 or 2 channels.

    Args:
        path: of the file.
        is_trusted: whether the user wants the program in it to be run.
        size: (height, width) that images must have, None if any; the file does not say so.

    Raises:
        ModelError: it is not trusted; or it is damaged, or this torch cannot load it.
    """
    if not is_trusted:
        raise ModelError(
            f"{shown(path)}: is a TorchScript program, which can do anything, also write files. If you trust"
            " where it is from, give --network torchscript; or export it with torch.export or to ONNX"
        )
    content, digest = read_exported_file(path)
    try:
        network = TorchScriptNetwork(content, size)
    except Exception as error:  # what is damaged raises anything
        raise ModelError(
            f"{shown(path)}: damaged, or not for this version of torch ({type(error).__name__}:"
            f" {shown(str(error).strip().partition(chr(10))[0][:200])}); save it again, with torch.export"
        ) from error
    return ExportedNetwork(network, digest, size=size)


class TorchScriptNetwork(nn.Module):
    """Runs a TorchScript program; a copy of it shares the program.

    Args:
        content: of the file.
        size: (height, width) that images must have, None if any.

    Raises:
        Exception: of any kind, if torch cannot load it.
    """

    def __init__(self, content: bytes, size: tuple[int, int] | None) -> None:
        super().__init__()
        self._content, self.shape = content, InputShape(size=size)
        self._loaded: tuple[torch.device, Any] | None = None
        self._module_on(torch.device("cpu"))

    def __deepcopy__(self, _memo: dict[int, Any]) -> TorchScriptNetwork:
        return self  # nothing of it changes

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, C, h, w) float32 of (N, 3, h, w) images."""
        module = self._module_on(images.device)
        return self.shape.run(images, lambda part: self._run(module, part))

    def _run(self, module: Any, images: Tensor) -> Tensor:
        outputs = tree_leaves(module(images.float().contiguous()))
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            kinds = ", ".join(type(output).__name__ for output in outputs)
            raise ModelError(f"the network returns {shown(kinds) or 'nothing'}; needed is one tensor")
        return outputs[0]

    def _module_on(self, device: torch.device) -> Any:
        """The program on a device; it is no submodule, because it is not to be converted or copied."""
        if self._loaded is None or self._loaded[0] != device:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is deprecated
                module = torch.jit.load(io.BytesIO(self._content), map_location=device)
            self._loaded = device, module.eval()
        return self._loaded[1]
