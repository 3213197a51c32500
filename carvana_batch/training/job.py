"""A whole training run: find the photos, split them, check everything, train, and draw the results."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.masks.counts import clear_ignored, count
from carvana_batch.network.checkpoints import load_model
from carvana_batch.orientation import turn
from carvana_batch.stopping import StopFlag
from carvana_batch.text import shown
from carvana_batch.training.accepted import is_out_folder
from carvana_batch.training.curves import plot_curves
from carvana_batch.training.device_samples import DIFFERENT_SIZES
from carvana_batch.training.listener import Outcome, TrainingListener
from carvana_batch.training.loop import Training
from carvana_batch.training.pairs import (
    MASK_NAMES,
    PHOTO_FOLDERS,
    Pair,
    check_pairs,
    describe_orientations,
)
from carvana_batch.training.pictures import Panel, draw_panels, draw_samples, write_picture
from carvana_batch.training.processes import Processes, join_processes
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.samples import draw_batches, make_samples
from carvana_batch.training.settings import TrainingSettings
from carvana_batch.training.split import find_split
from carvana_batch.training.starting import check_batch, check_cache, check_cars, load_initial
from carvana_batch.training.tensorboard import TensorBoardLog, import_writer
from carvana_batch.training.validation import predict_pairs, read_true

SAMPLES_SHOWN = 12
"""Number of samples in samples.jpg."""


def check_sizes(pairs: Sequence[Pair], sizes: Sequence[tuple[int, int]], settings: TrainingSettings) -> None:
    """Check that all samples of a batch will have the same size, and that crops fit.

    Args:
        pairs: the pairs to train on.
        sizes: (width, height) of their photos.
        settings: settings of the run.

    Raises:
        UsageError: samples would differ in size, or a crop does not fit.
    """
    if settings.size is not None:
        found = {settings.size: "--size"}
    else:
        found = {size: shown(pair.id) for pair, size in zip(pairs, sizes, strict=True)}
    crop = settings.crop
    if crop is not None:
        for (width, height), name in found.items():
            if crop[0] > width or crop[1] > height:
                raise UsageError(
                    f"--crop {crop[0]}x{crop[1]} is larger than {name}, {width}x{height}. Use a smaller one."
                )
    if len(found) > 1 and settings.cache == "device":
        raise UsageError(f"--cache device: {DIFFERENT_SIZES}")
    if len(found) > 1 and (crop is None or settings.crop_share < 1) and settings.batch > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise UsageError(
            f"Photos have different sizes, such as {one} with {first[0]}x{first[1]} and {other} with"
            f" {second[0]}x{second[1]}. Use --size to make them alike, or --crop with a --crop-share of 1."
        )


def train(
    data: Path,
    root: Path,
    settings: TrainingSettings,
    *,
    device: torch.device,
    resume: bool = False,
    dry_run: bool = False,
    workers: int = 1,
    compiled: bool = False,
    tensorboard: bool = False,
    listener: TrainingListener | None = None,
    stop: StopFlag | None = None,
) -> Outcome | None:
    """Train on the photos and masks of ``data`` and write the run into the folder ``root``.

    Args:
        data: the folder of the training data; see :func:`~carvana_batch.training.pairs.find_pairs`.
        root: the folder of the run.
        settings: settings of the run.
        device: where the network runs.
        resume: resume the run in ``root``.
        dry_run: only check data and settings, and write ``samples.jpg`` and ``split.json``.
        workers: number of processes that read and augment photos.
        compiled: compile the network.
        tensorboard: also write event files for TensorBoard.
        listener: callbacks for progress.
        stop: when its signal is set, the run saves its state and ends.

    Returns:
        How the run ended; None for a dry run.

    Raises:
        CarvanaBatchError: data, settings or weights cannot be used, the folder is in use, cannot be written
            or lies among the photos, the loss is not finite, or memory ran out.
        KeyboardInterrupt: a signal came while the photos were checked.
    """
    started_at, stop = time.monotonic(), stop or StopFlag()
    with contextlib.ExitStack() as stack:
        processes, device = stack.enter_context(join_processes(device))
        listener = listener if listener is not None and processes.first else TrainingListener()
        run = RunFolder(root)
        problem: CarvanaBatchError | None = None
        if processes.first:
            try:
                if tensorboard:
                    import_writer()  # reports a missing package before work starts
                check_temporary_folder()
                check_run_folder(root, data, settings)
                stack.enter_context(run)
                _prepare(data, run, settings, device, resume, dry_run, processes, listener, stop)
            except CarvanaBatchError as error:
                problem = error
        problem = processes.share(problem)  # the other processes wait for the checks
        if problem is not None:
            if processes.first:
                raise problem
            sys.exit(problem.exit_code)  # the first process prints the message
        if dry_run:
            return None
        split = find_split(data, settings)
        training = Training(
            split.train,
            split.val,
            run,
            settings,
            device,
            processes=processes,
            listener=listener,
            stop=stop,
            workers=workers,
            compiled=compiled,
            started_at=started_at,
        )
        log: TensorBoardLog | None = None
        if tensorboard and processes.first:
            resumed = training.state.step > 0
            log = stack.enter_context(
                TensorBoardLog(run.tensorboard, training.state.step + 1 if resumed else 0)
            )
            if not resumed:
                log.add_picture("samples", Image.open(run.samples), 0)
            training.listener = replace(listener, on_log=_call_both(listener.on_log, log.add_line))
        listener.on_say(training.describe())
        outcome = training.run_to_end()
        if processes.first and outcome.stopped_by is None:
            pictures = _draw_results(run, split.val, training, log)
            outcome = replace(outcome, pictures=pictures)
        return outcome


def check_temporary_folder() -> None:
    """Check that there is a temporary folder, without which torch makes no optimizer.

    Raises:
        UsageError: there is none that is open to writing.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UsageError(
            "There is no temporary folder that is open to writing. Set TMPDIR to one."
        ) from error


