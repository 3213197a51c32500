"""The options of ``predict``, and what they make together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from carvana_batch.commands.buckets import PathOrUrl
from carvana_batch.commands.command import given_values
from carvana_batch.commands.completion import complete_device, complete_file, complete_model, names_of_weights
from carvana_batch.commands.model_options import is_default, model_options
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
from carvana_batch.errors import UsageError
from carvana_batch.model_settings import NO_SETTINGS, ModelSettings, settings_beside
from carvana_batch.options import (
    DEFAULT_DECODE_TIMEOUT,
    DEFAULT_OVERLAP,
    DEFAULT_PIXEL_LIMIT,
    DEFAULT_THRESHOLD,
    EXTRA_FILES,
    PRECISION_NAMES,
    Options,
)

PARAMETERS: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
    click.argument("paths", metavar="IN... OUT", nargs=-1, type=PathOrUrl()),
    click.option(
        "-o",
        "--out",
        type=PathOrUrl(),
        metavar="OUT",
        help="OUT, if it is not the last argument; needed for several photos, as in `in/*.jpg -o out`.",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A TOML file of options, such as `mask-bits = 8`; options given here win.",
    ),
    click.option(
        "--files-from",
        metavar="FILE|-",
        shell_complete=complete_file,
        help="Mask the photos named in FILE, one path a line; then give OUT alone. Or FILE has the decisions"
        " of a review: with IN and OUT, mask the photos whose masks were rejected.",
    ),
    click.option(
        "--follow-links", is_flag=True, help="Follow links to folders and links that lead out of IN."
    ),
    click.option(
        "--model",
        default="auto",
        show_default=True,
        metavar="NAME|FILE|RUN",
        shell_complete=complete_model,
        help="Bundled weights, a weights file, or the folder of a training run; auto has masks of the weights"
        " for photos of a studio checked, and if need be replaced, by those for photos of any kind.",
    ),
    model_options,
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda|cuda:N|mps",
        shell_complete=complete_device,
        help="What runs the network.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISION_NAMES),
        default="auto",
        show_default=True,
        help="Number format of the network; auto is fp16 on a GPU; on a CPU bf16 if it has instructions for"
        " it, else fp32.",
    ),
    click.option(
        "--memory",
        type=Memory(),
        help="Most memory for the network.  [default: 6GB of a GPU, half of a CPU's free memory]",
    ),
    click.option(
        "--size",
        type=NetworkSize(),
        default="auto",
        show_default=True,
        help="Size in which the network sees photos; masks have that of the photo. auto enlarges or reduces"
        " photos to the scale that the weights were trained for, if they differ much from it.",
    ),
    click.option(
        "--tile",
        type=TileSize(),
        default="auto",
        show_default=True,
        help="Size of the tiles in pixels; auto takes the fewest that fit the memory.",
    ),
    click.option(
        "--overlap",
        type=click.IntRange(min=0),
        default=DEFAULT_OVERLAP,
        show_default=True,
        help="Pixels that neighbouring tiles share at least.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        help="Tiles that go through the network together.  [default: what fits the memory, 1 on a CPU]",
    ),
    click.option(
        "--tta",
        type=click.Choice(["none", "flip"]),
        default="none",
        show_default=True,
        help="Also mask the mirrored photo and average: twice the time.",
    ),
    click.option(
        "--threshold",
        type=Finite(0, 1),
        default=DEFAULT_THRESHOLD,
        show_default=True,
        help="Probability above which a pixel is car.",
    ),
    click.option(
        "--clean",
        type=click.Choice(["auto", "none"]),
        default="auto",
        show_default=True,
        help="auto removes specks from masks: parts of less than 1 % of the largest one, and holes of less"
        " than 0.01 %. Antennas near the car stay.",
    ),
    click.option(
        "--mask-bits",
        type=click.Choice(["1", "8"]),
        default="1",
        show_default=True,
        help="Bits a pixel of the PNG masks: 1, or 8 with values 0 and 255.",
    ),
    click.option(
        "--save",
        "extras",
        multiple=True,
        type=click.Choice(sorted(EXTRA_FILES.keys() - {"background"})),
        help="Also write into OUT/_KIND: prob (16-bit TIFF), overlay, panel (photo beside mask),"
        " cutout (RGBA), recolour (with --colour); can be repeated.",
    ),
    click.option(
        "--colour",
        type=Colour(),
        help="New colour of the paint for --save recolour, such as '#b00020'; light and shade stay.",
    ),
    click.option(
        "--background",
        type=ColourOrFile(),
        help="Also write each car on another ground, a picture or a colour, with a soft edge, into"
        " OUT/_background.",
    ),
    click.option("--shadow", is_flag=True, help="Darken the ground of --background below the car."),
    click.option(
        "--rle",
        "rle_file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Also write the competition's run-length rows: .csv, .csv.gz or .zip; those of this --shard.",
    ),
    click.option(
        "--html",
        "page",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Also write the page of `carvana-batch review`, to look at the masks.",
    ),
    click.option(
        "--gt",
        "truth",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="True masks: report each photo's Dice.",
    ),
    car_value_option("the masks of --gt"),
    ignore_value_option("the masks of --gt"),
    click.option(
        "--exif",
        type=click.Choice(["ignore", "apply"]),
        default="ignore",
        show_default=True,
        help="Masks lie on the stored pixels, or are turned upright by the EXIF orientation. The network sees"
        " photos upright in either case.",
    ),
    click.option(
        "--damaged",
        type=click.Choice(["refuse", "accept"]),
        default="refuse",
        show_default=True,
        help="Photos with damaged picture data fail, or are masked as far as they can be decoded,"
        " with a note.",
    ),
    click.option(
        "--pixel-limit",
        type=click.IntRange(min=1),
        default=DEFAULT_PIXEL_LIMIT,
        show_default=True,
        help="Refuse photos with more pixels, before decoding them.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        help="Processes that decode photos; 0 decodes in the main one.  [default: by the number of cores]",
    ),
    click.option(
        "--decode-timeout",
        type=Finite(10, 86400),
        default=DEFAULT_DECODE_TIMEOUT,
        show_default=True,
        help="Seconds after which a photo that is not decoded has failed; a process that hangs"
        " over it is ended.",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="Mask only the first so many photos."),
    click.option(
        "--shard",
        type=Shard(),
        default="1/1",
        show_default=True,
        help="Do part i of n; the parts may run at the same time and share OUT.",
    ),
    click.option(
        "--engine",
        "engine_name",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="What masks the photos: this process, or workers on the machines of a Ray cluster, which share"
        " IN and OUT under the same paths. Either goes on with what the other began.",
    ),
    click.option(
        "--address",
        metavar="auto|HOST:PORT",
        help="The Ray cluster.  [default: RAY_ADDRESS, or that of this machine, which is started if needed]",
    ),
    click.option(
        "--actors",
        type=click.IntRange(min=1),
        help="Number of Ray's workers.  [default: one for each GPU, or for each machine if there are none]",
    ),
    click.option(
        "--gpus-per-actor",
        "gpus",
        type=Finite(0, 64),
        help="GPUs, or part of one, for each of Ray's workers.  [default: 1 if there are any]",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Mask all photos again and replace their masks; masks of other photos in OUT stay.",
    ),
    click.option(
        "--verify",
        is_flag=True,
        help="Also compare the masks that are done with their checksums, and make damaged ones again.",
    ),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
    click.option("--quiet", is_flag=True, help="Print nothing but errors."),
    click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object at the end; messages go to stderr."
    ),
]
"""Arguments and options, in the order of the help text."""


def predict_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the function of the command with its arguments and options."""
    for parameter in reversed(PARAMETERS):
        function = parameter(function)
    return function


