"""``carvana-batch models``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from carvana_batch.commands.command import Group
from carvana_batch.commands.completion import complete_model
from carvana_batch.text import shown

if TYPE_CHECKING:
    from carvana_batch.network.model import Model

PHOTO = (1918, 1280)
"""Width and height of the photo that costs are given for."""


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
def show_model(model: str) -> None:
    """What the header of bundled weights, of a weights file or of a training run's best weights says."""
    from carvana_batch.network import AUTO_WEIGHTS
    from carvana_batch.network.checkpoints import load_model

    if model == "auto":
        first, second = AUTO_WEIGHTS
        click.echo(f"masks by {first}, checked and if need be replaced by {second}\n")
        _print_model(load_model(first))
        click.echo()
        _print_model(load_model(second))
    else:
        _print_model(load_model(model if not Path(model).exists() else Path(model)))


def _print_model(model: Model) -> None:
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    _print_entry("network", model.name)
    _print_entry("parameters", f"{parameters:,}")
    _print_entry("photos", _describe_input(model))
    _print_entry("mean", " ".join(map(str, model.mean)))
    _print_entry("deviation", " ".join(map(str, model.deviation)))
    _print_entry("sha256", model.digest)
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


def _describe_input(model: Model) -> str:
    """The size in which the network sees photos."""
    if model.size is not None:
        return "resized to {}x{}".format(*model.size)
    if model.scale is not None:
        return f"resized to about {model.scale} pixels on the long side"
    return "as they are"


def _print_entry(name: str, value: str) -> None:
    click.echo(f"{shown(name):<18}{shown(value)}".rstrip())
