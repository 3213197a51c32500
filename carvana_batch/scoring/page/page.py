"""``score --html``: write the scores as one HTML file that needs no network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.files import atomic_writer, check_out_folder, write_file
from carvana_batch.masks.counts import SizeError
from carvana_batch.pages.rendering import encode_json, render_page
from carvana_batch.parallel import map_in_order
from carvana_batch.scoring.page.charts import PACKAGE, DiceAxis, Spread, draw_histogram, draw_spreads
from carvana_batch.scoring.page.pictures import (
    Picture,
    WorstImage,
    encode_picture,
    encode_pictures,
    open_images,
)
from carvana_batch.scoring.page.quantities import (
    Quantity,
    describe,
    describe_columns,
    format_value,
    to_json_value,
)
from carvana_batch.scoring.scores import Group, Score, Scores
from carvana_batch.text import counted, shown
from carvana_batch.values import Failure

MAX_PAGE_BYTES = 19_000_000
"""Limit for the whole page; pictures may use what the rest leaves."""

PICTURE_OVERHEAD_BYTES = 2_000
"""HTML per picture, not counting its image data."""

MAX_NAMES = 500
"""Names that are listed per kind of problem."""

PICTURE_NAME = re.compile(r"\d{5,}\.html")

MAX_VIEWS, MAX_CARS = 24, 12
"""Groups that are drawn; the rest is left out."""


def write_page(
    path: Path,
    scores: Scores,
    *,
    predicted: Path,
    truth: Path,
    worst: Iterable[WorstImage] = (),
    links: Mapping[str, str] | None = None,
) -> None:
    """Write ``scores`` atomically as one self-contained HTML file.

    Args:
        path: the file to write.
        scores: the scores to show.
        predicted: folder or file of the predicted masks, named in the heading.
        truth: folder or file of the true masks, named in the heading.
        worst: the images to show as pictures, lowest Dice first (see ``read_worst``); consumed one at a time.
            Their photos are reduced, and finally left out, to keep the page within ``MAX_PAGE_BYTES``.
        links: addresses of the pictures of images, as :func:`write_pictures` returns them.

    Raises:
        CarvanaBatchError: see :func:`atomic_writer`, and whatever iterating over ``worst`` raises.
    """
    quantities = describe_columns(scores.rows, scores.columns)
    values = {
        "predicted": predicted,
        "truth": truth,
        "summary": scores.summary,
        "means": _describe_means(scores),
        "problems": _list_problems(scores),
        **_draw_charts(scores),
        "meanings": [quantity for quantity in quantities if quantity.meaning],
        "table": encode_json(_make_table(scores.rows, quantities, links or {})),
    }
    picture_bytes = MAX_PAGE_BYTES - len(_render(values, [], True, scores.rows).encode())
    pictures, all_shown = encode_pictures(worst, picture_bytes, PICTURE_OVERHEAD_BYTES)
    with atomic_writer(path) as file:
        file.write(_render(values, pictures, all_shown, scores.rows).encode())


def check_pictures(folder: Path) -> None:
    """Check, before any work is done, that pictures can be written into a folder.

    Raises:
        UsageError: it cannot be created or written to, or holds other files.
    """
    check_out_folder(folder)
    if folder.is_dir() and any(not PICTURE_NAME.fullmatch(path.name) for path in folder.iterdir()):
        raise UsageError(
            f"--pictures {shown(folder)} holds other files than such pictures. Name another folder."
        )


def write_pictures(
    folder: Path,
    page: Path,
    scores: Scores,
    photos: Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> dict[str, str]:
    """Write the picture of each image as a page of its own.

    Args:
        folder: where to write them; created if needed.
        page: the page of the scores, which they link to.
        scores: the scores, computed from mask files.
        photos: the folder of the photos.
        workers: number of threads; by default one per core.
        on_progress: called as ``on_progress(done, total)`` after each image.

    Returns:
        The address of each image's picture, as seen from ``page``. Images whose masks can no longer be read
        have none.

    Raises:
        UsageError: the folder of the photos cannot be used.
        CarvanaBatchError: see :func:`write_file`.
    """
    rows = scores.find_worst(len(scores.rows))
    read = open_images(scores, rows, photos)
    names = [f"{number:05}.html" for number in range(1, len(rows) + 1)]

    def write(number: int) -> bool:
        try:
            picture = encode_picture(read(rows[number]))
        except (ImageError, SizeError):  # changed since it was scored
            return False
        text = render_page(
            PACKAGE,
            "picture.html",
            styles=["base.css", "score.css"],
            scripts=["stage.js", "viewer.js"],
            picture=picture,
            data=encode_json(_picture_data(picture)),
            page=_link(page, folder),
            before=names[number - 1] if number else "",
            after=names[number + 1] if number + 1 < len(names) else "",
        )
        write_file(folder / names[number], text.encode())
        return True

    links = {}
    for number, written in enumerate(map_in_order(write, range(len(rows)), workers)):
        if written:
            links[rows[number].image] = _link(folder / names[number], page.parent)
        on_progress(number + 1, len(rows))
    return links


def _link(target: Path, start: Path) -> str:
    """The address of a file, as seen from a folder."""
    parts = Path(os.path.relpath(target, start)).parts
    return "/".join(quote(os.fsencode(part)) for part in parts)


def _render(
    values: dict[str, object], pictures: Sequence[Picture], all_shown: bool, rows: Sequence[Score]
) -> str:
    row_indices = {row.image: index for index, row in enumerate(rows)}
    return render_page(
        PACKAGE,
        "score.html",
        styles=["base.css", "score.css"],
        scripts=["stage.js", "table.js", "viewer.js"],
        pictures=pictures,
        picture_data=[encode_json(_picture_data(picture)) for picture in pictures],
        picture_rows=[row_indices.get(picture.image, "") for picture in pictures],
        all_shown=all_shown,
        **values,
    )


def _describe_means(scores: Scores) -> list[list[dict[str, str]]]:
    """Return heading, figure and note of all means but that of Dice: of pixel counts, and of the others."""
    summary = scores.summary
    if summary is None:
        return []

    def mean(name: str, value: object, note: str = "") -> dict[str, str]:
        quantity = describe(name, [value])
        figure = format_value(to_json_value(value), quantity.kind)
        return {"heading": quantity.heading, "figure": figure, "note": note}

    names = [field.name for field in fields(summary) if field.name not in ("images", "dice")]
    others = []
    for name, average in scores.averages.items():
        partial = average.images < summary.images
        note = f"in {average.images:,} of {counted(summary.images, 'image')}" if partial else ""
        others.append(mean(name, average.value, note))
    means = [mean(name, getattr(summary, name)) for name in names]
    return [items for items in (means, others) if items]


def _list_problems(scores: Scores) -> list[dict[str, object]]:
    """Return the names of the images that were not fully scored, by kind, with the reasons if known."""
    kinds = (
        ("without a predicted mask: not scored", [(image, "") for image in scores.missing]),
        ("without a true mask: not scored", [(image, "") for image in scores.extra]),
        ("with masks that cannot be compared: not scored", _names_and_reasons(scores.unusable)),
        ("without a photo that can be used: scored by the masks alone", _names_and_reasons(scores.unseen)),
    )
    return [
        {"what": what, "count": len(names), "names": names[:MAX_NAMES], "more": len(names) - MAX_NAMES}
        for what, names in kinds
        if names
    ]


def _names_and_reasons(failures: Sequence[Failure]) -> list[tuple[str, str]]:
    return [(failure.id, failure.reason) for failure in failures]


def _draw_charts(scores: Scores) -> dict[str, object]:
    dice = [row.dice for row in scores.rows]
    if not dice:
        return {"histogram": "", "groups": []}
    axis = DiceAxis.around(dice)
    groups = [
        group
        for kind, all_groups, limit in (("view", scores.views, MAX_VIEWS), ("car", scores.cars, MAX_CARS))
        if (group := _draw_groups(kind, all_groups, axis, limit))
    ]
    return {"histogram": draw_histogram(dice, axis), "groups": groups}


def _draw_groups(
    kind: str, groups: Sequence[Group], axis: DiceAxis, limit: int
) -> dict[str, str | Markup] | None:
    """Draw the groups by name, or the ``limit`` with the lowest mean; None if there is only one."""
    if len(groups) < 2:
        return None
    kept, which = groups, f"All {len(groups)} {kind}s"
    if len(groups) > limit:
        kept = sorted(groups, key=lambda group: group.summary.dice)[:limit]
        which = f"The {limit} lowest of {len(groups):,} {kind}s"
    spreads = [
        Spread(group.name, f"{kind}:{group.name}", tuple(row.dice for row in group.rows)) for group in kept
    ]
    return {"kind": kind, "which": which, "chart": draw_spreads(spreads, axis, kind.capitalize())}


def _picture_data(picture: Picture) -> dict[str, object]:
    """Return the data of a picture for the viewer, without the images that are part of its card."""
    data = asdict(picture) | {"image": shown(picture.image), "note": shown(picture.note)}
    del data["background"], data["marks"]
    return data


def _make_table(
    rows: Sequence[Score], quantities: Sequence[Quantity], links: Mapping[str, str]
) -> dict[str, object]:
    """Return the data of the table: columns, values and link of each image, and index of the Dice column."""
    names = [quantity.name for quantity in quantities]
    return {
        "columns": [{"heading": quantity.heading, "kind": quantity.kind} for quantity in quantities],
        "rows": [[to_json_value(getattr(row, name)) for name in names] for row in rows],
        "dice": names.index("dice"),
        "links": [links.get(row.image, "") for row in rows] if links else [],
    }
