#!/usr/bin/env python
"""Measure what --engine ray costs, and how many rows a second its coordinator takes.

    scripts/bench_ray.py [PHOTOS] --count 120 --turns 5

Masks photos by turns in four ways, one thread for each network: with one process, with one Ray worker, with
two shards at the same time, and with two Ray workers. "command" is the whole command, with Python, torch,
weights and, for Ray, a cluster that it starts; "loop" is the time from the first photo to the last mask. Then
made-up workers return rows without masking anything, in this process and through Ray; the run adds them to
its journal.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from measuring import Seconds, alternate, copy_photos, describe_machine, make_parser, print_times

from carvana_batch import __version__
from carvana_batch.engines.contract import Account, Hello, Job, Result
from carvana_batch.engines.crew import Crew, Ended, Event, Greeted, Loaded, Returned, Task
from carvana_batch.engines.dispatch import Dispatcher
from carvana_batch.engines.ray import Place, RayCrew
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import Choice, Options
from carvana_batch.output.announced import WorkerOut
from carvana_batch.output.journal import Entry
from carvana_batch.output.writer import Written
from carvana_batch.run import run
from carvana_batch.stopping import StopFlag
from carvana_batch.values import ImageRef

MODEL = "segunet-s"

CHOICE = Choice("cpu", "fp32", 1, 1000)

RAY = ("--engine", "ray", "--actors")

WAYS: dict[str, list[tuple[str, ...]]] = {
    "one process": [()],
    "one Ray worker": [(*RAY, "1")],
    "two shards": [("--shard", "1/2"), ("--shard", "2/2")],
    "two Ray workers": [(*RAY, "2")],
}
"""For each way, the options of its commands, which run at the same time."""


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which of them  [default: all]"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="made-up rows  [default: 100000]")
    arguments = parser.parse_args()
    print(f"{describe_machine()}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            copy_photos(arguments.photos, folder, arguments.count)
            measure_ways(folder, arguments.count, arguments.turns, arguments.ways)
            measure_rows(folder, arguments.rows)
        except CarvanaBatchError as error:
            parser.error(str(error))
    return 0


def measure_ways(folder: Path, count: int, turns: int, ways: Sequence[str]) -> None:
    seconds: dict[str, list[Seconds]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in alternate(ways, turn):
            seconds[way].append(measure(folder, way))
    pairs = (("one Ray worker", "one process"), ("two Ray workers", "two shards"))
    print_times(seconds, count, [pair for pair in pairs if seconds.keys() >= set(pair)])


def measure(folder: Path, way: str) -> Seconds:
    """The time of the commands of one way, and of the longest of their loops."""
    out = folder / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "carvana_batch", "predict", str(folder / "in"), str(out), "--json"]
    command += ["--model", MODEL, "--quiet"]
    start = time.perf_counter()
    processes = [
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
        for options in WAYS[way]
    ]
    reports = [json.loads(process.communicate()[0]) for process in processes]
    seconds = time.perf_counter() - start
    if any(report["exit_code"] for report in reports):
        raise CarvanaBatchError(f"{way}: exit codes {[report['exit_code'] for report in reports]}")
    shutil.rmtree(out)
    return Seconds(seconds, max(report["seconds"] for report in reports))


def measure_rows(folder: Path, rows: int) -> None:
    """Rows a second of a run whose workers return made-up rows."""
    photo = next(iter(find_images(folder / "in").refs)).path_text
    refs = PhotoList(ImageRef(f"{number:08}", photo) for number in range(rows))
    crews: dict[str, Callable[[], Crew]] = {
        "in this process": PretendedCrew,
        "through Ray, two workers": lambda: RayCrew(MODEL, actors=2, make=make_pretender),
    }
    for number, (where, make) in enumerate(crews.items()):
        out = folder / f"rows{number}"
        report = run(refs, out, load_model(MODEL), Options(), engine=Dispatcher(make()))
        size = (out / ".carvana-batch" / "journal-1-of-1.jsonl").stat().st_size
        print(
            f"made-up rows {where}: {rows / report.seconds:,.0f} rows/s, {1e6 * report.seconds / rows:.0f} µs"
            f" and {size / rows:.0f} bytes of journal a row, peak memory {report.peak_memory / 1e6:.0f} MB"
        )


def pretend(key: str, path: str) -> Written:
    """A row such as that of a mask."""
    entry = Entry(
        key,
        path,
        source_bytes=234_567,
        source_time=1_700_000_000_000_000_000,
        width=1918,
        height=1280,
        car_share=0.2123456789012345,
        expected_dice=0.9976543210987654,
        mask_bytes=5432,
        mask_checksum=1_234_567_890,
    )
    return Written(entry, None, 0.01)


def make_pretender(job: Job, weights: str, out: WorkerOut, stop: StopFlag, place: Place) -> "PretendedWorker":
    del weights, out, stop, place
    return PretendedWorker(job)


class PretendedWorker:
    """Returns made-up rows as quickly as it can."""

    def __init__(self, job: Job) -> None:
        self.digest = job.digest

    def begin(self, chosen: Choice | None) -> Hello:
        return Hello(chosen or CHOICE, self.digest, {"carvana-batch": __version__}, "none", "here")

    def run(self, photos: Sequence[ImageRef]) -> Generator[Result]:
        for ref in photos:
            yield pretend(ref.key, ref.path_text)

    def account(self) -> Account:
        return Account(dict.fromkeys(("decode", "predict", "write"), 0.0), 0.0, 0.0, 0, (), CHOICE)


class PretendedCrew:
    """A worker that answers at once, without another process."""

    name = "pretended"

    def open(self, job: Job, chosen: Choice | None) -> None:
        del chosen
        self._worker = PretendedWorker(job)
        self._events: deque[Event] = deque()

    def wanted(self) -> int:
        return 1

    def describe_wanted(self) -> str:
        return ""

    def start(self) -> str:
        self._events.append(Loaded("worker"))
        return "worker"

    def begin(self, worker: str, chosen: Choice | None) -> None:
        self._events.append(Greeted(worker, self._worker.begin(chosen)))

    def give(self, worker: str, call: int, tasks: Sequence[Task]) -> None:
        results = [pretend(task.key, task.path) for task in tasks]
        self._events += [Returned(worker, call, results, self._worker.account()), Ended(worker, call)]

    def events(self, seconds: float) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def stop(self) -> None:
        """Nothing: it never works for long."""

    def close(self) -> None:
        """Nothing: it has no processes."""


if __name__ == "__main__":
    sys.exit(main())
