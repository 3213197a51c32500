"""``carvana-batch models``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from carvana_batch.models.checkpoints import Model


@click.group("models", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List what can be used, what it costs, how good it is."""
    if context.invoked_subcommand is None:
        context.invoke(list_models)


@command.command("list")
def list_models() -> None:
    """The networks, with their costs for one photo of 1918x1280, and which of them come with weights."""
    import torch

    from carvana_batch.models import BUNDLED_WEIGHTS, NETWORKS
    from carvana_batch.models.checkpoints import load_model
    from carvana_batch.models.footprint import measure_footprint

    click.echo(f"{'network':<10}{'parameters':>12}{'GMAC':>7}{'memory':>10}{'val Dice':>10}  weights")
    for name, build in NETWORKS.items():
        network = build()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        footprint = measure_footprint(network, 1280, 1918, torch.float16)
        memory = f"{footprint.activation_bytes / 1e6:,.0f} MB"
        weights = BUNDLED_WEIGHTS.get(name)
        dice = json.loads(load_model(name).notes.get("val", "{}")).get("val_dice") if weights else None
        quality = f"{dice:.4f}" if dice is not None else "-"
        size = f"bundled, {weights.stat().st_size / 1e6:.1f} MB" if weights else "none: train your own"
        gmac = footprint.multiply_adds / 1e9
        click.echo(f"{name:<10}{parameters:>12,}{gmac:>7.0f}{memory:>10}{quality:>10}  {size}")
    click.echo("GMAC: billions of multiply-adds a photo; memory: activations of a whole photo in 16 bits;")
    click.echo("val Dice: mean over photos of cars that the weights have not seen (docs/model-card.md).")


@command.command("show")
@click.argument("model", metavar="NAME|FILE")
def show_model(model: str) -> None:
    """What the header of bundled weights or of a weights file says."""
    from carvana_batch.models.checkpoints import load_model

    _print_model(load_model(model if not Path(model).exists() else Path(model)))


def _print_model(model: Model) -> None:
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    click.echo(f"{'network':<12}{model.name}")
    click.echo(f"{'parameters':<12}{parameters:,}")
    click.echo(f"{'sha256':<12}{model.digest}")
    click.echo(f"{'mean':<12}{model.mean}")
    click.echo(f"{'deviation':<12}{model.deviation}")
    for key, value in sorted(model.notes.items()):
        click.echo(f"{key:<12}{value}")
