#!/usr/bin/env python
"""Write docs/reference/options.md, which lists all commands and options, from Click.

scripts/write_reference

The texts are those of ``--help``. A test fails if the file says anything else than this script would write.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from carvana_batch.commands import group

TARGET = Path(__file__).parent.parent / "docs" / "reference" / "options.md"

HEAD = """\
# All options

Written by `scripts/write_reference` from the texts of `--help`: change those, then run it again. A test fails
if this file says anything else.

Every command also has `-h`, `--help`. [Files and exit codes](files.md) has what they write and return.
"""


def main() -> None:
    TARGET.write_text(format_reference(), encoding="utf-8")
    print(TARGET)


def format_reference() -> str:
    """The text of the page, in Markdown."""
    contexts = list(iter_contexts(click.Context(group, info_name="carvana-batch")))
    links = [f"- [`{context.command_path}`](#{anchor(context)})" for context in contexts]
    return "\n".join([HEAD, *links, *map(format_command, contexts)]) + "\n"


def iter_contexts(context: click.Context) -> Iterator[click.Context]:
    """The context of a command, then of the commands below it, in the order of ``--help``."""
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from iter_contexts(click.Context(below, context, info_name=name))


def anchor(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def format_command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = ["", f"## {context.command_path}", "", f"    {usage}", ""]
    for paragraph in inspect.cleandoc(command.help or "").replace("\b", "").split("\n\n"):
        lines += [escape(" ".join(paragraph.split())), ""]
    lines += [line for option in command.params if (line := format_option(option, context))]
    return "\n".join(lines).rstrip()


def format_option(option: click.Parameter, context: click.Context) -> str:
    """An item of a list; "" for ``--help``, and for arguments, which the text of the command describes."""
    record = option.get_help_record(context)
    if record is None or not record[1] or "--help" in option.opts:
        return ""
    names, text = record
    text, _, extra = text.partition("  [")
    values = "; ".join(escape(part) for part in re.split("; |]  \\[", extra.removesuffix("]")) if part)
    return f"- `{names}`: {escape(text)}" + (f" [{values}]" if values else "")


def escape(text: str) -> str:
    """Escape what Markdown reads as markup, except in `code`."""
    parts = re.split("(`[^`]*`)", text)
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"([*_\\])", r"\\\1", parts[number]).replace("<", "&lt;")
    return "".join(parts)


if __name__ == "__main__":
    main()
