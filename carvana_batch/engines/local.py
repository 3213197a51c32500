"""One worker: decoding in processes, the network in this thread, writers in threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from carvana_batch import __version__
from carvana_batch.archives.unpacking import unpack
from carvana_batch.cloud.carrying import Carrier
from carvana_batch.cloud.fetching import Arrive
from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.decode.workers import memory_shared_with_workers
from carvana_batch.engines.contract import Account, Hello, Job, Out, OutOfRun, Result, Summary
from carvana_batch.inference.planning import default_workers, describe_choice, make_predictor
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.main_memory import peak_memory
from carvana_batch.network.model import Model
from carvana_batch.options import Choice, most_bytes
from carvana_batch.output.extras import Drawing
from carvana_batch.output.writer import MaskWriter, Written
from carvana_batch.output.writer_threads import WriterThreads
from carvana_batch.stopping import StopFlag
from carvana_batch.values import Failure, ImageRef, Photo

Item = TypeVar("Item")


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


def make_writer(job: Job, out: Out) -> MaskWriter:
    """What writes the files of a job."""
    options = job.options
    return MaskWriter(
        out.paths,
        options.extras,
        options.mask_bits,
        options.clean,
        options.rle_file is not None,
        job.truth,
        Drawing(options.threshold, options.colour, job.background, options.shadow),
        out.check,
        out.commit,
        out.ownership,
    )


class LocalWorker:
    """A :class:`Worker` in this process.

    Args:
        job: what is to be done.
        model: what masks the photos.
        out: the out folder.
        stop: when its signal is set, :meth:`run` stops reading photos and finishes those in flight.
        cores: of the machine that are for this worker; None for all.
        carrier: fetches photos and puts masks; None if all are local.
    """

    def __init__(
        self,
        job: Job,
        model: Model,
        out: Out,
        stop: StopFlag | None = None,
        cores: int | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        self.job, self.model, self.out, self.cores, self.carrier = job, model, out, cores, carrier
        self.stop = stop or StopFlag()
        self._stopwatch = Stopwatch()
        self._total = self._decode_seconds = self._write_seconds = 0.0
        self._warnings: tuple[str, ...] = ()

    def begin(self, chosen: Choice | None) -> Hello:
        self._predictor, device = make_predictor(
            self.model, self.job.options, chosen, on_change=self.out.record_choice
        )
        self._chosen = chosen or describe_choice(self._predictor.device, self._predictor.limits)
        versions = {"carvana-batch": __version__, "torch": str(torch.__version__)}
        return Hello(self._present_choice(), self.model.digest, versions, device)

    def run(self, photos: Sequence[ImageRef]) -> Generator[Result]:
        if self.carrier is not None:
            return self.carrier.carry(photos, self._mask)
        return unpack(self.job.archive, photos, partial(self._mask, photos))

    def _mask(self, photos: Sequence[ImageRef], arrive: Arrive | None) -> Generator[Result]:
        """Mask photos, each after ``arrive`` has seen to it that it is on this machine."""
        start = time.perf_counter()
        options = self.job.options
        decode_options = DecodeOptions(
            options.pixel_limit, options.apply_exif, options.decode_timeout, options.accept_damage
        )
        workers = options.workers
        if workers is None:
            workers = default_workers(self._predictor.device, len(photos), self.cores)
        loader = PhotoLoader(photos, decode_options, workers, arrive=arrive)
        writer = make_writer(self.job, self.out)
        try:
            with contextlib.ExitStack() as stack:
                threads = stack.enter_context(WriterThreads[Written]())
                stack.enter_context(memory_shared_with_workers())
                # Closing it always ends the processes that decode.
                decoded = stack.enter_context(contextlib.closing(self._decoded(loader)))
                for result in self._predictor.predict(decoded):
                    if isinstance(result, Failure):
                        yield result
                    else:
                        threads.submit(result.photo.ref, partial(writer.write, result))
                    yield from self._written(threads.results(wait=False))
                yield from self._written(threads.results(wait=True))
        finally:
            self._total += time.perf_counter() - start
            self._decode_seconds += loader.seconds
            new = (line for line in loader.warnings if line not in self._warnings)
            self._warnings = (*self._warnings, *new)

    def account(self) -> Account:
        seconds = self._stopwatch.seconds
        predict = max(0.0, self._total - seconds["decode"] - seconds["write"])
        return Account(
            seconds | {"predict": predict},
            self._decode_seconds,
            self._write_seconds,
            peak_memory(),
            (*self._warnings, *self._predictor.warnings),
            self._present_choice(),
        )

    def _present_choice(self) -> Choice:
        return describe_choice(self._predictor.device, self._predictor.limits, self._chosen)

    def _decoded(self, loader: PhotoLoader) -> Generator[Photo | Failure, None, None]:
        """The decoded photos, until a signal has come."""
        for photo in self._stopwatch.measure_each("decode", loader):
            yield photo
            if self.stop.signal is not None:
                return

    def _written(self, results: Iterable[Result]) -> Generator[Result]:
        """Pass on what the writer threads have done, and add up their time."""
        for result in self._stopwatch.measure_each("write", results):
            if not isinstance(result, Failure):
                self._write_seconds += result.seconds
            yield result


class LocalEngine:
    """An :class:`Engine` that is a single worker in this process.

    Args:
        model: what masks the photos.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.summary = model, Summary()

    def begin(self, job: Job, out: OutOfRun, chosen: Choice | None, stop: StopFlag) -> Hello:
        carrier = None
        if job.remote is not None:
            folder = Path(job.remote.source_folder)
            carrier = Carrier(job.remote, folder, out.paths, most_bytes(job.options.pixel_limit))
        self._worker = LocalWorker(job, self.model, out, stop, carrier=carrier)
        self._hello = self._worker.begin(chosen)
        return self._hello

    def bind(self, chosen: Choice) -> Hello:
        if chosen != self._hello.choice:
            self._hello = self._worker.begin(chosen)
        return self._hello

    def results(self, photos: PhotoList, stop: StopFlag) -> Generator[Result]:
        return self._worker.run(photos)

    def account(self) -> Account:
        return self._worker.account()

    def describe_nodes(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing: the worker ends with its results."""
