"""``carvana-batch models``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from carvana_batch.commands.command import Group
from carvana_batch.commands.completion import complete_model
from carvana_batch.commands.lines import command_line, say
from carvana_batch.commands.model_options import model_options
from carvana_batch.errors import ModelError, UsageError
from carvana_batch.files import check_target
from carvana_batch.model_settings import ModelSettings
from carvana_batch.text import counted, cut_short, shown

if TYPE_CHECKING:
    from torch import Tensor

    from carvana_batch.network.exported.header import Normalisation
    from carvana_batch.network.model import Model

STAND_INS = ModelSettings(mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0), output="logits")
"""For what is missing, so that the rest can be shown."""

PHOTO = (1918, 1280)
"""Width and height of the photo that costs are given for."""

DRAWN = (959, 640)
"""Width and height of the photo that exported files are tried on."""


@click.group("models", cls=Group, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List what can be used, what it costs, how good it is."""
    if context.invoked_subcommand is None:
        context.invoke(list_models, as_json=False)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(as_json: bool) -> None:
    """The networks and the weights that come with them, with their costs for one photo of 1918x1280."""
    import torch

    from carvana_batch.network import BUNDLED_WEIGHTS, NETWORKS
    from carvana_batch.network.activations import activations_per_pixel, count_multiply_adds
    from carvana_batch.network.checkpoints import load_model

    width, height = PHOTO
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*BUNDLED_WEIGHTS, *NETWORKS]):
        network = load_model(name).network if name in BUNDLED_WEIGHTS else NETWORKS[name]()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        notes = load_model(name).notes if name in BUNDLED_WEIGHTS else {}
        numbers = activations_per_pixel(network) * height * width
        rows.append(
            {
                "name": name,
                "parameters": parameters,
                "bytes": BUNDLED_WEIGHTS[name].stat().st_size if notes else parameters * 4,
                "multiply_adds": count_multiply_adds(network, height, width),
                "memory_bytes": round(numbers * torch.float16.itemsize),
                "val_dice": json.loads(notes["val"])["dice"] if notes else None,
                "weights": notes["licence"] if notes else None,
            }
        )
    if as_json:
        click.echo(json.dumps({"width": width, "height": height, "models": rows}))
        return
    click.echo(f"{'name':<19}{'parameters':>11}{'MB':>7}{'GMAC':>6}{'memory':>9}{'val Dice':>10}  weights")
    for row in rows:
        dice = "-" if row["val_dice"] is None else f"{row['val_dice']:.4f}"
        memory = f"{row['memory_bytes'] / 1e6:,.0f} MB"
        click.echo(
            f"{row['name']:<19}{row['parameters']:>11,}{row['bytes'] / 1e6:>7.1f}"
            f"{row['multiply_adds'] / 1e9:>6.0f}{memory:>9}{dice:>10}  {row['weights'] or 'none'}"
        )
    click.echo(
        f"\nFor a photo of {width}x{height}. MB: file of weights. GMAC: billions of multiply-adds.\n"
        "memory: activations in 16 bits. val Dice: mean over photos of cars that the\n"
        "weights have not seen (docs/model-card.md). weights: the licence of those that\n"
        "come with the package; where there are none, train your own. --model auto uses\n"
        "both segunet-s and segunet-s-anywhere, which sees photos reduced."
    )


@command.command("show")
@click.argument("model", metavar="NAME|FILE|RUN", shell_complete=complete_model)
@model_options
def show_model(model: str, model_settings: ModelSettings) -> None:
    """What is known of bundled weights, of weights of any kind, or of a training run's best weights.

    Of networks that are not ours it is also shown what was measured, where mean and deviation are from, and
    what still has to be said. With --network package.module:factory, NAME may be auto: no file.
    """
    from carvana_batch.network import AUTO_WEIGHTS
    from carvana_batch.network.checkpoints import load_model
    from carvana_batch.network.model import MissingSettingsError

    if model == "auto" and model_settings.network is None:
        first, second = AUTO_WEIGHTS
        click.echo(f"masks by {first}, checked and if need be replaced by {second}\n")
        _print_model(load_model(first))
        click.echo()
        _print_model(load_model(second))
    else:
        missing: dict[str, str] = {}
        while True:
            try:
                loaded = load_model(model, model_settings)
                break
            except MissingSettingsError as error:
                missing |= dict.fromkeys(error.missing, str(error))
                model_settings = model_settings.over(STAND_INS)
        _print_model(loaded, missing)


@command.command("export")
@click.argument("model", metavar="NAME|FILE|RUN", shell_complete=complete_model)
@click.argument("target", metavar="FILE.onnx|FILE.pt2", type=click.Path(path_type=Path))
@model_options
@click.option(
    "--normalisation",
    type=click.Choice(["inside", "outside"]),
    default="inside",
    show_default=True,
    help="inside: FILE takes RGB values from 0 to 255. outside: (value / 255 - mean) / deviation,"
    " by the mean and deviation in its metadata.",
)
@click.option(
    "--photo",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Photo that the file is tried on.  [default: a drawn one]",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there already.")
