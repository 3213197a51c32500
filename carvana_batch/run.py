"""The run: load, predict, write, commit to the journal, tell."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.decode.workers import memory_shared_with_workers
from carvana_batch.errors import ImageError
from carvana_batch.files import check_target
from carvana_batch.inference.planning import default_workers, describe_choice, make_predictor
from carvana_batch.inputs.find import take_shard
from carvana_batch.inputs.keys import mask_id
from carvana_batch.inputs.masks import TRUTH_ADVICE, find_masks
from carvana_batch.main_memory import peak_memory
from carvana_batch.masks.read import read_mask
from carvana_batch.network.checkpoints import Model
from carvana_batch.options import Options
from carvana_batch.output.checks import check_request
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.report import RunReport, rank_correlation, write_table
from carvana_batch.output.rle_spool import RunLengthSpool
from carvana_batch.output.writer import Sinks, Written, compare
from carvana_batch.parallel import map_in_order
from carvana_batch.stopping import StopFlag
from carvana_batch.submission.write import write_rows
from carvana_batch.values import Failure, ImageRef, Photo

WRITER_THREADS = 2

MOST_UNWRITTEN = 8
"""Predictions that may wait for a writer before the network has to wait for them."""

Item = TypeVar("Item")


@dataclass
class Progress:
    """Where a run stands; ``total`` counts the photos that it has to do."""

    total: int
    done: int = 0
    failed: int = 0


@dataclass
class Listener:
    """What the caller wants to hear while a run goes on."""

    on_start: Callable[[str, Progress], object] = lambda line, progress: None
    on_progress: Callable[[Progress], object] = lambda progress: None


class _Stopwatch:
    """Adds up the main thread's time by what it waits for."""

    def __init__(self) -> None:
        self.seconds = {"decode": 0.0, "predict": 0.0, "write": 0.0}

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def measure_each(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        iterator = iter(items)
        while True:
            with self.measure(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def run(
    refs: Sequence[ImageRef],
    root: Path,
    model: Model,
    options: Options,
    listener: Listener | None = None,
    stop: StopFlag | None = None,
) -> RunReport:
    """Mask the photos into the out folder ``root``, as far as an earlier run has not done so.

    Raises:
        CarvanaBatchError: two photos would write the same mask; the out folder cannot be used, is in use or
            was made with other settings; the disk is full; memory does not suffice for the smallest tile.
            A photo that cannot be masked is no error but a failure in the report.
    """
    check_request(refs, root, options)
    own = take_shard(refs, *options.shard)
    truth = find_masks(options.truth, advice=TRUTH_ADVICE) if options.truth else None
    settings = options.settings(f"{model.name} {model.digest[:16]}")
    stop = stop or StopFlag()
    with OutFolder(root, settings, options.shard, options.overwrite) as out:
        if options.runs_file is not None:
            check_target(options.runs_file)
        todo = out.find_missing(own)
        report = RunReport(found=len(own), already_done=len(own) - len(todo), settings=settings)
        if todo:
            _mask(todo, out, model, options, truth, report, listener or Listener(), stop)
        if truth is not None and report.already_done:
            _compare_again({ref.key for ref in own} - {ref.key for ref in todo}, out, truth, report, stop)
        _tell(refs, own, out, options, report)
    return report


def _mask(
    todo: Sequence[ImageRef],
    out: OutFolder,
    model: Model,
    options: Options,
    truth: dict[str, Path] | None,
    report: RunReport,
    listener: Listener,
    stop: StopFlag,
) -> None:
    predictor, report.device = make_predictor(model, options, out.chosen)
    chosen = out.start(describe_choice(predictor))
    if chosen != describe_choice(predictor):  # another shard was first
        predictor, report.device = make_predictor(model, options, chosen)
    progress = Progress(total=len(todo))
    listener.on_start(report.device, progress)
    sinks = Sinks(
        out, options.extras, options.mask_bits, options.runs_file is not None, truth, options.threshold
    )
    workers = default_workers(predictor.device, len(todo)) if options.workers is None else options.workers
    decoding = DecodeOptions(options.pixel_limit, options.apply_exif, options.decode_timeout)
    loader = PhotoLoader(todo, decoding, workers)
    watch = _Stopwatch()

    def until_stopped() -> Generator[Photo | Failure, None, None]:
        for photo in watch.measure_each("decode", loader):
            yield photo
            if stop.signal is not None:
                return

    start = time.perf_counter()
    unwritten: deque[tuple[ImageRef, Future[Written]]] = deque()
    with contextlib.ExitStack() as stack:
        spool = None if options.runs_file is None else stack.enter_context(RunLengthSpool(out.spool_path))
        writers = stack.enter_context(ThreadPoolExecutor(WRITER_THREADS, "writer"))
        stack.enter_context(memory_shared_with_workers())
        photos = stack.enter_context(contextlib.closing(until_stopped()))  # ends the workers, come what may

        def commit_oldest() -> None:
            ref, future = unwritten.popleft()
            try:
                with watch.measure("write"):
                    written = future.result()
            except ImageError as error:
                commit_failure(Failure.of(ref, "write", str(error)))
                return
            if spool is not None and written.runs is not None:
                spool.append(written.entry, written.runs)
            out.commit(written.entry)
            report.write_seconds += written.seconds
            progress.done += 1
            listener.on_progress(progress)

        def commit_failure(failure: Failure) -> None:
            out.commit_failure(failure)
            progress.failed += 1
            listener.on_progress(progress)

        for result in predictor.predict(photos):
            out.choose(describe_choice(predictor))
            if isinstance(result, Failure):
                commit_failure(result)
            else:
                unwritten.append((result.photo.ref, writers.submit(sinks.write, result)))
            while unwritten and (len(unwritten) > MOST_UNWRITTEN or unwritten[0][1].done()):
                commit_oldest()
        while unwritten:
            commit_oldest()
    report.seconds = time.perf_counter() - start
    watch.seconds["predict"] = report.seconds - watch.seconds["decode"] - watch.seconds["write"]
    report.stages, report.decode_seconds = watch.seconds, loader.seconds
    report.chosen, report.warnings = describe_choice(predictor), loader.warnings + predictor.warnings
    report.done = progress.done
    report.stopped_by = stop.signal if progress.done + progress.failed < progress.total else None


def _compare_again(
    keys: set[str], out: OutFolder, truth: dict[str, Path], report: RunReport, stop: StopFlag
) -> None:
    """Bring the Dice of masks that earlier runs made up to date: the true masks may be others by now."""
    entries = [entry for key, entry in sorted(read_entries(out.state).items()) if key in keys]

    def compare_file(entry: Entry) -> Entry:
        try:
            mask = read_mask(out.mask_path(entry.key))
        except ImageError as error:  # damaged since, but of the size that the journal says
            return replace(entry, dice=None, reason=str(error))
        dice, problem = compare(entry.key, mask, truth)
        return replace(entry, dice=dice, reason=problem)

    for entry, compared in zip(entries, map_in_order(compare_file, entries), strict=True):
        if stop.signal is not None:
            report.stopped_by = stop.signal
            return
        if compared != entry:
            out.commit(compared)


def _tell(
    refs: Sequence[ImageRef], own: Sequence[ImageRef], out: OutFolder, options: Options, report: RunReport
) -> None:
    """Complete the report from the journal; write ``report.csv``, ``run.json`` and the run-length CSV."""
    report.peak_memory = peak_memory()
    with out.alone():
        journal = read_entries(out.state)
        entries = [journal[ref.key] for ref in own if ref.key in journal]
        masked = [entry for entry in entries if not entry.failed]
        masks = sum(not entry.failed for entry in journal.values())
        report.foreign = masks - sum(not journal[ref.key].failed for ref in refs if ref.key in journal)
        report.failures = [entry for entry in entries if entry.failed]
        report.expected_dice = [entry.expected_dice for entry in masked if entry.expected_dice is not None]
        if options.truth is not None:
            scored = [entry for entry in masked if entry.dice is not None]
            report.dice = [entry.dice or 0.0 for entry in scored]
            report.correlation = rank_correlation(
                [entry.expected_dice or 0.0 for entry in scored], report.dice
            )
            report.without_truth = [entry for entry in masked if entry.dice is None]
        write_table(out.root / "report.csv", journal.values())
        report.write(out.root / "run.json")
    if options.runs_file is not None and report.stopped_by is None:
        with RunLengthSpool(out.spool_path) as spool:
            rows = spool.rows(sorted(masked, key=lambda entry: mask_id(entry.key)), out.mask_path)
            write_rows(options.runs_file, ((mask_id(entry.key), runs) for entry, runs in rows))
