"""``carvana-batch train``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from carvana_batch.commands.command import Command
from carvana_batch.commands.completion import (
    complete_device,
    complete_file,
    complete_folder,
    complete_model,
    complete_network,
)
from carvana_batch.commands.lines import command_line
from carvana_batch.commands.parameters import Finite, MaskValue, NetworkName, PhotoSize, join_values
from carvana_batch.commands.signals import stop_on_signals
from carvana_batch.commands.training_options import collect_values
from carvana_batch.commands.training_progress import TrainingReporter, describe_best
from carvana_batch.errors import UsageError
from carvana_batch.options import PRECISION_NAMES
from carvana_batch.text import shown
from carvana_batch.training.settings import (
    CACHE_NAMES,
    LOSS_NAMES,
    OPTIMIZER_NAMES,
    PRESETS,
    SCHEDULE_NAMES,
    AugmentationLimits,
    TrainingSettings,
    make_settings,
)

DEFAULTS = TrainingSettings()
LIMITS = AugmentationLimits()


def _setting(
    name: str, kind: Any, text: str, **attributes: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a click option for a setting, with the default of ``TrainingSettings``."""
    field = name.replace("-", "_")
    default = getattr(DEFAULTS if hasattr(DEFAULTS, field) else LIMITS, field)
    if name == "size":
        default = "full"
    return click.option(
        f"--{name}", type=kind, default=default, show_default=default is not None, help=text, **attributes
    )


