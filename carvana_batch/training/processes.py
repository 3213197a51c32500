"""The processes of a run: a single one, or those that torchrun started."""

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

TIMEOUT = timedelta(hours=4)
"""How long processes wait for each other. Only the first one checks the photos and validates."""

TORCHRUN_VARIABLES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as seen by this one.

    Attributes:
        rank: number of this process, from 0. The process of rank 0, the first, writes files and messages.
        count: number of all processes.
        local_count: number of those on this machine.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, value: Value) -> Value:
        """Return the value of the first process in every process."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value)
        return values

    def without_averaging(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[object]:
        """Return a context for all but the last pass of a step: gradients are summed but not exchanged."""
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the network so that its gradients are averaged over the processes."""
        if self.count == 1:
            return network
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the other processes if torchrun started this one.

    Args:
        device: the requested device.

    Yields:
        The processes, and the device of this one.

    Raises:
        UsageError: there are more processes on this machine than GPUs.
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
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(rank, count, local_count), device
        distributed.barrier()  # leaving would close connections that another one needs
    finally:
        distributed.destroy_process_group()
