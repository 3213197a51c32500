"""``score --html``: one file that shows what came of scoring, and opens without a network."""

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
from carvana_batch.scoring.page.charts import DiceAxis, Spread, count_images, draw_histogram, draw_spreads
from carvana_batch.scoring.page.pictures import Picture, WorstImage, encode_pictures
from carvana_batch.scoring.page.quantities import Quantity, clean, describe, describe_columns, write_value
from carvana_batch.scoring.scores import Group, Score, Scores, Summary, Unusable
from carvana_batch.text import shown

MOST_BYTES = 19_000_000
"""Of the whole page: pictures take no more than the rest leaves over."""

LINK_BYTES = 2_000
"""Of the page for a picture, beside its data."""

NAMES_LISTED = 500
"""Of the images that were not scored for one reason."""

VIEWS_SHOWN, CARS_SHOWN = 24, 12


def write_page(
    path: Path, scores: Scores, *, predicted: Path, truth: Path, worst: Iterable[WorstImage] = ()
) -> None:
    """Write ``scores`` as one HTML file with everything in it; whole or not at all.

    ``predicted`` and ``truth`` are named in the heading. ``worst`` are the images to be looked at, the lowest
    Dice first (see ``read_worst``); they are read one at a time. Their photos are reduced, and then left out,
    where the page would become larger than ``MOST_BYTES``.

    Raises what ``atomic_writer`` raises, and what iterating over ``worst`` does.
    """
    quantities = describe_columns(scores.rows, scores.columns)
    parts = {
        **_make_frame(scores.summary, predicted, truth),
        "summary": _list_summary(scores),
        "problems": _list_problems(scores),
        **_draw_charts(scores),
        "meanings": _list_meanings(quantities),
        "table": _encode_json(_tabulate(scores.rows, quantities)),
    }
    room = MOST_BYTES - sum(len(part.encode()) for part in parts.values())
    pictures, all_shown = encode_pictures(worst, room, LINK_BYTES)
    parts["worst"] = _list_pictures(pictures, all_shown, scores.rows)
    parts["pictures"] = "\n".join(
        f'<script type="application/json" id="picture-{number}">{_encode_json(_describe(picture))}</script>'
        for number, picture in enumerate(pictures)
    )
    with atomic_writer(path) as file:
        file.write(Template(_read("page.html")).substitute(parts).encode())


