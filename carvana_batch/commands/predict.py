"""``carvana-batch predict``."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from carvana_batch.commands.mask_file import check_mask_file, folder_of_mask_file, is_mask_file
from carvana_batch.commands.predict_options import make_options, predict_parameters
from carvana_batch.commands.reporting import Reporter, print_plan, print_report
from carvana_batch.commands.signals import stop_on_signals
from carvana_batch.errors import UsageError
from carvana_batch.inputs.decisions import is_decisions
from carvana_batch.inputs.find import Found, find_images, find_rejected, read_file_list
from carvana_batch.options import REVIEW_SAMPLE, REVIEW_WORST
from carvana_batch.text import counted, shown

if TYPE_CHECKING:
    from carvana_batch.engines.contract import Engine
    from carvana_batch.network.checkpoints import Model


@click.command()
@predict_parameters
@click.pass_context
def command(
    context: click.Context,
    /,
    source: Path | None,
    out: Path | None,
    files_from: str | None,
    follow_links: bool,
    model: str,
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
    name of the mask's file. Interrupted and started again with the same command, a run does only what is
    missing. A photo that cannot be masked is named at the end and in OUT/report.csv, and does not stop
    the run; the exit code is then 3.
    """
    if files_from is not None and out is None:
        source, out = None, source
    listed = files_from is not None and source is not None
    if out is None or (source is None and files_from is None) or (listed and not _has_decisions(files_from)):
        raise UsageError(
            "Give IN and OUT, as in `carvana-batch predict in/ out/`, or --files-from FILE and OUT; all three"
            " only if FILE has the decisions of a review."
        )
    options = make_options(images=source, **values)
    if engine_name == "ray" and options.shard != (1, 1):
        raise UsageError("--engine ray shares the photos out by itself. Leave out --shard.")
    if engine_name != "ray" and (address, actors, gpus) != (None, None, None):
        raise UsageError("--address, --actors and --gpus-per-actor go with --engine ray. Give that as well.")
    found = _find(source, out, files_from, follow_links)
    refs = found.refs[:limit]
    mask_file = is_mask_file(source, out)
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
    reporter = Reporter(quiet=quiet, to_stderr=as_json)
    if not mask_file and (line := describe_other_images(out, (ref.key for ref in refs))):
        reporter.say(f"Warning: {line}")
    if found.ignored_line:
        reporter.say(f"passed over: {found.ignored_line}")
    if dry_run:
        print_plan(refs, out, mask_file, options, reporter)
        return

    # Importing torch takes seconds: only do it once the input is known to exist.
    from carvana_batch.network.checkpoints import load_model
    from carvana_batch.run import run

    engine = _ray_engine(reporter, model, address, actors, gpus) if engine_name == "ray" else None
    loaded = load_model(model)
    reporter.say(f"{counted(len(refs), 'photo')}, model {_describe_model(model, loaded)}")
    folder = (
        folder_of_mask_file(refs[0], out, options.overwrite) if mask_file else contextlib.nullcontext(out)
    )
    stopping = "Stopping: finishing the photos in flight; once more leaves at once."
    with stop_on_signals(reporter, stopping) as stop, reporter, folder as root:
        report = run(refs, root, loaded, options, reporter.listener, stop, engine)
    if as_json:
        click.echo(json.dumps(report.describe()))
    print_report(report, out, reporter)
    if report.stopped_by is not None:
        # Without --overwrite, which would discard what has been done so far.
        same = [argument for argument in sys.argv[1:] if argument != "--overwrite"]
        reporter.say(f"Stopped. To go on: {shown(shlex.join(['carvana-batch', *same]))}")
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
    words = [f"{model.name} from {shown(given)}", f"sha256 {model.digest[:16]}"]
    with contextlib.suppress(KeyError, TypeError, ValueError):  # other headers may say anything
        words.append(f"val Dice {json.loads(model.notes['val'])['dice']:.4f}")
    return ", ".join(words)


def _find(source: Path | None, out: Path, files_from: str | None, follow_links: bool) -> Found:
    if source is None:
        if files_from == "-":
            return read_file_list(sys.stdin.buffer)
        return read_file_list(Path(str(files_from)))
    if source.is_dir() and out.resolve() == source.resolve():
        raise UsageError(
            f"IN and OUT are both {shown(source)}: masks must not lie among the photos. Choose another OUT."
        )
    if files_from is not None:
        return find_rejected(source, Path(files_from), follow_links=follow_links, exclude=out)
    return find_images(source, follow_links=follow_links, exclude=out)


def _has_decisions(files_from: str | None) -> bool:
    """Whether the file is there and has the decisions of a review."""
    try:
        return files_from not in (None, "-") and is_decisions(Path(str(files_from)).read_bytes())
    except OSError:
        return False
