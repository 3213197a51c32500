"""The number format of the network: which one is chosen, and whether it is precise enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from carvana_batch.inference.canvas import Window
from carvana_batch.inference.memory import OutOfMemoryGuard, is_out_of_memory, release_unused_memory
from carvana_batch.inference.runner import NetworkRunner
from carvana_batch.network.blocks import AnySizeNetwork
from carvana_batch.network.cpu_fusion import prepare_network
from carvana_batch.text import cut_short, shown

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

PRECISION_TOLERANCE = 0.02
"""Mean difference of probabilities from float32 above which half precision is given up."""

FAR_SLOWER = 1.5
"""Factor by which bfloat16 has to be slower than float32 not to be used on a CPU with instructions for it."""

TRIAL_PIXELS = 128
"""Pixels of the side of the image with which it is tried whether a network runs in a number format."""

STABLE_ROUNDS, MOST_ROUNDS = 3, 20
"""Rounds of timing without a clearly better time after which the times are compared, and most rounds."""

COMPARED_PIXELS = 2**18
"""Pixels in the middle of each tile of the first batch that are compared with float32."""


def precision_name(dtype: torch.dtype) -> str:
    """The name that ``--precision`` has for a dtype."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def choose_precision(network: nn.Module, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for ``--precision auto``, and one line that says why.

    The two formats give slightly different masks, so the choice must not depend on how busy the machine is: a
    CPU with instructions for bfloat16 uses it, unless it is measured to be far slower all the same.
    """
    if device.type == "cpu" and not has_bfloat16_instructions():
        return torch.float32, "fp32 (this CPU has no instructions for bf16)"
    half = torch.bfloat16 if device.type == "cpu" else torch.float16
    if isinstance(network, AnySizeNetwork) and (reason := why_not(network, device, half)):
        return torch.float32, f"fp32 ({reason})"
    if device.type != "cpu":
        return torch.float16, f"fp16 on {device.type}"
    if speed_of_bfloat16(network, device) < 1 / FAR_SLOWER:
        return torch.float32, f"fp32 (bf16 takes more than {FAR_SLOWER:g} times as long here)"
    return torch.bfloat16, "bf16 (this CPU has instructions for it)"


def why_not(network: AnySizeNetwork, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a network that is not ours cannot run in a number format; None if it can, or is ours."""
    if dtype == torch.float32 or not network.is_foreign:
        return None
    if network.only_float32:
        return "its network runs in no other"
    side = TRIAL_PIXELS + -TRIAL_PIXELS % network.stride
    images = torch.zeros((1, 3, *(network.fixed_size or (side, side))), dtype=dtype, device=device)
    try:
        with torch.inference_mode():
            prepare_network(network, device, dtype)(images)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"its network fails in another: {shown(cut_short(reason))}"
    return None


def has_bfloat16_instructions() -> bool:
    """Whether torch reports instructions for bfloat16 on this CPU: AVX512-BF16 or AMX."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def speed_of_bfloat16(network: nn.Module, device: torch.device) -> float:
    """How many times as fast as float32 a network is in bfloat16.

    Both are timed alternately on a small input. The best times are compared, once neither has become clearly
    better for some rounds.
    """
    fixed = network.fixed_size if isinstance(network, AnySizeNetwork) else None
    images = torch.zeros((1, 3, *(fixed or (256, 256)))).to(memory_format=torch.channels_last)
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    inputs = {dtype: images.to(dtype) for dtype in best}
    networks = {dtype: prepare_network(network, device, dtype) for dtype in best}
    stable_rounds = 0
    with torch.inference_mode():
        for _ in range(MOST_ROUNDS):
            stable_rounds += 1
            for dtype in best:
                start = time.perf_counter()
                networks[dtype](inputs[dtype])
                seconds = time.perf_counter() - start
                if seconds < 0.95 * best[dtype]:
                    stable_rounds = 0
                best[dtype] = min(best[dtype], seconds)
            if stable_rounds == STABLE_ROUNDS:
                break
    return best[torch.float32] / best[torch.bfloat16]


def check_precision(
    windows: Sequence[Window], runner: NetworkRunner, make_float32_runner: Callable[[], NetworkRunner]
) -> tuple[bool, str | None]:
    """Whether the number format of a runner is precise enough, and a warning for the user, if any.

    The probabilities of the middle rows of the windows are compared with those of float32; of fewer rows if
    memory is short. If float32 does not fit into memory at all, the format is accepted unchecked.
    """
    plan = windows[0].canvas.plan
    rows = min(-(-plan.tile_height // 2), max(1, COMPARED_PIXELS // plan.tile_width))
    if runner.model.network.fixed_size is not None:
        rows = plan.tile_height
    difference = None
    while difference is None and rows > 0:
        with OutOfMemoryGuard():
            difference = _difference_from_float32(windows, rows, runner, make_float32_runner())
        if difference is None:
            release_unused_memory(runner.device)
        rows = 0 if runner.model.network.fixed_size is not None else rows // 2
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