def make_options(context: click.Context, model_settings: ModelSettings) -> Options:
    """Make the options of a run of those of the command, and of the settings beside the weights.

    Args:
        context: of the command, with its parameters.
        model_settings: those of them that concern a model of the user's own.

    Raises:
        UsageError: some of them do not go together.
    """
    values = context.params
    if (values["colour"] is None) == ("recolour" in values["extras"]):
        raise UsageError("--save recolour and --colour belong together: --save recolour --colour '#b00020'.")
    if values["truth"] is None and (values["car_values"] or values["ignored_values"]):
        raise UsageError("--car-value and --ignore-value are for the masks of --gt. Give --gt as well.")
    background = values["background"]
    if values["shadow"] and background is None:
        raise UsageError("--shadow is for the pictures of --background. Give that as well.")
    is_name = values["model"] in names_of_weights()  # settings that lie here do not concern those weights
    beside = NO_SETTINGS if is_name else settings_beside(Path(values["model"]))[0]
    for name in ("overlap", "threshold"):
        if is_default(context, name) and getattr(beside, name) is not None:
            values = values | {name: getattr(beside, name)}
    return Options(
        device=values["device"],
        precision=values["precision"],
        memory=values["memory"],
        size=values["size"],
        tile=values["tile"],
        overlap=values["overlap"],
        batch=values["batch"],
        threshold=values["threshold"],
        flip=values["tta"] == "flip",
        clean=values["clean"] == "auto",
        extras=tuple(sorted({*values["extras"], *(["background"] if background is not None else [])})),
        colour=values["colour"],
        background=background,
        shadow=values["shadow"],
        mask_bits=int(values["mask_bits"]),
        apply_exif=values["exif"] == "apply",
        accept_damage=values["damaged"] == "accept",
        pixel_limit=values["pixel_limit"],
        workers=values["workers"],
        decode_timeout=values["decode_timeout"],
        rle_file=values["rle_file"],
        given=given_values(context),
        truth=values["truth"],
        car_values=values["car_values"],
        ignored_values=values["ignored_values"],
        shard=values["shard"],
        overwrite=values["overwrite"],
        verify=values["verify"],
        model_settings=model_settings.over(beside),
    )
