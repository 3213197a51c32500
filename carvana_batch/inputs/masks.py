"""Finds the masks and photos in a folder, by id."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.keys import EXTRA_FOLDERS, count_pairs, mask_id, pairing_name
from carvana_batch.text import shown

MASK_SUFFIXES = {"png", "gif", "tif", "tiff", "jpg", "jpeg", "jpe", "jfif"}


PREDICTED_ADVICE = "`carvana-batch predict` writes masks into `out`."

TRUTH_ADVICE = "--gt takes the true masks of the photos."
"""What to do if there are no masks: for masks that predict has written, and for true ones."""


def find_photos(folder: Path) -> dict[str, Path]:
    """The photos below a folder by the id of their masks, in the order of the ids. All links are followed.

    Raises:
        UsageError: masks of two photos would have the same id; or see :func:`find_images`.
    """
    photos: dict[str, Path] = {}
    first_paths: dict[str, Path] = {}
    clashes: list[str] = []
    for ref in find_images(folder, follow_links=True).refs:
        found = mask_id(ref.key)
        first = first_paths.setdefault(pairing_name(found), ref.path)
        if first != ref.path:
            clashes.append(f"the id {shown(found)}: {_both(first, ref.path)}.")
        photos[found] = ref.path
    if clashes:
        raise UsageError(
            f"Two photos have {clashes[0]} Remove one of them, or name a folder that holds nothing but the"
            f" photos.{count_pairs(len(clashes))}"
        )
    return dict(sorted(photos.items()))


def _both(first: Path, second: Path) -> str:
    return " and ".join(map(shown, sorted([first, second])))


def find_masks(folder: Path, *, advice: str = PREDICTED_ADVICE) -> dict[str, Path]:
    """The masks below a folder by id, in the order of the ids.

    The id of a mask is its POSIX path below the folder, without suffix and without a trailing ``_mask``:
    ``00087a6bd4dc_01_mask.gif`` and ``00087a6bd4dc_01.png`` both have the id ``00087a6bd4dc_01``. Ids with
    the same ``pairing_name`` count as the same. What else ``predict`` writes is left out: hidden
    files and folders, files that are not images, and extra files (in folders such as ``_overlay`` at the
    top). Links to folders are not followed.

    Args:
        folder: where to look.
        advice: last sentence of the message if there are no masks.

    Raises:
        UsageError: the folder is missing or cannot be listed, two masks have the same id, or there are none.
    """
    if not folder.is_dir():
        if folder.exists():
            raise UsageError(f"{shown(folder)} is not a folder of masks. {advice}")
        raise UsageError(f"The masks folder {shown(folder)} does not exist. {advice}")
    masks: dict[str, Path] = {}
    first_paths: dict[str, Path] = {}
    clashes: list[str] = []
    for name in list_masks(folder, on_error=_refuse_unlistable):
        found, path = mask_id(name.rpartition(".")[0]), folder / name
        first = first_paths.setdefault(pairing_name(found), path)
        if first != path:
            clashes.append(f"the id {shown(found)}: {_both(first, path)}.")
        masks[found] = path
    if clashes:
        raise UsageError(f"Two masks have {clashes[0]} Remove one of them.{count_pairs(len(clashes))}")
    if not masks:
        raise UsageError(
            f"There are no masks in {shown(folder)}: looked for PNG, GIF, TIFF and JPEG files in it and in "
            f"its folders, except hidden ones and {', '.join(sorted(EXTRA_FOLDERS))}. {advice}"
        )
    return dict(sorted(masks.items()))


def list_masks(folder: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[str]:
    """Yield the POSIX path below ``folder`` of each file that is taken for a mask.

    Args:
        folder: the folder.
        on_error: called for each folder that cannot be listed, which by default is passed over.
    """
    for name, folders, files in os.walk(folder, onerror=on_error):
        parent = Path(name)
        extras = EXTRA_FOLDERS if parent == folder else set()
        folders[:] = [child for child in folders if not child.startswith(".") and child not in extras]
        beginning = "" if parent == folder else parent.relative_to(folder).as_posix() + "/"
        for file in files:
            stem, _, suffix = file.rpartition(".")
            if stem and not file.startswith(".") and suffix.lower() in MASK_SUFFIXES:
                yield beginning + file


def _refuse_unlistable(error: OSError) -> None:
    raise UsageError(f"The folder {shown(error.filename)} cannot be listed: {error.strerror}.") from error
