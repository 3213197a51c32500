"""What the benchmarks share: the description of the machine, alternating runs, and ratios."""

import os
import platform
import shutil
from collections.abc import Collection, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import TypeVar

from carvana_batch.demo import write_photos
from carvana_batch.errors import UsageError
from carvana_batch.inputs.find import find_images

Item = TypeVar("Item")


def describe_machine(*details: str) -> str:
    """Describe date, machine and load in one line; ``details`` go before the load."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    cores = f"{count_cores()} cores"
    return ", ".join(
        [str(date.today()), platform.machine(), find_processor(), cores, *details, f"load before: {load}"]
    )


def find_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alternate(items: Collection[Item], turn: int) -> list[Item]:
    """Return the items, in reverse order in every other turn, so that drift of the machine evens out."""
    return list(items)[::-1] if turn % 2 else list(items)


def summarise(values: Sequence[float]) -> str:
    """Format the median, with the minimum and the maximum in brackets."""
    return f"{median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def summarise_ratios(values: Sequence[float], others: Sequence[float]) -> str:
    """Format the ratios of the values of each turn like :func:`summarise`."""
    return summarise([value / other for value, other in zip(values, others, strict=True)])


def copy_photos(photos: Path | None, folder: Path, count: int) -> None:
    """Copy photos to folder/in until there are so many; some more than once if there are not enough.

    Args:
        photos: a folder; for None, some are drawn.
        folder: an empty folder.
        count: number of copies.

    Raises:
        UsageError: there are none.
    """
    if photos is None:
        write_photos(folder / "drawn")
        photos = folder / "drawn" / "images"
    refs = find_images(photos).refs
    if not refs:
        raise UsageError(f"no photos in {photos}")
    (folder / "in").mkdir()
    for number in range(count):
        source = refs[number % len(refs)].path
        shutil.copy(source, folder / "in" / f"{number:06}{source.suffix}")
