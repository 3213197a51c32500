"""What the benchmarks share: the description of the machine, alternating runs, and ratios."""

import argparse
import os
import platform
import shutil
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

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


class Seconds(NamedTuple):
    """What a run took: the whole command, and from the first photo to the last mask."""

    command: float
    loop: float


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark that runs ``predict`` in several ways by turns; see :func:`copy_photos`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--count", type=int, default=120, help="photos of each run  [default: 120]")
    parser.add_argument("--turns", type=int, default=5, help="runs of each way  [default: 5]")
    return parser


def print_times(
    seconds: Mapping[str, Sequence[Seconds]], count: int, pairs: Sequence[tuple[str, str]]
) -> None:
    """Print a table of ways, and for some pairs of them the ratio of their rates in each turn.

    Args:
        seconds: of the runs of each way, in the order of the turns.
        count: photos of each run.
        pairs: a way, and the one that it is compared with.
    """
    print("| way | command, s | photos/s | loop, s | photos/s |\n|---|---|---|---|---|")
    for way, each in seconds.items():
        cells = [way]
        for times in ([one.command for one in each], [one.loop for one in each]):
            cells += [summarise(times), summarise([count / time for time in times])]
        print(f"| {' | '.join(cells)} |")
    print()
    for way, other in pairs:
        for part in ("command", "loop"):
            times, others = ([getattr(one, part) for one in seconds[each]] for each in (way, other))
            print(f"rate of {way} over that of {other}, {part}: {summarise_ratios(others, times)}")


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
