"""``review``: write the page on which the masks of a finished run are judged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from carvana_batch.errors import UsageError
from carvana_batch.files import atomic_writer, check_target, table_cell, write_file
from carvana_batch.inputs.decisions import Decision
from carvana_batch.notes import Note
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.photos import find_in_folder, locate_photos
from carvana_batch.output.report import MOST_DOUBT, doubt_of
from carvana_batch.pages.rendering import data_uri, encode_json, render_page
from carvana_batch.parallel import map_in_order
from carvana_batch.review.pictures import PART, Picture, make_picture
from carvana_batch.review.selection import FinishedRun, Selection
from carvana_batch.text import shown

PACKAGE = "carvana_batch.review"

MAX_PHOTO_BYTES = 18_000_000
"""Most bytes of photos within the page; more of them lie in a folder beside it."""

MAX_PAGE_BYTES = 40_000_000
"""Most bytes of everything else; the last pictures are left out."""

PICTURE_OVERHEAD_BYTES = 2_500
"""HTML and JSON per picture, not counting its images."""

MAX_NAMES = 500
"""Failures that are listed, and masks of the user."""

MAX_CHOICES = 200
"""Folders, and sizes of photos, that can be chosen in a filter."""

WORKERS = 2
"""Threads that make pictures; each of them holds a whole photo in memory."""

CARD_DATA = ("image", "name", "folder", "size", "doubt", "worst", "mask", "notes")
"""What of a card the scripts of the page need."""

PHOTO_NAME = re.compile(r"\d{4}\.jpg")


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        page: the page.
        photos: the folder of the photos beside it; None if they are in the page.
        pictures: number of masks that are shown.
        left_out: number of masks that would have made the page too large.
        without_photo: number of masks that are shown without their photo.
        unreadable: number of masks whose files are missing or damaged.
    """

    page: Path
    photos: Path | None
    pictures: int
    left_out: int
    without_photo: int
    unreadable: int


def check_page(page: Path) -> None:
    """Check, before any work is done, that the page can be written.

    Raises:
        UsageError: its name does not end in .html, its folder cannot be written to, or the folder that its
            photos may need holds other files.
    """
    if page.suffix.lower() != ".html":
        raise UsageError(f"Cannot write {shown(page)}: give the page a name that ends in .html.")
    check_target(page)
    folder = _photo_folder(page)
    if not folder.exists():
        return
    if not folder.is_dir() or any(not PHOTO_NAME.fullmatch(path.name) for path in folder.iterdir()):
        raise UsageError(
            f"Cannot write {shown(page)}: its photos may need the folder {shown(folder)}, which holds other"
            " files. Give the page another name."
        )


def write_page(
    page: Path,
    run: FinishedRun,
    selection: Selection,
    *,
    images: Path | None = None,
    decisions: Mapping[str, Decision] | None = None,
) -> Written:
    """Write the page; call :func:`check_page` first.

    Args:
        page: the file to write.
        run: what the out folder holds.
        selection: the masks to show.
        images: the folder of the photos; see :func:`locate_photos`.
        decisions: decisions of an earlier review by key, which the page starts with.

    Raises:
        UsageError: the photos are not in ``images``.
        CarvanaBatchError: a file cannot be read or written.
    """
    entries = [*selection.worst, *selection.sample]
    locate = locate_photos(run.root, entries, images)
    paths = OutPaths(run.root)
    folder = _photo_folder(page)

    def make(entry: Entry) -> Picture:
        return make_picture(entry, paths, locate(entry), run.upright)

    with contextlib.closing(map_in_order(make, entries, WORKERS)) as made:
        pictures, sources, in_folder = _place_photos(made, folder)
    cards = [
        _describe_card(picture, number < len(selection.worst)) for number, picture in enumerate(pictures)
    ]
    data = {
        "review": _name_review(run.root),
        "others": selection.others,
        "cards": [{name: card[name] for name in CARD_DATA} for card in cards],
        "decisions": [
            [table_cell(key), decision.decision, shown(decision.note)]
            for key, decision in (decisions or {}).items()
        ],
    }
    left_out = len(entries) - len(pictures)
    unreadable = sum(not picture.labels for picture in pictures)
    without_photo = sum(not source for source in sources) - unreadable
    text = render_page(
        PACKAGE,
        "review.html",
        styles=["base.css", "review.css"],
        scripts=["stage.js", "review.js"],
        **_describe_run(run, selection),
        images=images or find_in_folder(run.root),
        cards=cards,
        left_out=left_out,
        in_folder=in_folder,
        without_photo=without_photo,
        unreadable=unreadable,
        folders=_count_choices(card["folder"] for card in cards),
        sizes=_count_choices(card["size"] for card in cards),
        data=encode_json(data),
        picture_data=[
            encode_json(_describe_picture(picture, source))
            for picture, source in zip(pictures, sources, strict=True)
        ],
    )
    with atomic_writer(page) as file:
        file.write(text.encode())
    return Written(page, folder if in_folder else None, len(pictures), left_out, without_photo, unreadable)


