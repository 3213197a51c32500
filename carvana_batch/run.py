"""A run of ``predict``: find out what is left to do, let an engine do it, keep the journal, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from carvana_batch.archives.archive import Archive
from carvana_batch.archives.unpacking import unpack
from carvana_batch.cloud.fetching import Arrive
from carvana_batch.colours import parse_colour
from carvana_batch.drawing import ExtrasDrawer, read_background
from carvana_batch.engines.contract import Engine, Job, Result
from carvana_batch.engines.local import LocalEngine, make_writer
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.files import check_target
from carvana_batch.inputs.find import take_shard
from carvana_batch.inputs.keys import mask_id, pairing_name
from carvana_batch.inputs.masks import TRUTH_ADVICE, find_masks
from carvana_batch.main_memory import peak_memory
from carvana_batch.masks.doubts import describe_doubts
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.read import read_mask
from carvana_batch.network.model import Model
from carvana_batch.notes import TRUE_MASK, TURNED
from carvana_batch.options import Options
from carvana_batch.output.announced import remove_settled
from carvana_batch.output.checks import check_request, refuse_overwriting
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.remote import LOCAL, Remote
from carvana_batch.output.report import RunReport, write_table
from carvana_batch.output.resume import find_lost
from carvana_batch.output.rle_spool import RunLengthSpool
from carvana_batch.output.writer import compare
from carvana_batch.parallel import map_in_order
from carvana_batch.stopping import StopFlag
from carvana_batch.submission.write import write_rows
from carvana_batch.text import list_names, shown
from carvana_batch.values import Failure, ImageRef


@dataclass
class Progress:
    """How far a run has come; ``total`` counts the photos that it has to mask.

    ``describe_nodes`` names the machines at work and their rates; "" if it is this one alone.
    """

    total: int
    done: int = 0
    failed: int = 0
    kept: int = 0
    describe_nodes: Callable[[], str] = lambda: ""

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


def run(
    refs: Sequence[ImageRef],
    root: Path,
    model: Model,
    options: Options,
    listener: Listener | None = None,
    stop: StopFlag | None = None,
    engine: Engine | None = None,
    remote: Remote = LOCAL,
    archive: Archive | None = None,
) -> RunReport:
    """Mask the photos into the out folder ``root``, except those that an earlier run has masked.

    Args:
        refs: all photos of the job, also those of other shards.
        root: the out folder, which is created if needed.
        model: what masks them.
        options: what was asked for.
        listener: what to call during the run.
        stop: when its signal is set, the run stops reading photos and finishes those in flight.
        engine: masks the photos; None for this process.
        remote: what to do about photos, or an out folder, that are elsewhere.
        archive: what holds the photos; None if they are files of their own.

    Raises:
        CarvanaBatchError: two photos would write the same mask; the out folder cannot be used, is in use or
            was made with other settings; the disk is full; memory does not suffice for the smallest tile.
            A photo that cannot be masked is not an error but a failure in the report.
    """
    check_request(refs, root, options)
    truth = find_truth(options)
    settings = options.settings(f"{model.name} {model.digest[:16]}")
    engine = engine or LocalEngine(model)
    with (
        contextlib.closing(engine),
        OutFolder(root, settings, options.shard, options.overwrite, options.rle_file, remote) as out,
    ):
        if out.added_extras:
            colour = out.settings.get("colour")
            options = replace(
                options,
                extras=tuple(out.settings["save"]),
                colour=None if colour is None else parse_colour(colour),
            )
            refuse_overwriting(refs, root, options)
        listener, stop = listener or Listener(), stop or StopFlag()
        this = Run(refs, out, model, options, truth, listener, stop, engine, archive)
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


class Run:
    """A run in an out folder that it holds; call :meth:`prepare`, :meth:`process` and :meth:`finish`.

    Args:
        refs, model, options, listener, stop, engine, archive: see :func:`run`.
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
        engine: Engine,
        archive: Archive | None,
    ) -> None:
        self.refs, self.out, self.model, self.options = refs, out, model, options
        self.truth, self.listener, self.stop = truth, listener, stop
        self.engine, self.archive = engine, archive
        self.background = read_background(options.background)
        self.own = take_shard(refs, *options.shard)
        self.todo = self.undrawn = self.own[:0]
        self.report = RunReport(found=len(self.own), already_done=len(self.own), settings=out.settings)
        self.report.options = options.given
        with contextlib.suppress(OSError):  # the current directory may be gone
            self.report.directory = str(Path.cwd())
        if options.images is not None:
            self.report.images = out.remote.in_words(str(Path(self.report.directory, options.images)))
        self._progress = Progress(total=0)
        self._spool: RunLengthSpool | None = None

    def prepare(self) -> None:
        """Find out which photos are left, and if there are any, get the engine ready."""
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
        hello = self.engine.begin(self._job(), out, out.choice, self.stop)
        if hello is None:
            self.report.stopped_by = self.stop.signal
            return
        if out.overwriting is not None and (line := out.overwriting.describe()):
            self.listener.on_overwrite(line)
        # Another shard may have begun since the choice was read, and then its choice is to be used.
        hello = self.engine.bind(out.start(hello.choice))
        self.report.device = hello.device
        self._progress = Progress(total=len(self.todo), describe_nodes=self.engine.describe_nodes)

    def process(self) -> None:
        """Mask the photos that are left, until all are done or a signal has come."""
        if not self._progress.total:
            return
        report, progress = self.report, self._progress
        self.listener.on_start(report.device, progress)
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if self.options.rle_file is not None:
                self._spool = stack.enter_context(RunLengthSpool(self.out.paths.spool))
            results = self.engine.results(self.todo, self.stop)
            for result in stack.enter_context(contextlib.closing(results)):
                self._commit(result)
        report.seconds = time.perf_counter() - start
        account = self.engine.account()
        report.stages, report.decode_seconds = account.stages, account.decode_seconds
        report.write_seconds, report.peak_memory = account.write_seconds, account.peak_memory
        report.chosen, report.warnings = asdict(account.choice), list(account.warnings)
        report.engine = self.engine.summary.describe()
        report.done = progress.done
        if progress.finished < progress.total:
            report.stopped_by = self.stop.signal

    def draw(self) -> None:
        """Make further extra files of photos that earlier runs have masked, without the network."""
        if not self.undrawn or self.report.stopped_by is not None:
            return
        out, report, progress = self.out, self.report, Progress(total=len(self.undrawn))
        entries, writer = read_entries(out.paths.state), make_writer(self._job(), out)
        warnings: list[str] = []

        def draw(arrive: Arrive | None) -> Generator[Entry | Failure]:
            drawer = ExtrasDrawer(self.undrawn, self.options, writer, entries, out.undrawn, self.stop, arrive)
            yield from drawer.results()
            warnings.extend(drawer.warnings)

        self.listener.on_start("Making extra files from photos and masks, without the network", progress)
        with contextlib.closing(unpack(self.archive, self.undrawn, draw)) as results:
            for result in results:
                if isinstance(result, Failure):
                    report.undrawn.append(result)
                    progress.failed += 1
                else:
                    out.commit(result)
                    progress.done += 1
                self.listener.on_progress(progress)
        report.drawn = progress.done
        report.warnings += warnings
        if progress.finished < progress.total:
            report.stopped_by = self.stop.signal

    def finish(self) -> None:
        """Complete the report from the journal; write ``report.csv``, ``run.json`` and the run-length CSV."""
        if self.truth is not None and self.report.already_done:
            self._compare_again(self.truth)
        out, report = self.out, self.report
        if self.truth is not None and self.truth.values.unusual:
            report.warnings.append(f"In the masks of --gt, {self.truth.values.unusual}.")
        report.peak_memory = max(report.peak_memory, peak_memory())
        out.remote.settle()
        with out.shared_files_lock():
            journal = read_entries(out.paths.state)
            remove_settled(out.paths.state, journal)
            if report.stopped_by is None:
                self._count_lost(journal)
            masked = report.complete(journal, self.own, self.refs, self.truth is not None)
            if self.truth is not None and (doubts := describe_truth_doubts(masked)):
                report.warnings.append(doubts)
            changed = {ref.key for photos in (self.todo, self.undrawn) for ref in photos}
            out.sync(masked, changed)  # before it is reported as done
            report.already_done -= len(report.kept) - self._progress.kept
            write_table(out.paths.report, journal.values())
            report.write(out.paths.run)
        for path in (out.paths.report, out.paths.run):
            out.remote.put(path)
        if self.options.rle_file is not None and report.stopped_by is None:
            with RunLengthSpool(out.paths.spool) as spool:
                entries = sorted(masked + report.kept, key=lambda entry: mask_id(entry.key))
                rows = spool.rows(entries, out.paths.mask)
                write_rows(self.options.rle_file, ((mask_id(entry.key), runs) for entry, runs in rows))

    def _job(self) -> Job:
        out = self.out
        return Job(
            self.model.digest,
            self.options,
            out.root,
            self.truth,
            out.run,
            out.generation,
            self.background,
            out.remote.job,
            self.archive,
        )

    def _commit(self, result: Result) -> None:
        """Add what came of a photo to the journal."""
        if isinstance(result, Failure):
            entry = self.out.commit_failure(result)
        else:
            entry = result.entry
            if self._spool is not None and result.runs is not None:
                self._spool.append(entry, result.runs)
            self.out.commit(entry)
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
            ref = refs[entry.key]
            with contextlib.ExitStack() as stack:
                if self.archive is not None and not TURNED.isdisjoint(notes):  # then the photo is read
                    stack.enter_context(self.archive.fetched(ref.path))
                compared = compare(ref, mask, notes, truth)
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
