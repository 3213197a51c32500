"""The number format of the network: which one is chosen, and whether it is precise enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from carvana_batch.inference.canvas import Window
from carvana_batch.inference.memory import OutOfMemoryGuard, release_unused_memory
from carvana_batch.inference.runner import NetworkRunner
from carvana_batch.network.cpu_fusion import prepare_network

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

PRECISION_TOLERANCE = 0.02
"""Mean difference of probabilities from float32 above which half precision is given up."""

COMPARED_PIXELS = 2**18
"""Pixels in the middle of each tile of the first batch that are compared with float32."""


def precision_name(dtype: torch.dtype) -> str:
    """The name that ``--precision`` has for a dtype."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def choose_precision(network: nn.Module, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for ``--precision auto``, and one line that says why.

    On a CPU, bfloat16 is up to three times as fast as float32 where the hardware supports it and far slower
    where it does not, so both are timed alternately on a small input, and the best times are compared.
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
    if ratio > 1:
        return torch.bfloat16, f"bf16 (measured: {ratio:.1f}x the speed of fp32)"
    return torch.float32, "fp32 (bf16 is slower here)"


def check_precision(
    windows: Sequence[Window], runner: NetworkRunner, make_float32_runner: Callable[[], NetworkRunner]
) -> tuple[bool, str | None]:
    """Whether the number format of a runner is precise enough, and a warning for the user, if any.

    The probabilities of the middle rows of the windows are compared with those of float32; of fewer rows if
    memory is short. If float32 does not fit into memory at all, the format is accepted unchecked.
    """
    plan = windows[0].canvas.plan
    rows = min(-(-plan.tile_height // 2), max(1, COMPARED_PIXELS // plan.tile_width))
    difference = None
    while difference is None and rows > 0:
        with OutOfMemoryGuard():
            difference = _difference_from_float32(windows, rows, runner, make_float32_runner())
        if difference is None:
            release_unused_memory(runner.device)
        rows //= 2
    if difference is None:
        return True, f"{runner.dtype} was not checked: float32 does not fit into the memory"
    if difference <= PRECISION_TOLERANCE:
        return True, None
    return False, f"{runner.dtype} differs from float32 by {difference:.3f} on the first batch: using float32"


def _difference_from_float32(
    windows: Sequence[Window], rows: int, runner: NetworkRunner, float32_runner: NetworkRunner
) -> float:
    """Mean absolute difference of the probabilities in the middle ``rows`` of the windows.

    Windows are run one by one: half of one takes as much memory in float32 as all of it in half precision.
    """
    differences = []
    for window in windows:
        images = runner.input.normalise([window], 1, torch.float32)
        first = (images.shape[2] - rows) // 2
        images = images[:, :, first : first + rows].contiguous(memory_format=torch.channels_last)
        probability, _ = runner.probabilities(images.to(runner.dtype))
        differences.append((float32_runner.probabilities(images)[0] - probability).abs().mean())
    return torch.stack(differences).mean().item()
