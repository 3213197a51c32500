"""Lines for the user that fit the terminal, and stay whole in pipes and files."""

from __future__ import annotations

import os
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence

import click

from carvana_batch.text import shown

NARROWEST = 40
"""Lines are not made shorter than this, however narrow the terminal is."""


DEFAULT_COLUMNS = 80

CONTINUED = " \\"

KEPT = re.compile(r"`[^`]*`|pip install '[^']*'")
"""What is to be copied from the middle of a line."""

NO_BREAK = "\0"
"""Stands for a space where a line must not be broken; :func:`shown` lets none of these through."""


def say(text: str = "", err: bool = False, indent: str = "") -> None:
    """Print lines to stdout or stderr; on a terminal, see :func:`fit`."""
    click.echo(fit(text, err, indent), err=err)


def fit(text: str, err: bool = False, indent: str = "") -> str:
    """Break long lines between words if stdout, or stderr, is a terminal.

    What stands between backticks, and commands of pip, stay in one piece, to be copied. Lines that begin with
    a space or a prompt are left alone: they hold paths or commands to be copied. What follows a break begins
    with ``indent``.
    """
    columns = _columns(err)
    if columns is None:
        return text
    return "\n".join(_break(line, columns, indent) for line in text.split("\n"))


def command_line(arguments: Sequence[str], prompt: str = "  ") -> str:
    """A command to be copied. Where a terminal would break it, a shell is told that it goes on."""
    columns = _columns(err=False)
    words = [shown(shlex.quote(argument)) for argument in arguments]
    line = prompt + " ".join(words)
    if columns is None or len(line) <= columns:
        return line
    lines = [prompt + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + len(CONTINUED) < columns:
            lines[-1] += f" {word}"
        else:
            lines.append(f"      {word}")
    return f"{CONTINUED}\n".join(lines)


def _break(line: str, columns: int, indent: str) -> str:
    if len(line) <= columns or line.startswith((" ", "$ ")):
        return line
    kept = KEPT.sub(lambda match: match[0].replace(" ", NO_BREAK), line)
    return textwrap.fill(
        kept, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ).replace(NO_BREAK, " ")


def _columns(err: bool) -> int | None:
    """The width of the terminal; None if there is none."""
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        return None
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        columns = 0
    return max(columns or DEFAULT_COLUMNS, NARROWEST)