SHARE = Finite(0, 1)
POSITIVE = Finite(min=0, min_open=True)
COUNT = click.IntRange(min=1)
AT_LEAST_ZERO = Finite(min=0)


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A TOML file of settings, such as config.toml of another run; options given here win.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in RUN, with its settings.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check DATA and settings, write samples.jpg and split.json, and end.",
)
@_setting(
    "val",
    str,
    "A folder like DATA with other cars, to measure on.",
    metavar="DIR",
    shell_complete=complete_folder,
)
@_setting(
    "val-cars",
    str,
    "Measure on the cars of DATA that this file names, one a line.",
    metavar="FILE",
    shell_complete=complete_file,
)
@_setting(
    "val-fraction",
    Finite(0, 1, min_open=True, max_open=True),
    "Otherwise: measure on this part of the cars of DATA, chosen by --seed.",
)
@_setting(
    "also",
    str,
    "Another folder like DATA to train on; or the OUT of predict, of whose masks those are taken that the"
    " decisions of a review, OUT/decisions.csv, accept. Can be repeated.",
    metavar="DIR",
    multiple=True,
    shell_complete=complete_folder,
)
@_setting(
    "car-value",
    MaskValue(),
    "Grey value or palette index that is car in the masks; all others are background. Can be repeated.",
    metavar="N|N-M",
    multiple=True,
    callback=join_values,
)
@_setting(
    "ignore-value",
    MaskValue(),
    "Value of pixels of the masks that are neither, and are left out. Can be repeated.",
    metavar="N|N-M",
    multiple=True,
    callback=join_values,
)
@_setting(
    "model", NetworkName(), "The network; `carvana-batch models` lists them.", shell_complete=complete_network
)
@_setting(
    "init",
    str,
    "Weights to start from  [default: random ones]",
    metavar="NAME|FILE|RUN",
    shell_complete=complete_model,
)
@_setting("size", PhotoSize(), "Size that photos and masks are averaged down to.")
@_setting("crop", PhotoSize(), "Size of random crops.", metavar="WxH")
@_setting(
    "crop-share", SHARE, "Part of the steps that see crops rather than whole photos, if --crop is given."
)
@_setting("epochs", POSITIVE, "Times that every photo is seen; may be a fraction.")
@_setting(
    "minutes",
    POSITIVE,
    "End after so many minutes at the latest, and then measure; the learning rate falls in time.",
)
@_setting("batch", COUNT, "Photos a step, over all passes and processes.")
@_setting("accumulate", COUNT, "Passes that the photos of a step are split into, to save memory.")
@_setting("lr", POSITIVE, "Highest learning rate.")
@_setting(
    "warm-up",
    click.IntRange(min=0),
    "Steps in which the learning rate rises to the highest; at most a tenth of all.",
)
@_setting("schedule", click.Choice(SCHEDULE_NAMES), "How the learning rate falls after that, to 1 %.")
@_setting(
    "loss",
    click.Choice(LOSS_NAMES),
    "What is minimised. dice stands for 1 - Dice; boundary adds a band along the outline to bce+dice.",
)
@_setting("optimizer", click.Choice(OPTIMIZER_NAMES), "The optimizer.")
@_setting("weight-decay", AT_LEAST_ZERO, "Of convolutions, not of biases and batch norms.")
@_setting("clip", AT_LEAST_ZERO, "Longest gradient; 0 for any.")
@_setting(
    "ema",
    Finite(0, 1, max_open=True),
    "Decay per step of the moving average of the weights, which is what is measured and kept; 0 for none.",
)
@click.option(
    "--augment",
    type=click.Choice(list(PRESETS)),
    default="studio",
    show_default=True,
    help="Limits of the augmentation as a group, of which the options below replace single ones: photos makes"
    " a network for photos from anywhere.",
)
@_setting("shift", Finite(0, 0.5), "Augmentation: farthest shift, as part of width and height.")
@_setting("scale", SHARE, "Augmentation: largest relative change of size.")
@_setting("zoom-out", Finite(0, 15), "Augmentation: like --scale, for smaller sizes only; 3 is a quarter.")
@_setting("rotation", Finite(0, 180), "Augmentation: widest rotation, in degrees.")
@_setting(
    "perspective", Finite(0, 0.3), "Augmentation: farthest shift of a corner, as part of width and height."
)
@_setting("flip", SHARE, "Augmentation: probability of a mirror image.")
@_setting(
    "backgrounds",
    str,
    "Augmentation: a folder of photos without cars, over which cars are put.",
    metavar="DIR",
    shell_complete=complete_folder,
)
@_setting("background-share", SHARE, "Augmentation: part of the samples that get one of --backgrounds.")
@_setting("brightness", SHARE, "Augmentation: largest relative change.")
@_setting("contrast", SHARE, "Augmentation: largest relative change.")
@_setting("saturation", SHARE, "Augmentation: largest relative change.")
@_setting("grey", SHARE, "Augmentation: probability of a grey photo.")
@_setting(
    "degrade-share",
    SHARE,
    "Augmentation: part of the samples that the options from here to --jpeg may change; each changes a third"
    " of them.",
)
@_setting("darken", Finite(0, 1, max_open=True), "Augmentation: largest relative loss of brightness.")
@_setting("gamma", Finite(0, 3), "Augmentation: largest relative change of the exponent of the tone curve.")
@_setting("tint", Finite(0, 3), "Augmentation: largest relative change of each colour channel.")
@_setting("shadow", SHARE, "Augmentation: largest relative loss of brightness in a shadow.")
@_setting("blur", Finite(0, 8), "Augmentation: largest radius of defocus, in pixels.")
@_setting("motion", Finite(0, 50), "Augmentation: longest motion blur, in pixels.")
@_setting("resample", Finite(0, 15), "Augmentation: largest relative loss of resolution; 3 is to a quarter.")
@_setting("noise", Finite(0, 255), "Augmentation: largest standard deviation of noise, in levels of 255.")
@_setting("jpeg", Finite(0, 99), "Augmentation: strongest JPEG compression, as 100 - quality.")
@_setting(
    "precision",
    click.Choice(PRECISION_NAMES),
    "Number format; auto is fp16 on a GPU; on a CPU bf16 if it has instructions for it, else fp32.",
)
@_setting(
    "cache",
    click.Choice(CACHE_NAMES),
    "Where decoded photos are kept: in main memory, if they are reduced and fit; or all of them on the"
    " device, which then augments them as well.",
)
@_setting("validate-every", COUNT, "Epochs between two validations.")
@_setting(
    "patience", click.IntRange(min=0), "End after so many validations without a better Dice; 0 for never."
)
@_setting("seed", click.IntRange(0, 2**32 - 1), "For weights, split, order and augmentation.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N|mps",
    shell_complete=complete_device,
    help="What trains.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Processes that read and augment photos.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the network first, which takes a minute or more; then steps are faster on a GPU.",
)
@click.option("--tensorboard", is_flag=True, help="Also log to RUN/tensorboard.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.pass_context
def command(
    context: click.Context,
    /,
    data: Path,
    run: Path,
    config: Path | None,
    resume: bool,
    dry_run: bool,
    augment: str,
    device: str,
    workers: int,
    compiled: bool,
    tensorboard: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Train a network on DATA and write the run into the folder RUN.

    DATA holds photos in `images` or `train`, and beside them masks of the same names in `masks` or
    `train_masks` (PNG, GIF, JPEG, TIFF), or run-length rows in `train_masks.csv`. Photos are split by car,
    the part of their name before the last underscore. They are turned upright by their EXIF orientation;
    masks may be upright, or as the photo is stored. All is checked before the first step. Links are followed.

    Ctrl-C saves; the same command with --resume goes on. `predict --model RUN` then takes the weights that
    were best on the photos that were measured on. Several GPUs: put `torchrun --nproc-per-node N -m
    carvana_batch` in place of `carvana-batch`.
    """
    if resume and dry_run:
        raise UsageError(
            "--dry-run is for a run that has not begun, --resume for one that has. Leave one out."
        )
    if resume and config is None and (run / "config.toml").exists():
        config = run / "config.toml"
    settings = make_settings(collect_values(context, {**values, "augment": augment}, config))
    if settings.val is not None and settings.val_cars is not None:
        raise UsageError("--val and --val-cars both say what to measure on. Leave one out.")

    from carvana_batch.inference.devices import pick_device
    from carvana_batch.training.job import train

    # Of the processes that torchrun starts, only the first one prints messages.
    reporter = TrainingReporter(quiet or os.environ.get("RANK", "0") != "0")
    with stop_on_signals(reporter, "Stopping: saving first; once more leaves at once.") as stop, reporter:
        outcome = train(
            data,
            run,
            settings,
            device=pick_device(device),
            resume=resume,
            dry_run=dry_run,
            workers=workers,
            compiled=compiled,
            tensorboard=tensorboard,
            listener=reporter.listener,
            stop=stop,
        )
    if outcome is None:
        reporter.say("Dry run: data and settings are good; nothing was trained.")
        return
    if outcome.stopped_by is not None:
        reporter.say(f"Saved after step {outcome.step:,} of {outcome.steps:,}.")
        reporter.say(f"To go on:\n{command_line(_resume_command())}")
        context.exit(128 + outcome.stopped_by)
    if outcome.is_time_up:
        reporter.say(
            f"Ended after step {outcome.step:,} of {outcome.steps:,}: {settings.minutes:g} minutes are over."
        )
    if outcome.stopped_early:
        reporter.say(
            f"Ended after step {outcome.step:,} of {outcome.steps:,}: no better Dice for"
            f" {settings.patience} validations."
        )
    if outcome.best is not None:
        reporter.say(describe_best(outcome.best))
    beside = f"; pictures: {', '.join(outcome.pictures)} beside it" if outcome.pictures else ""
    reporter.say(f"weights: {shown(run / 'best.safetensors')}{beside}")
    use = ["carvana-batch", "predict", "in/", "out/", "--model", str(run)]
    reporter.say(f"to use them:\n{command_line(use)}")


def _resume_command() -> list[str]:
    """Return the command line that resumes this run."""
    arguments = [*sys.argv[1:], *(["--resume"] if "--resume" not in sys.argv else [])]
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if processes == "1":
        return ["carvana-batch", *arguments]
    return ["torchrun", "--nproc-per-node", processes, "-m", "carvana_batch", *arguments]
