"""``carvana-batch predict``."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from carvana_batch.commands.config import ConfigurableCommand
from carvana_batch.commands.lines import command_line
from carvana_batch.commands.mask_file import check_mask_file, folder_of_mask_file, is_mask_file
from carvana_batch.commands.predict_input import STANDARD, find, split_paths, standard_input
from carvana_batch.commands.predict_options import make_options, predict_parameters
from carvana_batch.commands.reporting import Reporter, print_plan, print_report
from carvana_batch.commands.signals import stop_on_signals
from carvana_batch.errors import UsageError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.options import REVIEW_SAMPLE, REVIEW_WORST
from carvana_batch.text import counted, shown

if TYPE_CHECKING:
    from carvana_batch.engines.contract import Engine
    from carvana_batch.network.model import Model


@click.command(cls=ConfigurableCommand)
@predict_parameters
@click.pass_context
def command(
    context: click.Context,
    /,
    paths: tuple[Path, ...],
    out: Path | None,
    files_from: str | None,
    follow_links: bool,
    model: str,
    model_settings: ModelSettings,
    page: Path | None,
    limit: int | None,
    engine_name: str,
    address: str | None,
    actors: int | None,
    gpus: float | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Mask the photos in IN (a folder or one photo) and write a PNG mask for each into OUT.

    The tree below IN is mirrored: the mask of IN/a/b.jpg is OUT/a/b.png. For one photo, OUT may be the
    name of the mask's file; - stands for the standard input or output. Several photos go with -o:
    `predict in/*.jpg -o out`. Interrupted and started again with the same command, a run does only what is
    missing. A photo that cannot be masked is named at the end and in OUT/report.csv, and does not stop
    the run; the exit code is then 3.
    """
    sources, out = split_paths(paths, out, files_from)
    from_input = sources == [STANDARD]
    images = sources[0] if len(sources) == 1 and not from_input else None
    options = make_options(context, model=model, model_settings=model_settings, images=images, **values)
    if engine_name == "ray" and options.shard != (1, 1):
        raise UsageError("--engine ray shares the photos out by itself. Leave out --shard.")
    if engine_name != "ray" and (address, actors, gpus) != (None, None, None):
        raise UsageError("--address, --actors and --gpus-per-actor go with --engine ray. Give that as well.")
    mask_file = is_mask_file(sources, out)
    if as_json and out == STANDARD:
        raise UsageError("OUT - prints the mask, and --json the report. Leave one out.")
    reporter = Reporter(quiet=quiet, to_stderr=as_json or out == STANDARD)
    if from_input:
        sources = [context.with_resource(standard_input(options.pixel_limit))]
    found = find(sources, out, files_from, follow_links)
    refs = found.refs[:limit]
    if page is not None:
        from carvana_batch.review.page import check_page

        if mask_file:
            raise UsageError(f"--html needs a folder as OUT, not the file {shown(out)}.")
        check_page(page)
    if mask_file:
        check_mask_file(refs[0].path, out, options)
    else:
        from carvana_batch.output.checks import check_request
        from carvana_batch.output.other_images import describe_other_images

        check_request(refs, out, options)
    if not mask_file and (line := describe_other_images(out, (ref.key for ref in refs))):
        reporter.say(f"Warning: {line}")
    if found.ignored_line:
        reporter.say(f"passed over: {found.ignored_line}")
    if dry_run:
        print_plan(refs, out, mask_file, options, reporter, as_json)
        return

    # Importing torch takes seconds: only do it once the input is known to exist.
    from carvana_batch.network.checkpoints import load_model
    from carvana_batch.run import run

    engine = _ray_engine(reporter, model, address, actors, gpus) if engine_name == "ray" else None
    loaded = load_model(model, model_settings)
    reporter.say(f"{counted(len(refs), 'photo')}, model {_describe_model(model, loaded)}")
    folder = (
        folder_of_mask_file(refs[0], out, options.overwrite) if mask_file else contextlib.nullcontext(out)
    )
    stopping = "Stopping: finishing the photos in flight; once more leaves at once."
    with stop_on_signals(reporter, stopping) as stop, reporter, folder as root:
        report = run(refs, root, loaded, options, reporter.listener, stop, engine)
    if from_input:
        report.failures = [replace(failure, source="standard input") for failure in report.failures]
    if as_json:
        click.echo(json.dumps(report.describe()))
    print_report(report, out, reporter)
    if report.stopped_by is not None:
        # Without --overwrite, which would discard what has been done so far.
        same = [argument for argument in sys.argv[1:] if argument != "--overwrite"]
        reporter.say(f"Stopped. To go on:\n{command_line(['carvana-batch', *same])}")
    elif page is not None:
        _write_page(page, out, reporter)
    context.exit(report.exit_code)


def _ray_engine(
    reporter: Reporter, model: str, address: str | None, actors: int | None, gpus: float | None
) -> Engine:
    from carvana_batch.engines.dispatch import Dispatcher
    from carvana_batch.engines.ray import RayCrew

    return Dispatcher(RayCrew(model, address, actors, gpus), reporter.say)


def _write_page(page: Path, out: Path, reporter: Reporter) -> None:
    """Write the page of a review, and say where it is."""
    from carvana_batch.review.page import write_page
    from carvana_batch.review.selection import read_finished_run, select

    run = read_finished_run(out)
    written = write_page(page, run, select(run.masked, REVIEW_WORST, REVIEW_SAMPLE))
    reporter.say(f"Page: {shown(written.page)}")


def _describe_model(given: str, model: Model) -> str:
    """The name of bundled weights; of others also where they come from, their digest and validation Dice."""
    if given == model.name:
        return model.name
    from carvana_batch.network.model import OWN_WEIGHTS

    source = "" if given == "auto" else f" from {shown(given)}"
    words = [f"{model.name}{source}", f"sha256 {model.digest[:16]}"]
    if model.kind != OWN_WEIGHTS:
        words.append(model.kind)
    with contextlib.suppress(KeyError, TypeError, ValueError):  # other headers may say anything
        words.append(f"val Dice {json.loads(model.notes['val'])['dice']:.4f}")
    return ", ".join(words)
