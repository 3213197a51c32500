#!/usr/bin/env python
"""Write a man page for each command into a folder.

scripts/man_pages.py build/man
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click_man.core import generate_man_page
from reference import iter_contexts

from carvana_batch import __version__
from carvana_batch.commands import COMMANDS, group


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    root = click.Context(group, info_name="carvana-batch")
    group.short_help = (group.help or "").splitlines()[0]
    for name, short_help in COMMANDS.items():
        command = group.get_command(root, name)
        if command is not None:
            command.short_help = short_help
            group.add_command(command, name)  # click-man only sees commands that are loaded
    for context in iter_contexts(root):
        page = folder / f"{context.command_path.replace(' ', '-')}.1"
        page.write_text(generate_man_page(context, __version__), encoding="utf-8")
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
