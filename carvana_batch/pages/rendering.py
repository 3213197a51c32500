"""Pages from Jinja templates, with autoescaping, in which only their own scripts and styles run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from carvana_batch import __version__
from carvana_batch.text import counted, shown

COMMON = "carvana_batch.pages"
"""The package whose ``page_files`` all pages can use: ``base.html``, and styles and scripts."""


def render_page(
    package: str, template: str, styles: Sequence[str], scripts: Sequence[str], **values: object
) -> str:
    """Render a template that extends ``base.html``.

    The Content-Security-Policy of the page allows exactly these styles and scripts.

    Args:
        package: the package in whose ``page_files`` the template, styles and scripts are, unless they are
            in those of ``carvana_batch.pages``.
        template: the name of the template.
        styles: names of CSS files.
        scripts: names of JavaScript files, in the order in which they run.
        values: what the template shows. Text is escaped unless it is :class:`Markup`.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    environment = _environment(package)

    def read(names: Sequence[str]) -> list[tuple[Markup, Markup]]:
        texts = [_read(environment, name) for name in names]
        return [(Markup(text), Markup(_hash(text))) for text in texts]

    return environment.get_template(template).render(
        version=__version__, styles=read(styles), scripts=read(scripts), **values
    )


def render_fragment(package: str, template: str, **values: object) -> Markup:
    """Render a template that is a part of a page; see :func:`render_page`."""
    rendered = _environment(package).get_template(template).render(values)
    return Markup(rendered)


def encode_json(value: object) -> Markup:
    """Encode JSON for a script element: no text in it can end the element or start a comment.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(text)


def data_uri(kind: str, content: bytes) -> str:
    """The data URI of an image; ``kind`` is ``jpeg`` or ``png``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "page_files"), PackageLoader(COMMON, "page_files")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters.update(shown=shown, counted=counted, thousands="{:,}".format)
    return environment


def _read(environment: Environment, name: str) -> str:
    """The content of a style or script, which is no template: it may contain braces."""
    loader = environment.loader
    if loader is None:  # for the type checker: _environment always sets one
        raise RuntimeError("the environment has no loader")
    return loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    """Return the Content-Security-Policy source expression that allows an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
