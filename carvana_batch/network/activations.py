"""Memory and arithmetic operations that a network needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from carvana_batch.network.blocks import AnySizeNetwork

MEASURED_SIDE = 64
"""Side in pixels of the tile with which a network is measured; memory is proportional to the pixels."""


class _LiveBytes(TorchFunctionMode):
    """Sums up the storages that are alive after each call of a torch function.

    A TorchDispatchMode would also see temporary memory within such functions, but it imports torch's
    compiler, which takes a second and 75 MB in every run.
    """

    def __init__(self, *kept: Tensor) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        for tensor in kept:
            self._note(tensor)

    def _note(self, tensor: Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._live[reference.cdata] = (reference, tensor.untyped_storage().nbytes())

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*arguments, **(options or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def measure_activations(network: AnySizeNetwork, height: int, width: int) -> int:
    """The largest number of values that tensors hold at any time for one (1, 3, height, width) input.

    The input counts, the weights do not. The network is run on a CPU to measure it.
    """
    copied = copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()
    images = torch.zeros((1, 3, height, width))
    with torch.no_grad(), _LiveBytes(images) as live:
        copied(images)
    return int(live.peak // images.element_size())


def activations_per_pixel(network: AnySizeNetwork) -> float:
    """The same per pixel, for a tile of any size; what a trial has found, if there was one."""
    if network.values_per_pixel is not None:
        return network.values_per_pixel
    side = MEASURED_SIDE + -MEASURED_SIDE % network.stride
    height, width = network.fixed_size or (side, side)
    return measure_activations(network, height, width) / (height * width)


def count_multiply_adds(network: AnySizeNetwork, height: int, width: int) -> int:
    """Multiply-add operations of the convolutions of one (1, 3, height, width) input; nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes = copy.deepcopy(network).to(device="meta").eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        shapes(torch.empty((1, 3, height, width), device="meta"))
    return int(flops.get_total_flops() // 2)
