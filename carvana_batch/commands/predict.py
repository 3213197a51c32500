"""``carvana-batch predict``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from carvana_batch.commands.buckets import Place, enter_buckets
from carvana_batch.commands.config import ConfigurableCommand
from carvana_batch.commands.lines import command_line
from carvana_batch.commands.mask_file import check_mask_file, folder_of_mask_file, is_mask_file
from carvana_batch.commands.predict_input import STANDARD, find, open_photos, split_paths, standard_input
from carvana_batch.commands.predict_options import make_options, predict_parameters
from carvana_batch.commands.reporting import WARNING, Reporter, print_plan, print_report
from carvana_batch.commands.signals import STOPPING, stop_on_signals
from carvana_batch.errors import UsageError
from carvana_batch.garbage import search_for_garbage_paused
from carvana_batch.model_settings import ModelSettings
from carvana_batch.options import REVIEW_SAMPLE, REVIEW_WORST, Options
from carvana_batch.output.remote import Remote
from carvana_batch.text import counted, shown
from carvana_batch.values import ImageRef

if TYPE_CHECKING:
    from carvana_batch.archives.archive import Archive
    from carvana_batch.engines.contract import Engine
    from carvana_batch.network.model import Model


@dataclass(frozen=True)
class Request:
    """What a run is to do, once its photos are found.

    Attributes:
        refs: the photos.
        out: the local out folder; or the file of the mask of a single photo.
        is_mask_file: which of these ``out`` is.
        from_input: the photo is the standard input.
        options: of the run.
        remote: what to do about photos or masks in buckets.
        archive: what holds the photos; None if they are files of their own.
    """

    refs: Sequence[ImageRef]
    out: Path
    is_mask_file: bool
    from_input: bool
    options: Options
    remote: Remote
    archive: Archive | None


@click.command(cls=ConfigurableCommand)
@predict_parameters
@click.pass_context
def command(
    context: click.Context,
    /,
    paths: tuple[Place, ...],
    out: Place | None,
    files_from: str | None,
    model: str,
    model_settings: ModelSettings,
    page: Path | None,
    engine_name: str,
    address: str | None,
    actors: int | None,
    gpus: float | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **_options: Any,
) -> None:
    """Mask the photos in IN (a folder, a photo, or a .zip or .tar) and write a PNG mask for each into OUT.

    Folders may also be in a bucket, such as s3://bucket/folder.

    The tree below IN is mirrored: the mask of IN/a/b.jpg is OUT/a/b.png. For one photo, OUT may be the
    name of the mask's file; - stands for the standard input or output. Several photos go with -o:
    `predict in/*.jpg -o out`. Interrupted and started again with the same command, a run does only what is
    missing. A photo that cannot be masked is named at the end and in OUT/report.csv, and does not stop
    the run; the exit code is then 3.
    """
    sources, given_out = split_paths(paths, out, files_from)
    options = make_options(context, model_settings)
    if engine_name == "ray" and options.shard != (1, 1):
        raise UsageError("--engine ray shares the photos out by itself. Leave out --shard.")
    if engine_name != "ray" and (address, actors, gpus) != (None, None, None):
        raise UsageError("--address, --actors and --gpus-per-actor go with --engine ray. Give that as well.")
    if as_json and given_out == STANDARD:
        raise UsageError("OUT - prints the mask, and --json the report. Leave one out.")
    reporter = Reporter(quiet=quiet, to_stderr=as_json or given_out == STANDARD)
    request = prepare(context, sources, given_out, options, reporter)
    refs, out, options, remote = request.refs, request.out, request.options, request.remote
    if dry_run:
        print_plan(refs, out, request.is_mask_file, options, reporter, as_json, remote)
        return

    # Importing torch takes seconds: only do it once the input is known to exist.
    with search_for_garbage_paused():
        from carvana_batch.network.checkpoints import load_model
        from carvana_batch.run import run

        engine = _ray_engine(reporter, model, address, actors, gpus) if engine_name == "ray" else None
        loaded = load_model(model, model_settings)
    reporter.say(f"{counted(len(refs), 'photo')}, model {_describe_model(model, loaded)}")
    folder = (
        folder_of_mask_file(refs[0], out, options.overwrite)
        if request.is_mask_file
        else contextlib.nullcontext(out)
    )
    with stop_on_signals(reporter, STOPPING) as stop, reporter, folder as root:
        report = run(refs, root, loaded, options, reporter.listener, stop, engine, remote, request.archive)
    if request.from_input:
        report.failures = [replace(failure, source="standard input") for failure in report.failures]
    if as_json:
        click.echo(json.dumps(report.describe()))
    print_report(report, given_out, reporter, request.is_mask_file)
    if report.stopped_by is not None:
        # Without --overwrite, which would discard what has been done so far.
        same = [argument for argument in sys.argv[1:] if argument != "--overwrite"]
        reporter.say(f"Stopped. To go on:\n{command_line(['carvana-batch', *same])}")
    elif page is not None:
        write_page_of_run(page, out, reporter)
    context.exit(report.exit_code)


def prepare(
    context: click.Context, sources: list[Place], given_out: Place, options: Options, reporter: Reporter
) -> Request:
    """Find the photos of a run and check whether it can begin, before a model is loaded.

    Archives and buckets are entered until the context ends. The reporter gets their names.

    Args:
        context: of the command, whose other parameters are followed.
        sources: what IN is; empty if photos are listed.
        given_out: OUT.
        options: of the run.
        reporter: prints what the user should see before the run begins.

    Raises:
        CarvanaBatchError: there are no photos, or the run cannot begin.
    """
    values = context.params
    follow_links, page = values["follow_links"], values["page"]
    archive = open_photos(context, sources, given_out, options.pixel_limit, values["engine_name"])
    if archive is not None:
        sources = [archive.folder]
    places = enter_buckets(context, sources, given_out, reporter.say)
    out = places.out
    in_words, with_names = reporter.in_words, (archive or places.remote).in_words
    reporter.in_words = lambda text: in_words(with_names(text))
    from_input = places.sources == [STANDARD]
    mask_file = is_mask_file(places.sources, out)
    if from_input:
        found = find([context.with_resource(standard_input(options.pixel_limit))], out, None, follow_links)
    else:
        found = find(places.sources, out, values["files_from"], follow_links, archive, options.overwrite)
        if archive is None and len(places.sources) == 1:
            options = replace(options, images=places.sources[0])
    refs = found.refs[: values["limit"]]
    if mask_file and page is not None:
        raise UsageError(f"--html needs a folder as OUT, not the file {shown(out)}.")
    lines = [f"passed over: {found.ignored_line}"] if found.ignored_line else []
    if mask_file:
        check_mask_file(refs[0].path, out, options)
    else:
        lines = check_folder(refs, out, options, page) + lines
    for line in lines:
        reporter.say(line)
    return Request(refs, out, mask_file, from_input, options, places.remote, archive)


def check_folder(refs: Sequence[ImageRef], out: Path, options: Options, page: Path | None) -> list[str]:
    """Check whether photos can be masked into the folder ``out``, before a model is loaded.

    Returns:
        Lines that the user should see before the run begins.

    Raises:
        UsageError: they cannot, or the page cannot be written.
    """
    from carvana_batch.output.checks import check_request
    from carvana_batch.output.other_images import describe_other_images

    if page is not None:
        from carvana_batch.review.page import check_page

        check_page(page)
    check_request(refs, out, options)
    line = describe_other_images(out, (ref.key for ref in refs))
    return [f"{WARNING}{line}"] if line else []


def _ray_engine(
    reporter: Reporter, model: str, address: str | None, actors: int | None, gpus: float | None
) -> Engine:
    from carvana_batch.engines.dispatch import Dispatcher
    from carvana_batch.engines.ray import RayCrew

    return Dispatcher(RayCrew(model, address, actors, gpus), reporter.say)


def write_page_of_run(page: Path, out: Path, reporter: Reporter) -> None:
    """Write the page of a review, and say where it is."""
    from carvana_batch.review.page import write_page
    from carvana_batch.review.selection import read_finished_run, select

    run = read_finished_run(out)
    written = write_page(page, run, select(run.masked, REVIEW_WORST, REVIEW_SAMPLE))
    reporter.say(f"Page: {shown(written.page)}")


def _describe_model(given: str, model: Model) -> str:
    """The name of bundled weights; of others also where they come from, their digest and validation Dice."""
    from carvana_batch.network import BUNDLED_WEIGHTS
    from carvana_batch.network.model import OWN_WEIGHTS

    if given == model.name or given in BUNDLED_WEIGHTS:
        return given
    source = "" if given == "auto" else f" from {shown(given)}"
    words = [f"{model.name}{source}", f"sha256 {model.digest[:16]}"]
    if model.kind != OWN_WEIGHTS:
        words.append(model.kind)
    with contextlib.suppress(KeyError, TypeError, ValueError):  # other headers may say anything
        words.append(f"val Dice {json.loads(model.notes['val'])['dice']:.4f}")
    return ", ".join(words)