def check_run_folder(root: Path, data: Path, settings: TrainingSettings) -> None:
    """Check that RUN does not lie among photos or masks, because input folders are never written to.

    Raises:
        UsageError: it does.
    """
    run = root.resolve()
    for folder in (data, *map(Path, (*settings.also, *filter(None, [settings.val])))):
        source = folder.resolve()
        protected = [source / name for name in (*PHOTO_FOLDERS, *MASK_NAMES)]
        if is_out_folder(source):  # where what RUN holds would be taken for masks
            protected = [source]
        if run == source or any(run.is_relative_to(path) for path in protected):
            raise UsageError(
                f"RUN {shown(root)} lies among the photos of {shown(folder)}. Choose another RUN."
            )
    if settings.backgrounds is not None and run.is_relative_to(Path(settings.backgrounds).resolve()):
        raise UsageError(f"RUN {shown(root)} lies among the photos of --backgrounds. Choose another RUN.")


def _prepare(
    data: Path,
    run: RunFolder,
    settings: TrainingSettings,
    device: torch.device,
    resume: bool,
    dry_run: bool,
    processes: Processes,
    listener: TrainingListener,
    stop: StopFlag,
) -> None:
    """Check everything that can fail before the first step, and draw the picture of samples."""

    def report(done: int, total: int) -> None:
        listener.on_work("checking", done, total)
        if stop.signal is not None:
            raise KeyboardInterrupt  # there is no work yet that has to be finished first

    check_batch(settings, processes.count)
    check_cache(settings, device)
    split = find_split(data, settings)
    run.check(settings, split.describe(), resume)
    listener.on_say(split.summarise())
    if resume:
        return
    if settings.batch > len(split.train):
        raise UsageError(
            f"--batch {settings.batch}: there are only {len(split.train)} photos to train on."
            " Use a smaller one."
        )
    if settings.init is not None:
        load_initial(settings)
    samples = make_samples(split.train, settings)
    checked = check_pairs([*split.train, *split.val], on_progress=report)
    if line := describe_orientations(checked):
        listener.on_say(line)
    of_train, of_val = checked[: len(split.train)], checked[len(split.train) :]
    for warning in (
        *check_cars(split.train, of_train, "to train on"),
        *check_cars(split.val, of_val, "to measure on"),
    ):
        listener.on_say(warning)
    check_sizes(split.train, [found.size for found in of_train], settings)
    if samples.backgrounds is not None:
        samples.backgrounds.check()
    draws = itertools.chain.from_iterable(draw_batches(len(split.train), settings, range(SAMPLES_SHOWN)))
    shown_draws = itertools.islice(draws, SAMPLES_SHOWN)
    write_picture(run.samples, draw_samples([samples.make(draw) for draw in shown_draws]))
    listener.on_say(f"samples as the network sees them: {shown(run.samples)}")
    run.write_split(split.describe())
    if not dry_run:
        run.begin(settings)


def _draw_results(
    run: RunFolder, val: Sequence[Pair], training: Training, log: TensorBoardLog | None
) -> tuple[str, ...]:
    """Draw the photos on which the best weights reach the lowest Dice, and the learning curves if possible.

    Returns:
        The names of the pictures that were drawn.
    """
    run.check_place()
    pairs = [pair for pair in val if pair.id in training.state.worst]
    panels = []
    for pair, prediction in predict_pairs(
        load_model(run.best), pairs, training.device, training.state.precision
    ):
        orientation = prediction.photo.orientation
        true = read_true(pair, prediction)
        dice = count(prediction.mask, true).dice
        pixels, predicted = turn(prediction.photo.pixels, orientation), clear_ignored(prediction.mask, true)
        panels.append(Panel(pair.id, pixels, true.turned(orientation), predicted.turned(orientation), dice))
    picture = draw_panels(sorted(panels, key=lambda panel: panel.dice))
    write_picture(run.panels, picture)
    if log is not None:
        log.add_picture("worst val photos", picture, training.state.step)
    try:
        plot_curves(run.read_log(), run.curves)
    except UsageError as error:  # matplotlib is not installed; the run is complete without the curves
        training.listener.on_say(f"no {run.curves.name} was drawn: {error}")
        return (run.panels.name,)
    return run.panels.name, run.curves.name


def _call_both(
    first: Callable[[dict[str, Any]], object], second: Callable[[dict[str, Any]], object]
) -> Callable[[dict[str, Any]], object]:
    def call(line: dict[str, Any]) -> None:
        first(line)
        second(line)

    return call