def _make_frame(summary: Summary | None, predicted: Path, truth: Path) -> dict[str, str]:
    """What stands around the content: title, names of the folders, style and scripts with their hashes."""
    style, table, viewer = (_read(name) for name in ("page.css", "table.js", "viewer.js"))
    title = f"Dice {summary.dice:.4f}" if summary else "No mask scored"
    return {
        "title": f"{title} · {_show(predicted)}",
        "predicted": _show(predicted),
        "truth": _show(truth),
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
    """The source expression that lets a Content-Security-Policy accept an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _show(text: Path | str) -> str:
    """A name as HTML, whatever characters and bytes it has."""
    return escape(shown(text))


def _encode_json(value: object) -> str:
    """JSON that can stand in a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _list_summary(scores: Scores) -> str:
    """The mean Dice in large figures; all other means below it, with a note where not all images have one."""
    summary = scores.summary
    if summary is None:
        return '<p class="lead">No mask could be scored.</p>'
    names = [field.name for field in fields(summary) if field.name not in ("images", "dice")]
    means = [_list_mean(describe(name, [getattr(summary, name)]), getattr(summary, name)) for name in names]
    others = []
    for name, average in scores.averages.items():
        partial = average.images < summary.images
        note = f"in {average.images:,} of {count_images(summary.images)}" if partial else ""
        others.append(_list_mean(describe(name, [average.value]), average.value, note))
    return (
        f'<p class="headline"><strong>{summary.dice:.4f}</strong>'
        f" <span>mean Dice of {count_images(summary.images)}</span></p>"
        + "".join(f'<dl class="figures">{"".join(items)}</dl>' for items in (means, others) if items)
        + '<p class="hint"><a href="#meanings">What these numbers mean</a></p>'
    )


def _list_mean(quantity: Quantity, value: object, note: str = "") -> str:
    figure = escape(write_value(clean(value), quantity.kind))
    return (
        f"<div><dt>{escape(quantity.heading)}</dt><dd>{figure}</dd>"
        f"{f'<dd class=note>{escape(note)}</dd>' if note else ''}</div>"
    )


def _list_problems(scores: Scores) -> str:
    """The names of the images that were not scored in full, by kind, with reasons where there are any."""
    kinds = (
        ("without a predicted mask: not scored", [(image, "") for image in scores.missing]),
        ("without a true mask: not scored", [(image, "") for image in scores.extra]),
        ("with masks that cannot be compared: not scored", _name_reasons(scores.unusable)),
        ("without a photo that can be used: scored by the masks alone", _name_reasons(scores.unseen)),
    )
    lists = "".join(
        f"<details><summary>{count_images(len(names))} {what}</summary>"
        f"<ul>{_list_names(names)}</ul></details>"
        for what, names in kinds
        if names
    )
    if not lists:
        return ""
    return (
        '<section class="problems" aria-labelledby="problems-heading">'
        f'<h2 id="problems-heading">What is missing</h2>{lists}</section>'
    )


def _name_reasons(images: Sequence[Unusable]) -> list[tuple[str, str]]:
    return [(image.image, image.reason) for image in images]


def _list_names(names: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<li><bdi>{_show(name)}</bdi>{': ' if reason else ''}<bdi>{_show(reason)}</bdi></li>"
        for name, reason in names[:NAMES_LISTED]
    )
    more = len(names) - NAMES_LISTED
    return items + (f"<li>and {more:,} more</li>" if more > 0 else "")


def _draw_charts(scores: Scores) -> dict[str, str]:
    dice = [row.dice for row in scores.rows]
    if not dice:
        return {"histogram": "<p>There is nothing to draw.</p>", "groups": ""}
    axis = DiceAxis.around(dice)
    groups = _draw_groups("view", scores.views, axis, VIEWS_SHOWN)
    groups += _draw_groups("car", scores.cars, axis, CARS_SHOWN)
    if groups:
        key = "Line: lowest to highest image. Bar: the middle half of the images. Dot: their mean."
        groups = f'<div class="side-by-side">{groups}</div><p class="hint">{key}</p>'
    return {"histogram": draw_histogram(dice, axis), "groups": groups}


def _draw_groups(kind: str, groups: Sequence[Group], axis: DiceAxis, most: int) -> str:
    """All groups by name if there are at most ``most``, else those with the lowest mean; nothing for one."""
    if len(groups) < 2:
        return ""
    kept, which = groups, f"All {len(groups)} {kind}s"
    if len(groups) > most:
        kept = sorted(groups, key=lambda group: group.summary.dice)[:most]
        which = f"The {most} lowest of {len(groups):,} {kind}s"
    spreads = [
        Spread(group.name, f"{kind}:{group.name}", tuple(row.dice for row in group.rows)) for group in kept
    ]
    return (
        f'<section aria-labelledby="{kind}-heading"><h2 id="{kind}-heading">Dice by {kind}</h2>'
        f"<p>{which}</p>"
        f"{draw_spreads(spreads, axis, kind.capitalize())}</section>"
    )


def _list_pictures(pictures: Sequence[Picture], all_shown: bool, rows: Sequence[Score]) -> str:
    if not pictures and all_shown:
        return "<p>This page was made without pictures.</p>"
    places = {row.image: place for place, row in enumerate(rows)}
    cards = "".join(
        f'<li><button type="button" class="card" data-picture="{number}"'
        f' data-row="{places.get(picture.image, "")}">'
        f'<span class="thumbnail"><img src="{picture.ground}" alt="" {_size(picture)}>'
        f'<img src="{picture.marks}" alt="Where the mask is wrong" {_size(picture)}></span>'
        f'<span class="name"><bdi>{_show(picture.image)}</bdi></span>'
        f'<span class="dice">Dice {picture.dice:.4f}</span>'
        f'<span class="counts"><span class="missed">{picture.missed:,}</span> px missed,'
        f' <span class="invented">{picture.invented:,}</span> invented</span></button></li>'
        for number, picture in enumerate(pictures)
    )
    notes = "" if all_shown else "<p>More pictures would have made this page too large.</p>"
    if not any(picture.photo or picture.note for picture in pictures):
        notes += "<p>With --images the photos are shown, too.</p>"
    return f'<ol class="cards">{cards}</ol><div class="hint">{notes}</div>'


def _size(picture: Picture) -> str:
    return f'width="{picture.width}" height="{picture.height}" decoding="async"'


def _describe(picture: Picture) -> dict[str, object]:
    """A picture for the viewer; what is in its card is left out."""
    described = asdict(picture) | {"image": shown(picture.image), "note": shown(picture.note)}
    del described["ground"], described["marks"]
    return described


def _list_meanings(quantities: Sequence[Quantity]) -> str:
    items = "".join(
        f"<div><dt>{escape(quantity.heading)}</dt><dd>{escape(quantity.meaning)}</dd></div>"
        for quantity in quantities
        if quantity.meaning
    )
    return f'<dl id="meanings">{items}</dl>'


def _tabulate(rows: Sequence[Score], quantities: Sequence[Quantity]) -> dict[str, object]:
    """The table of all images: its columns, and a list of values for each image."""
    names = [quantity.name for quantity in quantities]
    return {
        "columns": [{"heading": quantity.heading, "kind": quantity.kind} for quantity in quantities],
        "rows": [[clean(getattr(row, name)) for name in names] for row in rows],
        "dice": names.index("dice"),
    }
