"""Networks of exported files, and how images are given to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.errors import ModelError
from carvana_batch.network.exported.header import ExportHeader
from carvana_batch.text import shown

Output = Literal["logits", "probability"]

MAX_FILE_BYTES = 2**31 - 1
"""What a protobuf, and so an ONNX file with its weights, can have at most."""


@dataclass(frozen=True)
class ExportedNetwork:
    """A network that was read from an exported file.

    Attributes:
        network: (N, 3, h, w) images of any float dtype on any device to (N, C, h, w) float32 on that device,
            C being 1 or 2. It has no parameters to convert: it computes in the dtype of the file.
        digest: SHA-256 of the file.
        header: what this package wrote into it, None if another program has exported it.
        size: (height, width) that images must have, None if any.
        output: what the graph shows the output to be; None if that is not certain.
    """

    network: nn.Module
    digest: str
    header: ExportHeader | None = None
    size: tuple[int, int] | None = None
    output: Output | None = None


def read_exported_file(path: Path) -> tuple[bytes, str]:
    """The content of a file, and its SHA-256.

    Raises:
        ModelError: it is too large, or cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(f"{shown(path)}: has {size:,} bytes; networks of more than 2 GB are not loaded")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read {shown(path)}: {error.strerror or error}") from error
    return content, hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class InputShape:
    """The shape of the one input of a network.

    Attributes:
        channels_last: (N, h, w, 3) rather than (N, 3, h, w).
        batch: the N that it must have, None if any.
        size: (height, width) that it must have, None if any.
    """

    channels_last: bool = False
    batch: int | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, name: str, shape: Sequence[object]) -> InputShape:
        """The shape of an input; what is no int in ``shape`` can have any value.

        Raises:
            ModelError: it is none of images with three channels.
        """
        sides = [side if isinstance(side, int) else None for side in shape]
        text = f"its input {shown(name)} has the shape ({', '.join(str(side or '?') for side in sides)})"
        if len(sides) != 4 or 3 not in (sides[1], sides[3]):
            raise ModelError(f"{text}; needed is (?, 3, height, width) or (?, height, width, 3)")
        channels_last = sides[1] != 3
        height, width = sides[1:3] if channels_last else sides[2:]
        if height is None and width is None:
            return cls(channels_last, sides[0])
        if height is None or width is None:
            raise ModelError(f"{text}: one side is fixed and the other is not; fix both or none")
        return cls(channels_last, sides[0], (height, width))

    def run(self, images: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        """Call a network with images as it wants them.

        Args:
            images: (N, 3, h, w).
            call: takes a batch in the shape of the input; returns (N, C, h, w), (N, h, w, C) or (N, h, w).

        Returns:
            (N, C, h, w) float32 on the device of the images, C being 1 or 2.

        Raises:
            ModelError: the size of the images or of the output is another.
        """
        height, width = images.shape[2:]
        if self.size not in (None, (height, width)):
            needed = f"{self.size[1]}x{self.size[0]}" if self.size else ""
            raise ModelError(f"the network takes images of {needed} pixels only, not of {width}x{height}")
        batch = self.batch or len(images)
        maps = []
        for part in images.split(batch):
            whole = part
            if len(part) < batch:  # unused places of a batch of fixed size are filled up
                whole = functional.pad(part, (0, 0, 0, 0, 0, 0, 0, batch - len(part)))
            output = call(whole.permute(0, 2, 3, 1) if self.channels_last else whole)
            maps.append(_as_maps(output[: len(part)].float(), height, width))
        return torch.cat(maps).to(images.device)


def _as_maps(output: Tensor, height: int, width: int) -> Tensor:
    shape = tuple(output.shape)
    if shape[1:] == (height, width):
        return output[:, None]
    if len(shape) == 4 and shape[2:] == (height, width) and shape[1] in (1, 2):
        return output
    if len(shape) == 4 and shape[1:3] == (height, width) and shape[3] in (1, 2):
        return output.permute(0, 3, 1, 2)
    raise ModelError(
        f"the network returns the shape {shape} for images of {width}x{height}; needed is a map of their size"
        f" with 1 or 2 channels, such as (1, 1, {height}, {width})"
    )
