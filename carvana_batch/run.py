"""A run of ``predict``: decode photos, run the network, write masks, keep the journal, report."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from carvana_batch.colours import RGB, parse_colour
from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.decode.photo import read_image
from carvana_batch.decode.workers import memory_shared_with_workers
from carvana_batch.errors import CarvanaBatchError, ImageError, UsageError
from carvana_batch.files import check_target, concerns_one_file
from carvana_batch.inference.planning import default_workers, describe_choice, make_predictor
from carvana_batch.inference.predictor import AnyPredictor
from carvana_batch.inputs.find import take_shard
from carvana_batch.inputs.keys import mask_id, pairing_name
from carvana_batch.inputs.masks import TRUTH_ADVICE, find_masks
from carvana_batch.main_memory import peak_memory
from carvana_batch.masks.doubts import describe_doubts
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.read import read_mask
from carvana_batch.network.checkpoints import Model
from carvana_batch.notes import TRUE_MASK
from carvana_batch.options import Choice, Options
from carvana_batch.output.backgrounds import Background
from carvana_batch.output.checks import check_request, refuse_overwriting
from carvana_batch.output.extras import Drawing
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.report import RunReport, write_table
from carvana_batch.output.resume import find_lost
from carvana_batch.output.rle_spool import RunLengthSpool
from carvana_batch.output.writer import MaskWriter, Written, compare
from carvana_batch.parallel import map_in_order
from carvana_batch.stopping import StopFlag
from carvana_batch.submission.write import write_rows
from carvana_batch.text import list_names, shown
from carvana_batch.values import Failure, ImageRef, Photo

WRITER_THREADS = 2

MOST_UNWRITTEN = 8
"""Predictions that may be waiting for a writer thread; with more of them, the network waits."""

Item = TypeVar("Item")


@dataclass
class Progress:
    """How far a run has come; ``total`` counts the photos that it has to mask."""

    total: int
    done: int = 0
    failed: int = 0
    kept: int = 0

    @property
    def finished(self) -> int:
        """Photos of which it is known what comes of them."""
        return self.done + self.failed + self.kept


@dataclass
class Listener:
    """Callbacks for what happens during a run.

    Attributes:
        on_overwrite: called with a line about it before existing masks are removed or replaced.
        on_start: called with a line about device and precision before the first photo.
        on_progress: called after each photo.
    """

    on_overwrite: Callable[[str], object] = lambda line: None
    on_start: Callable[[str, Progress], object] = lambda line, progress: None
    on_progress: Callable[[Progress], object] = lambda progress: None


class Stopwatch:
    """Adds up the time of the main thread by what it is waiting for, in seconds."""

    def __init__(self) -> None:
        self.seconds = {"decode": 0.0, "predict": 0.0, "write": 0.0}

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the with block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def measure_each(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """Pass the items on, and add the time that getting them takes to a stage."""
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
    """Mask the photos into the out folder ``root``, except those that an earlier run has masked.

    Args:
        refs: all photos of the job, also those of other shards.
        root: the out folder, which is created if needed.
        model: what masks them.
        options: what was asked for.
        listener: what to call during the run.
        stop: when its signal is set, the run stops reading photos and finishes those in flight.

    Raises:
        CarvanaBatchError: two photos would write the same mask; the out folder cannot be used, is in use or
            was made with other settings; the disk is full; memory does not suffice for the smallest tile.
            A photo that cannot be masked is not an error but a failure in the report.
    """
    check_request(refs, root, options)
    truth = find_truth(options)
    settings = options.settings(f"{model.name} {model.digest[:16]}")
    with OutFolder(root, settings, options.shard, options.overwrite, options.rle_file) as out:
        if out.added_extras:
            colour = out.settings.get("colour")
            options = replace(
                options,
                extras=tuple(out.settings["save"]),
                colour=None if colour is None else parse_colour(colour),
            )
            refuse_overwriting(refs, root, options)
        this = Run(refs, out, model, options, truth, listener or Listener(), stop or StopFlag())
        this.prepare()
        this.process()
        this.draw()
        this.finish()
    return this.report


def find_truth(options: Options) -> MaskFolder | None:
    """Find the true masks by the ``pairing_name`` of their id, and decide which of their values are car.

    Raises:
        UsageError: there are no masks, none can be used, their values do not tell, or none of them has a car.
    """
    if options.truth is None:
        return None
    found = find_masks(options.truth, advice=TRUTH_ADVICE)
    folder = MaskFolder(options.truth, {pairing_name(mask): path for mask, path in found.items()})
    decided = folder.decide(options.car_values, options.ignored_values)
    _refuse_all_unusable(decided)
    if decided.values.empty:
        raise UsageError(f"None of the masks in --gt {shown(options.truth)} has a car. Give other ones.")
    return decided


def _refuse_all_unusable(truth: MaskFolder) -> None:
    """Raise UsageError if none of the masks can be read."""
    reasons: list[str] = []
    for image in truth.ids:
        try:
            truth.read(image)
        except ImageError as error:
            reasons.append(str(error))
        else:
            return
    raise UsageError(
        f"None of the masks in --gt {shown(truth.path)} can be used.{list_names('Masks', reasons)}"
    )


def describe_truth_doubts(entries: Iterable[Entry]) -> str:
    """Say so if true masks seem to be inverted, or of other photos; "" if not.

    Args:
        entries: the entries of masks, of which those that were compared count.
    """
    dice, accuracy = [], []
    for entry in entries:
        if entry.dice is not None and entry.car_share is not None and entry.true_share is not None:
            accuracy.append(1 - (entry.car_share + entry.true_share) * (1 - entry.dice))
            if entry.car_share and entry.true_share:
                dice.append(entry.dice)
    return describe_doubts(dice, accuracy)


def read_background(background: RGB | Path | None) -> Background | None:
    """Read the picture of ``--background``, or return its colour.

    Raises:
        UsageError: it is no picture that can be read.
    """
    if not isinstance(background, Path):
        return background
    try:
        return read_image(background, apply_exif=True)
    except ImageError as error:
        raise UsageError(f"--background: {error}.") from error


class Run:
    """A run in an out folder that it holds; call :meth:`prepare`, :meth:`process` and :meth:`finish`.

    Args:
        refs, model, options, listener, stop: see :func:`run`.
        out: the out folder, entered.
        truth: the true masks by the ``pairing_name`` of their id, None if there are none to compare with.

    Attributes:
        report: what came of the run.
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        out: OutFolder,
        model: Model,
        options: Options,
        truth: MaskFolder | None,
        listener: Listener,
        stop: StopFlag,
    ) -> None:
        self.refs, self.out, self.model, self.options = refs, out, model, options
        self.truth, self.listener, self.stop = truth, listener, stop
        self.background = read_background(options.background)
        self.own = take_shard(refs, *options.shard)
        self.todo = self.undrawn = self.own[:0]
        self.report = RunReport(found=len(self.own), already_done=len(self.own), settings=out.settings)
        with contextlib.suppress(OSError):  # the current directory may be gone
            self.report.directory = str(Path.cwd())
        if options.images is not None:
            self.report.images = str(Path(self.report.directory, options.images))
        self._spool: RunLengthSpool | None = None
        self._stopwatch = Stopwatch()
        self._unwritten: deque[tuple[ImageRef, Future[Written]]] = deque()

    def prepare(self) -> None:
        """Find out which photos are left, and if there are any, set up decoders, network and writers."""
        options, out = self.options, self.out
        if options.rle_file is not None:
            check_target(options.rle_file)
        missing = out.find_missing(self.own, verify=options.verify)
        self.undrawn = missing.select(i for i, ref in enumerate(missing) if ref.key in out.undrawn)
        self.todo = missing.select(i for i, ref in enumerate(missing) if ref.key not in out.undrawn)
        self.report.already_done = len(self.own) - len(self.todo)
        if not self.todo:
            if self.undrawn:
                out.start_drawing()
            return
        self._predictor = self._make_predictor(out.choice)
        choice = describe_choice(self._predictor.device, self._predictor.limits, out.choice)
        if out.overwriting is not None and (line := out.overwriting.describe()):
            self.listener.on_overwrite(line)
        self._chosen = out.start(choice)
        if self._chosen != choice:  # another shard has begun in the meantime
            self._predictor = self._make_predictor(self._chosen)
        decode_options = DecodeOptions(
            options.pixel_limit, options.apply_exif, options.decode_timeout, options.accept_damage
        )
        workers = options.workers
        if workers is None:
            workers = default_workers(self._predictor.device, len(self.todo))
        self._loader = PhotoLoader(self.todo, decode_options, workers)
        self._writer = self._make_writer()
        self._progress = Progress(total=len(self.todo))

    def process(self) -> None:
        """Mask the photos that are left, until all are done or a signal has come."""
        if not self.todo:
            return
        report = self.report
        self.listener.on_start(report.device, self._progress)
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if self.options.rle_file is not None:
                self._spool = stack.enter_context(RunLengthSpool(self.out.paths.spool))
            threads = stack.enter_context(ThreadPoolExecutor(WRITER_THREADS, "writer"))
            stack.enter_context(memory_shared_with_workers())
            photos = stack.enter_context(contextlib.closing(self._photos()))  # always ends the workers
            for result in self._predictor.predict(photos):
                if isinstance(result, Failure):
                    self._commit_failure(result)
                else:
                    self._unwritten.append((result.photo.ref, threads.submit(self._writer.write, result)))
                while self._unwritten and (
                    len(self._unwritten) > MOST_UNWRITTEN or self._unwritten[0][1].done()
                ):
                    self._commit_oldest()
            while self._unwritten:
                self._commit_oldest()
        report.seconds = time.perf_counter() - start
        seconds = self._stopwatch.seconds
        seconds["predict"] = report.seconds - seconds["decode"] - seconds["write"]
        report.stages, report.decode_seconds = seconds, self._loader.seconds
        choice = describe_choice(self._predictor.device, self._predictor.limits, self._chosen)
        report.chosen = asdict(choice)
        report.warnings = self._loader.warnings + self._predictor.warnings
        report.done = self._progress.done
        if self._progress.finished < self._progress.total:
            report.stopped_by = self.stop.signal

    def draw(self) -> None:
        """Make further extra files of photos that earlier runs have masked, without the network."""
        if not self.undrawn or self.report.stopped_by is not None:
            return
        options, out = self.options, self.out
        workers = options.workers
        if workers is None:
            workers = 1 if len(self.undrawn) < 4 else min(os.cpu_count() or 1, 8)
        # Damaged photos are here only if they were accepted when they were masked.
        decode_options = DecodeOptions(
            options.pixel_limit, options.apply_exif, options.decode_timeout, accept_damage=True
        )
        loader, writer = PhotoLoader(self.undrawn, decode_options, workers), self._make_writer()
        entries = read_entries(out.paths.state)
        progress = Progress(total=len(self.undrawn))
        self.listener.on_start("Making extra files from photos and masks, without the network", progress)

        def draw_photo(photo: Photo) -> Entry:
            return writer.draw(photo, entries[photo.ref.key], out.undrawn[photo.ref.key])

        def commit_oldest() -> None:
            ref, future = waiting.popleft()
            try:
                out.commit(future.result())
                progress.done += 1
            except CarvanaBatchError as error:
                if not (isinstance(error, ImageError) or concerns_one_file(error)):
                    raise
                self.report.undrawn.append(Failure.of(ref, "write", str(error)))
                progress.failed += 1
            self.listener.on_progress(progress)

        waiting: deque[tuple[ImageRef, Future[Entry]]] = deque()
        with contextlib.ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(WRITER_THREADS, "writer"))
            stack.enter_context(memory_shared_with_workers())
            for photo in stack.enter_context(contextlib.closing(iter(loader))):
                if isinstance(photo, Failure):
                    self.report.undrawn.append(photo)
                    progress.failed += 1
                else:
                    waiting.append((photo.ref, threads.submit(draw_photo, photo)))
                while len(waiting) > MOST_UNWRITTEN or (waiting and waiting[0][1].done()):
                    commit_oldest()
                if self.stop.signal is not None:
                    break
            while waiting:
                commit_oldest()
        self.report.drawn = progress.done
        self.report.warnings += loader.warnings
        if progress.finished < progress.total:
            self.report.stopped_by = self.stop.signal

    def finish(self) -> None:
        """Complete the report from the journal; write ``report.csv``, ``run.json`` and the run-length CSV."""
        if self.truth is not None and self.report.already_done:
            self._compare_again(self.truth)
        out, report = self.out, self.report
        if self.truth is not None and self.truth.values.unusual:
            report.warnings.append(f"In the masks of --gt, {self.truth.values.unusual}.")
        report.peak_memory = peak_memory()
        kept_now = self._progress.kept if self.todo else 0
        with out.shared_files_lock():
            journal = read_entries(out.paths.state)
            if report.stopped_by is None:
                self._count_lost(journal)
            masked = report.complete(journal, self.own, self.refs, self.truth is not None)
            if self.truth is not None and (doubts := describe_truth_doubts(masked)):
                report.warnings.append(doubts)
            changed = {ref.key for photos in (self.todo, self.undrawn) for ref in photos}
            out.syncing.sync(masked, changed)  # before it is reported as done
            report.already_done -= len(report.kept) - kept_now
            write_table(out.paths.report, journal.values())
            report.write(out.paths.run)
        if self.options.rle_file is not None and report.stopped_by is None:
            with RunLengthSpool(out.paths.spool) as spool:
                entries = sorted(masked + report.kept, key=lambda entry: mask_id(entry.key))
                rows = spool.rows(entries, out.paths.mask)
                write_rows(self.options.rle_file, ((mask_id(entry.key), runs) for entry, runs in rows))

    def _make_predictor(self, earlier: Choice | None) -> AnyPredictor:
        predictor, self.report.device = make_predictor(
            self.model, self.options, earlier, on_change=self.out.record_choice
        )
        return predictor

    def _make_writer(self) -> MaskWriter:
        options, out = self.options, self.out
        return MaskWriter(
            out.paths,
            options.extras,
            options.mask_bits,
            options.clean,
            options.rle_file is not None,
            self.truth,
            Drawing(options.threshold, options.colour, self.background),
            out.check,
            out.commit,
            out.ownership,
        )

    def _photos(self) -> Generator[Photo | Failure, None, None]:
        """The decoded photos, until a signal has come."""
        for photo in self._stopwatch.measure_each("decode", self._loader):
            yield photo
            if self.stop.signal is not None:
                return

    def _commit_oldest(self) -> None:
        """Wait until the oldest unwritten mask has its final name, and add it to the journal."""
        ref, future = self._unwritten.popleft()
        try:
            with self._stopwatch.measure("write"):
                written = future.result()
        except CarvanaBatchError as error:
            if not (isinstance(error, ImageError) or concerns_one_file(error)):
                raise
            self._commit_failure(Failure.of(ref, "write", str(error)))
            return
        if self._spool is not None and written.runs is not None:
            self._spool.append(written.entry, written.runs)
        self.out.commit(written.entry)
        self.report.write_seconds += written.seconds
        self._count(written.entry)

    def _commit_failure(self, failure: Failure) -> None:
        self._count(self.out.commit_failure(failure))

    def _count(self, entry: Entry) -> None:
        self._progress.done += entry.masked
        self._progress.failed += entry.failed
        self._progress.kept += entry.kept
        self.listener.on_progress(self._progress)

    def _count_lost(self, journal: dict[str, Entry]) -> None:
        """Let the photos fail whose files someone has removed since they were committed."""
        undrawn = {failure.id for failure in self.report.undrawn}
        own = self.own.select(i for i, ref in enumerate(self.own) if ref.key not in undrawn)
        lost = find_lost(own, journal, self.out.paths, self.options.extras)
        if lost:
            in_this_run = sum(ref.key in lost for ref in self.todo)
            self.report.done -= in_this_run
            self.report.already_done -= len(lost) - in_this_run
            journal.update(lost)

    def _compare_again(self, truth: MaskFolder) -> None:
        """Update the Dice of masks that earlier runs made, because the true masks may have changed."""
        todo = {ref.key for ref in self.todo}
        refs = {ref.key: ref for ref in self.own if ref.key not in todo}
        journal = sorted(read_entries(self.out.paths.state).items())
        entries = [entry for key, entry in journal if key in refs and entry.masked]

        def compare_file(entry: Entry) -> Entry:
            try:
                mask = read_mask(self.out.paths.mask(entry.key))
            except ImageError as error:  # damaged since, but still of the size in the journal
                return replace(entry, dice=None, true_share=None, reason=str(error))
            notes = tuple(note for note in entry.notes if note not in TRUE_MASK)
            compared = compare(refs[entry.key], mask, notes, truth)
            return replace(
                entry,
                dice=compared.dice,
                true_share=compared.true_share,
                reason=compared.reason,
                notes=notes + compared.notes,
            )

        for entry, compared in zip(entries, map_in_order(compare_file, entries), strict=True):
            if self.stop.signal is not None:
                self.report.stopped_by = self.stop.signal
                return
            if compared != entry:
                self.out.commit(compared)
