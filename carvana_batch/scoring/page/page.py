"""``score --html``: write the scores as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from carvana_batch import __version__
from carvana_batch.files import atomic_writer
from carvana_batch.scoring.page.charts import DiceAxis, Spread, draw_histogram, draw_spreads
from carvana_batch.scoring.page.pictures import Picture, WorstImage, encode_pictures
from carvana_batch.scoring.page.quantities import (
    Quantity,
    describe,
    describe_columns,
    format_value,
    to_json_value,
)
from carvana_batch.scoring.scores import Group, Score, Scores, Summary
from carvana_batch.text import counted, shown
from carvana_batch.values import Failure

MAX_PAGE_BYTES = 19_000_000
"""Limit for the whole page; pictures may use what the rest leaves."""

PICTURE_OVERHEAD_BYTES = 2_000
"""HTML per picture, not counting its image data."""

MAX_NAMES = 500
"""Names that are listed per kind of problem."""

MAX_VIEWS, MAX_CARS = 24, 12
"""Groups that are drawn; the rest is left out."""


def write_page(
    path: Path, scores: Scores, *, predicted: Path, truth: Path, worst: Iterable[WorstImage] = ()
) -> None:
    """Write ``scores`` atomically as one self-contained HTML file.

    Args:
        path: the file to write.
        scores: the scores to show.
        predicted: folder or file of the predicted masks, named in the heading.
        truth: folder or file of the true masks, named in the heading.
        worst: the images to show as pictures, lowest Dice first (see ``read_worst``); consumed one at a time.
            Their photos are reduced, and finally left out, to keep the page within ``MAX_PAGE_BYTES``.

    Raises:
        CarvanaBatchError: see :func:`atomic_writer`, and whatever iterating over ``worst`` raises.
    """
    quantities = describe_columns(scores.rows, scores.columns)
    parts = {
        **_make_frame(scores.summary, predicted, truth),
        "summary": _render_summary(scores),
        "problems": _render_problems(scores),
        **_render_charts(scores),
        "meanings": _render_meanings(quantities),
        "table": _encode_json(_make_table(scores.rows, quantities)),
    }
    picture_bytes = MAX_PAGE_BYTES - sum(len(part.encode()) for part in parts.values())
    pictures, all_shown = encode_pictures(worst, picture_bytes, PICTURE_OVERHEAD_BYTES)
    parts["worst"] = _render_pictures(pictures, all_shown, scores.rows)
    parts["pictures"] = "\n".join(
        f'<script type="application/json" id="picture-{number}">'
        f"{_encode_json(_picture_data(picture))}</script>"
        for number, picture in enumerate(pictures)
    )
    with atomic_writer(path) as file:
        file.write(Template(_read("page.html")).substitute(parts).encode())


def _make_frame(summary: Summary | None, predicted: Path, truth: Path) -> dict[str, str]:
    """Return what surrounds the content: title, names of the folders, style and scripts with their hashes."""
    style, table, viewer = (_read(name) for name in ("page.css", "table.js", "viewer.js"))
    title = f"Dice {summary.dice:.4f}" if summary else "No mask scored"
    return {
        "title": f"{title} · {_escape_name(predicted)}",
        "predicted": _escape_name(predicted),
        "truth": _escape_name(truth),
        "version": __version__,
        "style": style,
        "table_script": table,
        "viewer_script": viewer,
        "style_hash": _hash(style),
        "script_hashes": f"{_hash(table)} {_hash(viewer)}",
    }


def _read(name: str) -> str:
    return (files("carvana_batch.scoring.page") / "page_files" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the Content-Security-Policy source expression that allows an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _escape_name(text: Path | str) -> str:
    """Escape a name for HTML; it may contain any characters and undecodable bytes."""
    return escape(shown(text))


def _encode_json(value: object) -> str:
    """Encode JSON for a script element: no text in it can end the element or start a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _render_summary(scores: Scores) -> str:
    """Render the mean Dice in large type, with all other means below it."""
    summary = scores.summary
    if summary is None:
        return '<p class="lead">No mask could be scored.</p>'
    names = [field.name for field in fields(summary) if field.name not in ("images", "dice")]
    means = [_render_mean(describe(name, [getattr(summary, name)]), getattr(summary, name)) for name in names]
    others = []
    for name, average in scores.averages.items():
        partial = average.images < summary.images
        note = f"in {average.images:,} of {counted(summary.images, 'image')}" if partial else ""
        others.append(_render_mean(describe(name, [average.value]), average.value, note))
    return (
        f'<p class="headline"><strong>{summary.dice:.4f}</strong>'
        f" <span>mean Dice of {counted(summary.images, 'image')}</span></p>"
        + "".join(f'<dl class="figures">{"".join(items)}</dl>' for items in (means, others) if items)
        + '<p class="hint"><a href="#meanings">What these numbers mean</a></p>'
    )


def _render_mean(quantity: Quantity, value: object, note: str = "") -> str:
    figure = escape(format_value(to_json_value(value), quantity.kind))
    return (
        f"<div><dt>{escape(quantity.heading)}</dt><dd>{figure}</dd>"
        f"{f'<dd class=note>{escape(note)}</dd>' if note else ''}</div>"
    )


