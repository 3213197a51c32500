"""Where the photos of a finished run are, as far as its out folder tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from carvana_batch.errors import UsageError
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.keys import pairing_name
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths
from carvana_batch.text import shown


def find_in_folder(root: Path) -> Path | None:
    """The folder IN of the run that wrote ``root``, if ``run.json`` names it and it is still there."""
    images = _read_run(root).get("images")
    folder = Path(images) if isinstance(images, str) else None
    return folder if folder is not None and folder.is_dir() else None


def locate_photos(
    root: Path, entries: Iterable[Entry], images: Path | None = None
) -> Callable[[Entry], Path | None]:
    """Return a function that gives the path of an entry's photo; None if it is not there.

    Args:
        root: the out folder.
        entries: the entries that will be asked about.
        images: the folder of the photos. By default, photos are looked for where the run found them, seen
            from the directory in which it was started and from the current one, and then in the folder that
            ``run.json`` names as IN; a file of the size that the photo had is preferred to others.

    Raises:
        UsageError: there are no photos in ``images``, or none of those of ``entries``.
    """
    keys = {pairing_name(entry.key) for entry in entries}
    if images is not None:
        found = _find_keys(images, keys)
        if keys and not found:
            raise UsageError(
                f"None of the photos in --images {shown(images)} has the name of a mask in {shown(root)}."
                " Name the folder that was given to predict."
            )
        return lambda entry: found.get(pairing_name(entry.key))
    directory = _read_run(root).get("directory")
    starts = [Path(directory), Path()] if isinstance(directory, str) else [Path()]

    @cache
    def in_folder() -> dict[str, Path]:
        folder = find_in_folder(root)
        return {} if folder is None else _find_keys(folder, keys, missing_ok=True)

    def candidates(entry: Entry) -> Iterator[Path]:
        if entry.source:
            yield from (start / entry.source for start in starts)
        if path := in_folder().get(pairing_name(entry.key)):
            yield path

    def locate(entry: Entry) -> Path | None:
        other = None
        for path in candidates(entry):
            try:
                if path.stat().st_size == entry.source_bytes:
                    return path
            except OSError:
                continue
            other = other or path
        return other

    return locate


def _find_keys(folder: Path, keys: set[str], missing_ok: bool = False) -> dict[str, Path]:
    """The photos below ``folder`` with these keys, by the ``pairing_name`` of the key."""
    try:
        refs = find_images(folder, follow_links=True).refs
    except UsageError as error:
        if missing_ok:
            return {}
        raise UsageError(f"--images: {error}") from error
    return {name: ref.path for ref in refs if (name := pairing_name(ref.key)) in keys}


def _read_run(root: Path) -> dict[str, Any]:
    """The content of ``run.json``; empty if there is none, or it is damaged."""
    try:
        content = json.loads(OutPaths(root).run.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