def _name_review(root: Path) -> str:
    """The name under which a browser keeps the decisions: the same for each page of an out folder."""
    return hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]


def _photo_folder(page: Path) -> Path:
    return page.with_name(f"{page.stem}_photos")


def _place_photos(made: Iterable[Picture], folder: Path) -> tuple[list[Picture], list[str], bool]:
    """Put the photos into the page while they fit, or else all of them into a folder.

    Returns:
        The pictures without their photos, until the page is full; the source of each photo for the page, ""
        if there is none; and whether these are files in the folder.
    """
    pictures: list[Picture] = []
    sources: list[str] = []
    waiting: dict[int, bytes] = {}  # photos that are in the page as long as they all fit
    page_bytes = photo_bytes = 0
    for picture in made:
        page_bytes += (len(picture.labels) + len(picture.thumbnail)) * 4 // 3 + PICTURE_OVERHEAD_BYTES
        if page_bytes > MAX_PAGE_BYTES and pictures:
            break
        number = len(pictures)
        pictures.append(replace(picture, photo=b""))
        sources.append("")
        if picture.photo:
            waiting[number] = picture.photo
            photo_bytes += len(picture.photo) * 4 // 3
        if photo_bytes > MAX_PHOTO_BYTES:
            for each, photo in waiting.items():
                name = f"{each + 1:04}.jpg"
                write_file(folder / name, photo)
                sources[each] = f"{quote(os.fsencode(folder.name))}/{name}"
            waiting.clear()
    for each, photo in waiting.items():
        sources[each] = data_uri("jpeg", photo)
    return pictures, sources, photo_bytes > MAX_PHOTO_BYTES


def _describe_run(run: FinishedRun, selection: Selection) -> dict[str, object]:
    """What the page says of the whole run."""

    def names(entries: Sequence[Entry], describe: Callable[[Entry], str]) -> dict[str, object]:
        rows = [(entry.key, describe(entry)) for entry in entries[:MAX_NAMES]]
        return {"count": len(entries), "rows": rows, "more": max(len(entries) - MAX_NAMES, 0)}

    return {
        "root": run.root,
        "masks": len(run.masked),
        "doubtful": run.doubtful,
        "has_doubt": run.has_doubt,
        "most_doubt": MOST_DOUBT,
        "failures": names(run.failures, lambda entry: f"{entry.stage}: {entry.reason}"),
        "kept": names(run.kept, lambda entry: ""),
        "worst": len(selection.worst),
        "sample": len(selection.sample),
        "others": selection.others,
        "mean_doubt": selection.mean_doubt,
    }


def _describe_card(picture: Picture, is_worst: bool) -> dict[str, Any]:
    entry = picture.entry
    notes = [f"{note}: {entry.damage}" if note is Note.DAMAGED else str(note) for note in entry.notes]
    return {
        "image": table_cell(entry.key),
        "name": shown(entry.key),
        "folder": shown(entry.key.rpartition("/")[0]),
        "size": f"{entry.width}×{entry.height}",
        "doubt": round(doubt_of(entry), 6),
        "worst": is_worst,
        "mask": picture.stamp,
        "dice": entry.dice,
        "share": entry.car_share,
        "parts": picture.parts,
        "holes": picture.holes,
        "notes": notes,
        "thumbnail": data_uri("jpeg", picture.thumbnail),
        "width": picture.width,
        "height": picture.height,
    }


def _describe_picture(picture: Picture, source: str) -> dict[str, object]:
    """The data of a picture for the viewer, besides those of its card."""
    return {
        "width": picture.width,
        "height": picture.height,
        "labels": data_uri("png", picture.labels) if picture.labels else "",
        "photo": source,
        "spots": [[spot.kind == PART, spot.pixels, *spot.box] for spot in picture.spots],
        "note": picture.note,
    }


def _count_choices(values: Iterable[str]) -> list[tuple[str, int]]:
    """The values with their number, by name; only the most frequent ones if there are too many."""
    return sorted(Counter(values).most_common(MAX_CHOICES))
