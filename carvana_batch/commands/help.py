"""``carvana-batch help``."""

from __future__ import annotations

import click

from carvana_batch.commands import group
from carvana_batch.commands.command import Command


def _complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    parent: click.Command | None = group
    for name in context.params.get("names") or ():
        parent = parent.get_command(context, name) if isinstance(parent, click.Group) else None
    if not isinstance(parent, click.Group):
        return []
    return [name for name in parent.list_commands(context) if name.startswith(incomplete)]


@click.command("help", cls=Command)
@click.argument("names", metavar="[COMMAND]...", nargs=-1, shell_complete=_complete)
@click.pass_context
def command(context: click.Context, names: tuple[str, ...]) -> None:
    """Print the help of a command, as its option --help does; without COMMAND, that of all."""
    found: click.Command = group
    at = context.find_root()
    for name in names:
        if not isinstance(found, click.Group):
            raise click.UsageError(f"{at.command_path} has no commands of its own.", context)
        _, one, _ = found.resolve_command(at, [name])
        assert one is not None
        found, at = one, click.Context(one, at, info_name=name)
    click.echo(found.get_help(at))
