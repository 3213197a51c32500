"""``carvana-batch predict``."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from carvana_batch.commands.parameters import (
    Colour,
    ColourOrFile,
    Finite,
    Memory,
    NetworkSize,
    Shard,
    TileSize,
    car_value_option,
    ignore_value_option,
)
from carvana_batch.commands.reporting import Reporter, print_plan, print_report
from carvana_batch.commands.signals import stop_on_signals
from carvana_batch.errors import UsageError
from carvana_batch.files import check_target, move_to_free_place, sync_folder, temporary_prefix
from carvana_batch.inputs.decisions import is_decisions
from carvana_batch.inputs.find import Found, find_images, find_rejected, read_file_list
from carvana_batch.inputs.formats import IMAGE_SUFFIXES
from carvana_batch.options import (
    DEFAULT_DECODE_TIMEOUT,
    DEFAULT_OVERLAP,
    DEFAULT_PIXEL_LIMIT,
    DEFAULT_THRESHOLD,
    EXTRA_FILES,
    PRECISION_NAMES,
    REVIEW_SAMPLE,
    REVIEW_WORST,
    Options,
)
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.text import counted, shown
from carvana_batch.values import ImageRef

if TYPE_CHECKING:
    from carvana_batch.engines.contract import Engine
    from carvana_batch.network.checkpoints import Model


@click.command()
@click.argument("source", metavar="IN", required=False, type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", required=False, type=click.Path(path_type=Path))
@click.option(
    "--files-from",
    metavar="FILE|-",
    help="Mask the photos named in FILE, one path a line; then give OUT alone. Or FILE has the decisions of a"
    " review: with IN and OUT, mask the photos whose masks were rejected.",
)
@click.option("--follow-links", is_flag=True, help="Follow links to folders and links that lead out of IN.")
@click.option(
    "--model",
    default="auto",
    show_default=True,
    metavar="NAME|FILE|RUN",
    help="Bundled weights, a weights file, or the folder of a training run; auto has masks of the weights for"
    " photos of a studio checked, and if need be replaced, by those for photos of any kind.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N|mps",
    help="What runs the network.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISION_NAMES),
    default="auto",
    show_default=True,
    help="Number format of the network; auto is fp16 on a GPU; on a CPU bf16 if it has instructions for it,"
    " else fp32.",
)
@click.option(
    "--memory",
    type=Memory(),
    help="Most memory for the network.  [default: 6GB of a GPU, half of a CPU's free memory]",
)
@click.option(
    "--size",
    type=NetworkSize(),
    default="auto",
    show_default=True,
    help="Size in which the network sees photos; masks have that of the photo. auto enlarges or reduces"
    " photos to the scale that the weights were trained for, if they differ much from it.",
)
@click.option(
    "--tile",
    type=TileSize(),
    default="auto",
    show_default=True,
    help="Size of the tiles in pixels; auto takes the fewest that fit the memory.",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    default=DEFAULT_OVERLAP,
    show_default=True,
    help="Pixels that neighbouring tiles share at least.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Tiles that go through the network together.  [default: what fits the memory, 1 on a CPU]",
)
@click.option(
    "--tta",
    type=click.Choice(["none", "flip"]),
    default="none",
    show_default=True,
    help="Also mask the mirrored photo and average: twice the time.",
)
@click.option(
    "--threshold",
    type=Finite(0, 1),
    default=DEFAULT_THRESHOLD,
    show_default=True,
    help="Probability above which a pixel is car.",
)
@click.option(
    "--clean",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto removes specks from masks: parts of less than 1 % of the largest one, and holes of less than"
    " 0.01 %. Antennas near the car stay.",
)
@click.option(
    "--mask-bits",
    type=click.Choice(["1", "8"]),
    default="1",
    show_default=True,
    help="Bits a pixel of the PNG masks: 1, or 8 with values 0 and 255.",
)
@click.option(
    "--save",
    "extras",
    multiple=True,
    type=click.Choice(sorted(EXTRA_FILES.keys() - {"background"})),
    help="Also write into OUT/_KIND: prob (16-bit TIFF), overlay, panel (photo beside mask),"
    " cutout (RGBA), recolour (with --colour); can be repeated.",
)
@click.option(
    "--colour",
    type=Colour(),
    help="New colour of the paint for --save recolour, such as '#b00020'; light and shade stay.",
)
@click.option(
    "--background",
    type=ColourOrFile(),
    help="Also write each car on another ground, a picture or a colour, with a soft edge, into"
    " OUT/_background.",
)
@click.option(
    "--rle",
    "rle_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the competition's run-length rows: .csv, .csv.gz or .zip; those of this --shard.",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the page of `carvana-batch review`, to look at the masks.",
)
@click.option(
    "--gt",
    "truth",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="True masks: report each photo's Dice.",
)
@car_value_option("the masks of --gt")
@ignore_value_option("the masks of --gt")
@click.option(
    "--exif",
    type=click.Choice(["ignore", "apply"]),
    default="ignore",
    show_default=True,
    help="Masks lie on the stored pixels, or are turned upright by the EXIF orientation. The network sees"
    " photos upright in either case.",
)
@click.option(
    "--damaged",
    type=click.Choice(["refuse", "accept"]),
    default="refuse",
    show_default=True,
    help="Photos with damaged picture data fail, or are masked as far as they can be decoded, with a note.",
)
@click.option(
    "--pixel-limit",
    type=click.IntRange(min=1),
    default=DEFAULT_PIXEL_LIMIT,
    show_default=True,
    help="Refuse photos with more pixels, before decoding them.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that decode photos; 0 decodes in the main one.  [default: by the number of cores]",
)
@click.option(
    "--decode-timeout",
    type=Finite(10, 86400),
    default=DEFAULT_DECODE_TIMEOUT,
    show_default=True,
    help="Seconds after which a photo that is not decoded has failed; a process that hangs over it is ended.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Mask only the first so many photos.")
@click.option(
    "--shard",
    type=Shard(),
    default="1/1",
    show_default=True,
    help="Do part i of n; the parts may run at the same time and share OUT.",
)
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="What masks the photos: this process, or workers on the machines of a Ray cluster, which share IN"
    " and OUT under the same paths. Either goes on with what the other began.",
)
@click.option(
    "--address",
    metavar="auto|HOST:PORT",
    help="The Ray cluster.  [default: RAY_ADDRESS, or that of this machine, which is started if needed]",
)
@click.option(
    "--actors",
    type=click.IntRange(min=1),
    help="Number of Ray's workers.  [default: one for each GPU, or for each machine if there are none]",
)
@click.option(
    "--gpus-per-actor",
    "gpus",
    type=Finite(0, 64),
    help="GPUs, or part of one, for each of Ray's workers.  [default: 1 if there are any]",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Mask all photos again and replace their masks; masks of other photos in OUT stay.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Also compare the masks that are done with their checksums, and make damaged ones again.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end; messages go to stderr."
)
@click.pass_context
def command(
    context: click.Context,
    /,
    source: Path | None,
    out: Path | None,
    files_from: str | None,
    follow_links: bool,
    model: str,
    device: str,
    precision: str,
    memory: int | None,
    size: tuple[int, int] | Literal["native"] | None,
    tile: tuple[int, int] | None,
    overlap: int,
    batch: int | None,
    tta: str,
    threshold: float,
    clean: str,
    mask_bits: str,
    extras: tuple[str, ...],
    colour: tuple[int, int, int] | None,
    background: tuple[int, int, int] | Path | None,
    rle_file: Path | None,
    page: Path | None,
    truth: Path | None,
    car_values: tuple[int, ...],
    ignored_values: tuple[int, ...],
    exif: str,
    damaged: str,
    pixel_limit: int,
    workers: int | None,
    decode_timeout: float,
    limit: int | None,
    shard: tuple[int, int],
    engine_name: str,
    address: str | None,
    actors: int | None,
    gpus: float | None,
    overwrite: bool,
    verify: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
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
    if (colour is None) == ("recolour" in extras):
        raise UsageError("--save recolour and --colour belong together: --save recolour --colour '#b00020'.")
    if truth is None and (car_values or ignored_values):
        raise UsageError("--car-value and --ignore-value are for the masks of --gt. Give --gt as well.")
    if engine_name == "ray" and shard != (1, 1):
        raise UsageError("--engine ray shares the photos out by itself. Leave out --shard.")
    if engine_name != "ray" and (address, actors, gpus) != (None, None, None):
        raise UsageError("--address, --actors and --gpus-per-actor go with --engine ray. Give that as well.")
    options = Options(
        device=device,
        precision=precision,
        memory=memory,
        size=size,
        tile=tile,
        overlap=overlap,
        batch=batch,
        threshold=threshold,
        flip=tta == "flip",
        clean=clean == "auto",
        extras=tuple(sorted({*extras, *(["background"] if background is not None else [])})),
        colour=colour,
        background=background,
        mask_bits=int(mask_bits),
        apply_exif=exif == "apply",
        accept_damage=damaged == "accept",
        pixel_limit=pixel_limit,
        workers=workers,
        decode_timeout=decode_timeout,
        rle_file=rle_file,
        images=source,
        truth=truth,
        car_values=car_values,
        ignored_values=ignored_values,
        shard=shard,
        overwrite=overwrite,
        verify=verify,
    )
    found = _find(source, out, files_from, follow_links)
    refs = found.refs[:limit]
    mask_file = _is_mask_file(source, out)
    if page is not None:
        from carvana_batch.review.page import check_page

        if mask_file:
            raise UsageError(f"--html needs a folder as OUT, not the file {shown(out)}.")
        check_page(page)
    if mask_file:
        _check_mask_file(refs[0].path, out, options)
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
    folder = _folder_of_mask_file(refs[0], out, overwrite) if mask_file else contextlib.nullcontext(out)
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


def _is_mask_file(source: Path | None, out: Path) -> bool:
    """Whether OUT is the file of the mask of a single photo IN, rather than a folder."""
    suffix = out.suffix.lower()
    if source is None or not source.is_file() or suffix not in IMAGE_SUFFIXES or out.is_dir():
        return False
    if suffix != ".png":
        raise UsageError(f"Masks are PNG files: name the mask {shown(out.with_suffix('.png'))}.")
    return True


def _check_mask_file(photo: Path, out: Path, options: Options) -> None:
    if options.extras:
        raise UsageError(f"--save and --background need a folder as OUT, not the file {shown(out)}.")
    check_target(out)
    if out.exists() and out.samefile(photo):
        raise UsageError(f"IN and OUT are the same file {shown(out)}. Choose another OUT.")
    if out.exists() and not options.overwrite:
        raise UsageError(
            f"{shown(out)} is there already. Name another file, or use --overwrite to replace it."
        )


@contextlib.contextmanager
def _folder_of_mask_file(ref: ImageRef, out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary out folder beside a single mask file, from which the mask is moved at the end."""
    target = Path(os.path.realpath(out))
    with temporary_folder(target.parent, temporary_prefix()) as folder:
        yield folder
        mask = folder / f"{ref.key}.png"
        if mask.exists() and overwrite:
            mask.replace(target)
            sync_folder(target.parent)
        elif mask.exists():
            move_to_free_place(mask, target)
