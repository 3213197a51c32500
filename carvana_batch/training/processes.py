"""The processes of one run: one, or as many as torchrun started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

from carvana_batch.errors import UsageError

PATIENCE = timedelta(hours=4)
"""How long the other processes wait for the first one, which checks the photos and validates alone."""

TORCHRUN_VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """``rank`` of this process among ``count``, ``local_count`` of them on this machine.

    The first one, rank 0, writes and tells.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, value: Value) -> Value:
        """What the first process holds."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """What each process holds, by rank."""
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value)
        return values

    def without_averaging(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[object]:
        """Around a pass that is not the last one of its step: gradients are only added up."""
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network so that its gradients are averaged over the processes."""
        if self.count == 1:
            return network
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the other processes, where torchrun has started this one; also the device of this process.

    Raises:
        UsageError: more processes on this machine than it has GPUs.
    """
    if not all(name in os.environ for name in TORCHRUN_VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        yield Processes(), device
        return
    count, local_count, rank, local_rank = (int(os.environ[name]) for name in TORCHRUN_VARIABLES)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started {local_rank + 1} processes or more on a machine with"
                f" {torch.cuda.device_count()} GPUs; start one for each."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, count, local_count), device
        distributed.barrier()  # none leaves, and closes its connections, while another is still at work
    finally:
        distributed.destroy_process_group()
