#!/usr/bin/env python
"""Measure whether two processes of one thread mask faster than one process of two threads.

    scripts/bench_processes.py [PHOTOS] --count 120 --turns 5

Runs whole commands by turns: one process with the default number of threads, one with a single thread, one
for each shard with a single thread at the same time, and two actors of Ray, if it is installed. The rates are
those of the whole commands, with Python, torch and weights; "loop" is from the first photo to the last mask.
Memory is the largest sum of the unique set sizes of all processes, sampled every half second. Masks must be
the same in each way; those that are not are counted. OMP_NUM_THREADS is set by the script alone.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from bench import ChildMemory
from measuring import (
    alternate,
    copy_photos,
    count_cores,
    describe_machine,
    make_parser,
    summarise,
    summarise_ratios,
)

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.options import PRECISION_NAMES


@dataclass(frozen=True)
class Way:
    """Commands that run at the same time: the options of each, and its threads, None for the default."""

    commands: tuple[tuple[str, ...], ...]
    threads: int | None = None


FIRST = "one process"

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def find_ways() -> dict[str, Way]:
    processes = count_cores()
    shards = tuple(("--shard", f"{number}/{processes}") for number in range(1, processes + 1))
    ways = {
        FIRST: Way(((),)),
        "one process of one thread": Way(((),), 1),
        f"{processes} shards of one thread": Way(shards, 1),
    }
    if importlib.util.find_spec("ray") is not None:
        ways[f"{processes} actors of Ray"] = Way((("--engine", "ray", "--actors", str(processes)),), 1)
    return ways


@dataclass(frozen=True)
class Measurement:
    """Seconds of the commands and of the longest of their loops, bytes of memory, a digest of each mask."""

    command: float
    loop: float
    memory: int
    masks: dict[str, str]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="segunet-s", help="as in predict  [default: segunet-s]")
    parser.add_argument("--precision", choices=PRECISION_NAMES, default="bf16", help="[default: bf16]")
    arguments = parser.parse_args()
    print(f"{describe_machine()}\n")
    options = ["--model", arguments.model, "--precision", arguments.precision]
    with tempfile.TemporaryDirectory() as name:
        folder, ways = Path(name), find_ways()
        measured: dict[str, list[Measurement]] = {way: [] for way in ways}
        try:
            copy_photos(arguments.photos, folder, arguments.count)
            for turn in range(arguments.turns):
                for way in alternate(ways, turn):
                    measured[way].append(measure(folder, ways[way], options))
        except CarvanaBatchError as error:
            parser.error(str(error))
    return print_table(measured, arguments.count)


def measure(folder: Path, way: Way, options: list[str]) -> Measurement:
    out = folder / "out"
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    if way.threads is not None:
        environment["OMP_NUM_THREADS"] = str(way.threads)
    command = [sys.executable, "-m", "carvana_batch", "predict", str(folder / "in"), str(out), "--json"]
    start = time.perf_counter()
    with ChildMemory() as memory:
        processes = [
            subprocess.Popen(
                [*command, "--quiet", *options, *more],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for more in way.commands
        ]
        reports = [json.loads(process.communicate()[0]) for process in processes]
        seconds = time.perf_counter() - start
    if any(report["exit_code"] for report in reports):
        raise CarvanaBatchError(f"exit codes {[report['exit_code'] for report in reports]}")
    masks = {path.name: sha256(path.read_bytes()).hexdigest() for path in out.glob("*.png")}
    shutil.rmtree(out)
    return Measurement(seconds, max(report["seconds"] for report in reports), memory.peak, masks)


def print_table(measured: dict[str, list[Measurement]], count: int) -> int:
    """Print a row for each way; the exit code is 1 if masks differ."""
    first, differ = measured[FIRST], 0
    print("| way | photos/s | loop, photos/s | rate / first's | loop's / first's | peak MB | other masks |")
    print("|---|---|---|---|---|---|---|")
    for way, each in measured.items():
        cells = [way]
        for times in ([one.command for one in each], [one.loop for one in each]):
            cells.append(summarise([count / seconds for seconds in times]))
        cells.append(summarise_ratios([one.command for one in first], [one.command for one in each]))
        cells.append(summarise_ratios([one.loop for one in first], [one.loop for one in each]))
        cells.append(f"{max(one.memory for one in each) / 1e6:.0f}")
        other = sum(len(one.masks.items() ^ first[0].masks.items()) for one in each)
        differ += other
        print(f"| {' | '.join(cells)} | {other} |")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