def export_model(
    model: str,
    target: Path,
    model_settings: ModelSettings,
    normalisation: Normalisation,
    photo: Path | None,
    overwrite: bool,
) -> None:
    """Write a model as ONNX or as a program of torch.export, for other programs.

    Its input are images (N, 3, height, width) of any size, its output the probability of car at each pixel.
    The file appears once it was run on a photo, and gave the probabilities of the model.
    """
    from carvana_batch.network.checkpoints import load_model
    from carvana_batch.network.exported.writing import check_request, write_model

    loaded = load_model(model, model_settings)
    check_request(loaded, target)
    check_target(target)
    if target.exists() and not overwrite:
        raise UsageError(
            f"{shown(target)} is there already. Name another file, or use --overwrite to replace it."
        )
    difference = write_model(loaded, target, _photo_for(loaded, photo), normalisation)
    say(
        f"{shown(target)}: {target.stat().st_size / 1e6:.1f} MB; on"
        f" {'a drawn photo' if photo is None else shown(photo)}, its probabilities differ from those of"
        f" {shown(model)} by at most {difference:.1e}"
    )
    use = ["carvana-batch", "predict", "in/", "out/", "--model", str(target)]
    say(f"To use it here:\n{command_line(use)}")


def _photo_for(model: Model, path: Path | None) -> Tensor:
    """(H, W, 3) uint8: a photo, drawn if there is no path, in the size that the network sees."""
    import torch

    from carvana_batch.decode.photo import read_image
    from carvana_batch.demo import draw_photo
    from carvana_batch.inference.resizing import InputSize, resize_photo

    if path is None:
        pixels, _ = draw_photo(seed=1, view=3, size=DRAWN)
    else:
        pixels = read_image(path)
    return torch.from_numpy(resize_photo(pixels, *InputSize.choose(model, None).of(*pixels.shape[:2])))


def _print_model(model: Model, missing: Mapping[str, str] | None = None) -> None:
    """Print what is known of a model.

    Args:
        model: with stand-ins for what is missing.
        missing: settings that have to be given -> why.
    """
    from carvana_batch.network.model import OWN_WEIGHTS

    missing = missing or {}
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    _print_entry("kind", model.kind)
    _print_entry("network", model.name)
    if parameters:  # those of exported networks are not counted
        _print_entry("parameters", f"{parameters:,}")
    _print_entry("photos", _describe_input(model) + _describe_origin(model, "size"))
    for key, values in (("mean", model.mean), ("deviation", model.deviation)):
        known = " ".join(map(str, values)) + _describe_origin(model, key)
        _print_entry(key, "missing" if key in missing else known)
    if not missing:
        _print_entry("sha256", model.digest)
    if model.kind != OWN_WEIGHTS:
        _print_measured(model, missing)
    for key, value in sorted(model.notes.items()):
        try:
            parts = json.loads(value)
        except (ValueError, RecursionError):
            parts = value
        if not isinstance(parts, dict):
            _print_entry(key, value)
            continue
        _print_entry(key, "")
        for name, part in parts.items():
            if part in (None, "", []):
                continue
            text = f"{part:.6g}" if isinstance(part, float) else str(part)
            _print_entry(f"  {name}", text)


def _print_measured(model: Model, missing: Mapping[str, str]) -> None:
    """Print how a network that is not ours can be cut into tiles, and what has to be given to use it."""
    from carvana_batch.inference.tiles import SEEN_OF_OVERLAP
    from carvana_batch.network.activations import activations_per_pixel
    from carvana_batch.network.measuring import context_of

    network = model.network
    output = getattr(network, "output", None)
    if output is not None and "output" not in missing:
        meaning = "probabilities" if output.is_probability else "logits"
        of_car = f", car is number {output.car_class}" if output.classes == 2 else ""
        _print_entry("output", f"{meaning}, {counted(output.classes, 'channel')}{of_car}")
    if network.fixed_size is not None:
        _print_entry("tiles", "{1}x{0} only".format(*network.fixed_size))
    else:
        origin = _describe_origin(model, "stride")
        _print_entry("stride", counted(network.stride, "pixel") + origin)
    try:
        context = context_of(network)
    except Exception as error:  # code of others raises anything
        raise ModelError(
            f"{model.name}: fails on images of some hundred pixels ({type(error).__name__}:"
            f" {shown(cut_short(str(error)))}); say how far it looks: context = N in model.toml"
        ) from error
    if context is not None:
        needed = (
            "" if math.isinf(context) else f"; --overlap {math.ceil(context / SEEN_OF_OVERLAP)} shows all"
        )
        shown_context = "more than 512" if math.isinf(context) else f"{context:.0f}"
        _print_entry("context", f"{shown_context} pixels{needed}{_describe_origin(model, 'context')}")
    width, height = PHOTO
    megabytes = activations_per_pixel(network) * 4 * width * height / 1e6
    _print_entry("memory", f"{megabytes:,.0f} MB in 32 bits for a photo of {width}x{height}")
    for key, reason in missing.items():
        _print_entry(f"missing: {key}", reason)


def _describe_origin(model: Model, key: str) -> str:
    """Where a value is from, if that is known, in parentheses."""
    return f" ({model.origins[key]})" if key in model.origins else ""


def _describe_input(model: Model) -> str:
    """The size in which the network sees photos."""
    if model.size is not None:
        return "resized to {}x{}".format(*model.size)
    if model.scale is not None:
        return f"resized to about {model.scale} pixels on the long side"
    return "as they are"


def _print_entry(name: str, value: str) -> None:
    line = f"{shown(name):<17} {shown(value)}".rstrip()
    if " " in value:
        say(line, indent=" " * 18)
    else:  # a digest, which is copied from the line that it stands on
        click.echo(line)