def _render_problems(scores: Scores) -> str:
    """Render the names of the images that were not fully scored, by kind, with the reasons if known."""
    kinds = (
        ("without a predicted mask: not scored", [(image, "") for image in scores.missing]),
        ("without a true mask: not scored", [(image, "") for image in scores.extra]),
        ("with masks that cannot be compared: not scored", _names_and_reasons(scores.unusable)),
        ("without a photo that can be used: scored by the masks alone", _names_and_reasons(scores.unseen)),
    )
    lists = "".join(
        f"<details><summary>{counted(len(names), 'image')} {what}</summary>"
        f"<ul>{_render_names(names)}</ul></details>"
        for what, names in kinds
        if names
    )
    if not lists:
        return ""
    return (
        '<section class="problems" aria-labelledby="problems-heading">'
        f'<h2 id="problems-heading">What is missing</h2>{lists}</section>'
    )


def _names_and_reasons(failures: Sequence[Failure]) -> list[tuple[str, str]]:
    return [(failure.id, failure.reason) for failure in failures]


def _render_names(names: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<li><bdi>{_escape_name(name)}</bdi>{': ' if reason else ''}<bdi>{_escape_name(reason)}</bdi></li>"
        for name, reason in names[:MAX_NAMES]
    )
    more = len(names) - MAX_NAMES
    return items + (f"<li>and {more:,} more</li>" if more > 0 else "")


def _render_charts(scores: Scores) -> dict[str, str]:
    dice = [row.dice for row in scores.rows]
    if not dice:
        return {"histogram": "<p>There is nothing to draw.</p>", "groups": ""}
    axis = DiceAxis.around(dice)
    groups = _render_groups("view", scores.views, axis, MAX_VIEWS)
    groups += _render_groups("car", scores.cars, axis, MAX_CARS)
    if groups:
        key = "Line: lowest to highest image. Bar: the middle half of the images. Dot: their mean."
        groups = f'<div class="side-by-side">{groups}</div><p class="hint">{key}</p>'
    return {"histogram": draw_histogram(dice, axis), "groups": groups}


def _render_groups(kind: str, groups: Sequence[Group], axis: DiceAxis, limit: int) -> str:
    """Render the groups by name, or the ``limit`` with the lowest mean; nothing if there is only one."""
    if len(groups) < 2:
        return ""
    kept, which = groups, f"All {len(groups)} {kind}s"
    if len(groups) > limit:
        kept = sorted(groups, key=lambda group: group.summary.dice)[:limit]
        which = f"The {limit} lowest of {len(groups):,} {kind}s"
    spreads = [
        Spread(group.name, f"{kind}:{group.name}", tuple(row.dice for row in group.rows)) for group in kept
    ]
    return (
        f'<section aria-labelledby="{kind}-heading"><h2 id="{kind}-heading">Dice by {kind}</h2>'
        f"<p>{which}</p>"
        f"{draw_spreads(spreads, axis, kind.capitalize())}</section>"
    )


def _render_pictures(pictures: Sequence[Picture], all_shown: bool, rows: Sequence[Score]) -> str:
    if not pictures and all_shown:
        return "<p>This page was made without pictures.</p>"
    row_indices = {row.image: index for index, row in enumerate(rows)}
    cards = "".join(
        f'<li><button type="button" class="card" data-picture="{number}"'
        f' data-row="{row_indices.get(picture.image, "")}">'
        f'<span class="thumbnail"><img src="{picture.background}" alt="" {_size_attributes(picture)}>'
        f'<img src="{picture.marks}" alt="Where the mask is wrong" {_size_attributes(picture)}></span>'
        f'<span class="name"><bdi>{_escape_name(picture.image)}</bdi></span>'
        f'<span class="dice">Dice {picture.dice:.4f}</span>'
        f'<span class="counts"><span class="missed">{picture.missed:,}</span> px missed,'
        f' <span class="invented">{picture.invented:,}</span> invented</span></button></li>'
        for number, picture in enumerate(pictures)
    )
    notes = "" if all_shown else "<p>More pictures would have made this page too large.</p>"
    if not any(picture.photo or picture.note for picture in pictures):
        notes += "<p>With --images the photos are shown, too.</p>"
    return f'<ol class="cards">{cards}</ol><div class="hint">{notes}</div>'


def _size_attributes(picture: Picture) -> str:
    return f'width="{picture.width}" height="{picture.height}" decoding="async"'


def _picture_data(picture: Picture) -> dict[str, object]:
    """Return the data of a picture for the viewer, without the images that are part of its card."""
    data = asdict(picture) | {"image": shown(picture.image), "note": shown(picture.note)}
    del data["background"], data["marks"]
    return data


def _render_meanings(quantities: Sequence[Quantity]) -> str:
    items = "".join(
        f"<div><dt>{escape(quantity.heading)}</dt><dd>{escape(quantity.meaning)}</dd></div>"
        for quantity in quantities
        if quantity.meaning
    )
    return f'<dl id="meanings">{items}</dl>'


def _make_table(rows: Sequence[Score], quantities: Sequence[Quantity]) -> dict[str, object]:
    """Return the data of the table: columns, values of each image, and the index of the Dice column."""
    names = [quantity.name for quantity in quantities]
    return {
        "columns": [{"heading": quantity.heading, "kind": quantity.kind} for quantity in quantities],
        "rows": [[to_json_value(getattr(row, name)) for name in names] for row in rows],
        "dice": names.index("dice"),
    }
