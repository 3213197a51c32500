"""Number formats of the network: which one is chosen, and whether it is precise enough."""

from __future__ import annotations

import time

import torch
from torch import nn

from carvana_batch.network.cpu_fusion import prepare_network

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def choose_precision(network: nn.Module, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for ``--precision auto`` and one line that says why.

    On a CPU bfloat16 is up to three times as fast as float32 where the hardware has it and far slower
    where it has not, so both are timed on a small input, in turns, and the better times are compared.
    """
    if device.type != "cpu":
        return torch.float16, f"fp16 on {device.type}"
    images = torch.zeros((1, 3, 384, 384)).to(memory_format=torch.channels_last)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    inputs = {dtype: images.to(dtype) for dtype in best}
    networks = {dtype: prepare_network(network, device, dtype) for dtype in best}
    with torch.inference_mode():
        for _ in range(4):
            for dtype in best:
                start = time.perf_counter()
                networks[dtype](inputs[dtype])
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    ratio = best[torch.float32] / best[torch.bfloat16]
    chosen = torch.bfloat16 if ratio > 1 else torch.float32
    name = "bf16" if chosen is torch.bfloat16 else "fp32"
    return (
        chosen,
        f"{name} (measured: {ratio:.1f}x the speed of fp32)"
        if ratio > 1
        else f"{name} (bf16 is slower here)",
    )
