"""The device that runs the network."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import torch

from carvana_batch.errors import UsageError
from carvana_batch.text import counted

FEW_THREADS = 3
"""Up to this number of threads, a single one does the work beside the network; measured with two."""


def pick_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UsageError: an unknown name, or a device that this machine or this torch build lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {name}: this torch sees {count} CUDA devices; --device cpu always works")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: not available here; --device cpu always works")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps")
    return device


@contextlib.contextmanager
def single_thread_on_small_cpus(device: torch.device) -> Iterator[None]:
    """A with block in which torch uses one thread on a CPU where it otherwise uses two or three.

    It is for work beside the network, during which the next photo is decoded. There, a thread that waits for
    the core of the decoder delays the other threads, which busily wait for it on their own cores. On a CPU
    with many threads, one would be too few, and torch would start some of its threads anew each time.
    """
    count = torch.get_num_threads()
    use_one = device.type == "cpu" and 1 < count <= FEW_THREADS
    if use_one:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if use_one:
            torch.set_num_threads(count)


def describe_hardware(device: torch.device) -> str:
    """Name of the processor or GPU, and on a CPU the instruction set that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return platform.machine()
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # torch 2.6 has no such function
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def device_name(device: torch.device) -> str:
    """The name of the device for the user."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return counted(torch.get_num_threads(), "CPU thread") if device.type == "cpu" else platform.machine()
