"""What one tile costs a network in memory and arithmetic, found without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from carvana_batch.models.blocks import AnySizeNetwork


@dataclass(frozen=True)
class Footprint:
    """``activation_bytes``: the most that tensors hold at one time, input included, weights not.
    ``multiply_adds``: multiply-add operations of the convolutions."""

    activation_bytes: int
    multiply_adds: int


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that are alive after each operation."""

    def __init__(self, *kept: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        for tensor in kept:
            self._note(tensor)

    def _note(self, tensor: Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._live[reference.cdata] = (reference, tensor.untyped_storage().nbytes())

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def measure_footprint(network: AnySizeNetwork, height: int, width: int, dtype: torch.dtype) -> Footprint:
    """The footprint of one (1, 3, height, width) input, by running the network on shapes alone."""
    shapes = copy.deepcopy(network).to(device="meta", dtype=dtype).eval()
    images = torch.empty((1, 3, height, width), device="meta", dtype=dtype)
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        shapes(images)
    with torch.no_grad(), _LiveBytes(images) as live:
        shapes(images)
    return Footprint(live.peak, flops.get_total_flops() // 2)
