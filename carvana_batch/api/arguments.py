"""Keyword arguments that are options of the command line: the same names, values, texts and errors."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from carvana_batch.commands import command as commands
from carvana_batch.commands.command import keyword_of
from carvana_batch.commands.model_options import Triple
from carvana_batch.commands.parameters import Colour, MaskSize, Shard
from carvana_batch.errors import CarvanaBatchError, UsageError

Documented = TypeVar("Documented", bound=Callable[..., Any])

DOCSTRING_WIDTH = 100

SHELL = re.compile(r"(`[^`]*`)")
"""Command lines, which messages put between backticks."""

MENTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-o)(?: (\S+?)(?=[.,;:)]*(?:\s|$)))?")
"""An option in a message, and the word behind it, which may be its value."""

PLACEHOLDER = re.compile(r"[A-Z0-9]*[A-Z]{3,}|N|[A-Z0-9]+x[A-Z0-9]+|i/n")
"""What stands for a value in messages, such as WIDTHxHEIGHT."""


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by their keyword argument."""
    return {keyword_of(each): each for each in commands.options_of(command)}


def given(function: Callable[..., Any], keywords: Mapping[str, object]) -> dict[str, object]:
    """Those of the keyword arguments of a function that are not its defaults."""
    parameters = inspect.signature(function).parameters

    def is_default(keyword: str, value: object) -> bool:
        default = parameters[keyword].default
        return type(value) is type(default) and bool(value == default)

    return {keyword: value for keyword, value in keywords.items() if not is_default(keyword, value)}


def parse(
    command: click.Command, positional: Mapping[str, object], keywords: Mapping[str, object]
) -> click.Context:
    """Let the command line parse arguments; variables of the environment are not followed.

    Args:
        command: the command that has these options.
        positional: the arguments without an option, by the names that they have in Python.
        keywords: the others; None and () stand for options that are not given.

    Returns:
        What the command would get; its ``params`` are the values of all parameters, by their names. What is
        entered by it stays so until a with block around it ends.

    Raises:
        UsageError: a value that the command line would refuse; the message names the keyword argument.
        TypeError: a flag is neither True nor False.
    """
    options = options_of(command)
    words: list[str] = []
    for keyword, value in keywords.items():
        option, name = options[keyword], max(options[keyword].opts, key=len)
        if option.is_flag:
            if not isinstance(value, bool):
                raise TypeError(f"{keyword}={value!r} is neither True nor False")
            words += [name] * value
        elif option.multiple:
            several = value if isinstance(value, list | tuple | set | frozenset | range) else [value]
            words += [f"{name}={as_text(option, each)}" for each in several if each is not None]
        elif value is not None:
            words.append(f"{name}={as_text(option, value)}")
    words += ["--", *(str(value) for value in positional.values())]
    try:
        return command.make_context(command.name, words)
    except click.BadParameter as error:
        keyword = "" if error.param is None else keyword_of(error.param)
        if keyword not in keywords:
            raise UsageError(error.message) from error
        raise UsageError(_describe_refusal(options[keyword], keywords[keyword], error.message)) from error
    except click.UsageError as error:
        raise UsageError(error.message) from error


def _describe_refusal(option: click.Option, value: object, message: str) -> str:
    """What the command line says of a value that it refuses, with the keyword argument in front."""
    given = f'{keyword_of(option)}="{value}"' if isinstance(value, str) else f"{keyword_of(option)}={value!r}"
    text = repr(as_text(option, value))
    return given + (message.removeprefix(text) if message.startswith(text) else f": {message}")


def as_text(option: click.Option, value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, tuple | list):
        if isinstance(option.type, Triple):
            return ",".join(map(str, value))
        if isinstance(option.type, MaskSize):
            return "x".join(map(str, value))
        if isinstance(option.type, Shard):
            return "/".join(map(str, value))
        if isinstance(option.type, Colour) and all(isinstance(part, int) for part in value):
            return "#" + "".join(f"{part:02x}" for part in value)
    return str(value)


@contextlib.contextmanager
def python_wording(command: click.Command, **positional: str) -> Iterator[None]:
    """A with block whose errors speak of keyword arguments where they spoke of the command's options.

    Args:
        command: the command.
        positional: for the names that it gives to its arguments without an option, those in Python.
    """
    try:
        yield
    except CarvanaBatchError as error:
        error.args = (reword(str(error), command, **positional),)
        raise


def reword(text: str, command: click.Command, **positional: str) -> str:
    """Put a text for users of the command line into words for users of Python; see :func:`python_wording`.

    What stands between backticks is left as it is: it is to be typed into a shell.
    """
    options = {opt: option for option in options_of(command).values() for opt in option.opts}

    def replace(match: re.Match[str]) -> str:
        name, word = match.groups()
        if name not in options:
            return match[0]
        option = options[name]
        keyword = keyword_of(option)
        begins = not match.start() and match.string[match.end() :].startswith(":")
        if option.is_flag:
            return f"{keyword}=True" + (f" {word}" if word else "")
        if word is None or not (begins or is_value(option, word)):
            return keyword + (f" {word}" if word else "")
        bare = re.fullmatch(r"[\d.]+|N", word) or word[0] in "'\""
        return f"{keyword}={word}" if bare else f'{keyword}="{word}"'

    parts = SHELL.split(text)
    for index in range(0, len(parts), 2):
        parts[index] = MENTION.sub(replace, parts[index])
        for name, keyword in positional.items():
            parts[index] = re.sub(rf"(?<![\w/.-]){name}(?!\w|/|[.-]\w)", keyword, parts[index])
    return "".join(parts)


def is_value(option: click.Option, word: str) -> bool:
    """Whether the word behind an option in a message is a value of it, rather than a part of the sentence."""
    if PLACEHOLDER.fullmatch(word) or word[0] in "'\"":
        return True
    if isinstance(option.type, click.Path | click.types.StringParamType):
        return word.partition(":")[0] in (option.metavar or "").split("|")
    try:
        option.type.convert(word.strip("'\""), option, None)
    except click.BadParameter:
        return False
    return True


def with_option_texts(command: click.Command, **positional: str) -> Callable[[Documented], Documented]:
    """A decorator that puts the help texts of a command in place of a line ``{options}`` in a docstring.

    They are those of all keyword-only arguments that are options, in the order of the signature.

    Args:
        command: the command.
        positional: see :func:`python_wording`.
    """

    def decorate(function: Documented) -> Documented:
        options = options_of(command)
        signature = inspect.signature(function)
        keywords = [each.name for each in signature.parameters.values() if each.kind == each.KEYWORD_ONLY]

        def texts(indent: re.Match[str]) -> str:
            return "\n".join(
                textwrap.fill(
                    f"{keyword}: {describe(options[keyword], command, **positional)}",
                    width=DOCSTRING_WIDTH,
                    initial_indent=indent[1],
                    subsequent_indent=indent[1] + 4 * " ",
                    break_on_hyphens=False,
                )
                for keyword in keywords
                if keyword in options
            )

        function.__doc__ = re.sub(r"^( *)\{options\}$", texts, function.__doc__ or "", flags=re.MULTILINE)
        return function

    return decorate


def describe(option: click.Option, command: click.Command, **positional: str) -> str:
    """What the command line says about an option, with the values that it may have."""
    text = " ".join(str(option.help).split()).replace("Can be repeated.", "Or a list of them.")
    text = reword(text.replace("; can be repeated", "; or a list of them"), command, **positional)
    if isinstance(option.type, click.Choice):
        text += f" One of {', '.join(map(repr, option.type.choices))}."
    return text
