"""All rules for names: keys of photos, ids of masks, and which keys a mask in an out folder can have."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import UsageError
from carvana_batch.inputs.formats import IMAGE_SUFFIXES
from carvana_batch.options import EXTRA_FILES
from carvana_batch.text import shown
from carvana_batch.values import ImageRef

LONGEST_NAME = 255
"""Most bytes of a file name on any common file system."""

LONGEST_PATH = 4000
"""Most bytes of a path below an out folder: no common system accepts longer ones."""

EXTRA_FOLDERS = {folder for folder, _ in EXTRA_FILES.values()}
"""Folders of extra files at the top of an out folder, in which no masks are looked for."""

REPORT_NAMES = {"report.csv", "run.json"}
"""Files at the top of an out folder that a run writes."""


def mask_name_problem(key: str) -> str:
    """Why ``key`` cannot be the name of a mask, ``<key>.png`` below an out folder; "" if it can.

    Whether the file system accepts the name is not checked.
    """
    parts = key.split("/")
    if "\0" in key:
        return "the name holds a NUL byte, which no file can have."
    if ".." in parts:
        return 'the name contains "..", so its mask would lie outside of OUT.'
    if key.startswith("/"):
        return "the name is an absolute path, so its mask would lie outside of OUT."
    if "" in parts:
        return "the name has a part without characters."
    if any(part.startswith(".") for part in parts):
        return "its mask would be hidden, and submit and score pass over hidden files."
    longest = max(len(os.fsencode(part)) for part in (*parts[:-1], parts[-1] + ".png"))
    if longest > LONGEST_NAME or len(os.fsencode(key)) > LONGEST_PATH:
        return "the name is too long for a file, with .png at its end."
    if len(parts) > 1 and parts[0] in EXTRA_FOLDERS:
        return f"its mask would lie in {parts[0]}, where submit and score do not look for masks."
    if len(parts) > 1 and fold_key(parts[0]) in REPORT_NAMES:
        return f"its mask would lie in a folder {parts[0]}, where the report of this name belongs."
    return ""


def refuse_bad_names(refs: Iterable[ImageRef]) -> None:
    """Raise UsageError for the first photo whose key cannot be the name of a mask."""
    for ref in refs:
        if problem := mask_name_problem(ref.key):
            raise UsageError(
                f"{shown(ref.path)} cannot be masked: {problem} Rename the photo or its folder, or give a"
                " path below that folder."
            )


def refuse_same_ids(refs: Sequence[ImageRef]) -> None:
    """Raise UsageError for two photos whose masks ``submit`` and ``score`` would take for the same.

    They take the masks ``x.png`` and ``x_mask.png`` for two of the same photo.
    """
    pairs = list(find_same(refs, lambda ref: pairing_name(mask_id(ref.key))))
    for first, second in pairs[:1]:
        raise UsageError(
            f"{shown(first.path)} and {shown(second.path)} would have masks that submit and score take for"
            " two of the same photo. Move one of them away, or mask them into two out folders."
            f"{count_pairs(len(pairs))}"
        )


def refuse_clashes(refs: Sequence[ImageRef]) -> None:
    """Raise UsageError for two photos that cannot both have a mask in one out folder.

    Keys clash even if they differ in upper and lower case, or in how accents are encoded: the out folder may
    be on, or be copied to, a file system that does not distinguish such names. A mask ``x.png`` also clashes
    with a folder ``x.png`` that holds other masks.
    """
    pairs = list(find_same(refs, lambda ref: fold_key(ref.key)))
    for first, second in pairs[:1]:
        why = "" if first.key == second.key else ", as many disks do not tell their names apart"
        raise _clash(first, second, f"write the same mask {shown(second.key)}.png{why}", len(pairs))
    in_folders: dict[str, ImageRef] = {}
    for ref in refs:
        folder = fold_key(ref.key.rpartition("/")[0])
        while ".png" in folder:
            if folder.endswith(".png"):
                in_folders.setdefault(folder.removesuffix(".png"), ref)
            folder = folder.rpartition("/")[0]
    for ref in refs if in_folders else ():
        below = in_folders.get(fold_key(ref.key))
        if below is not None:
            raise _clash(ref, below, f"need {shown(ref.key)}.png both as a mask and as a folder")


def find_same(
    refs: Sequence[ImageRef], name: Callable[[ImageRef], str]
) -> Iterator[tuple[ImageRef, ImageRef]]:
    """Pairs of photos with the same ``name``: the first one that has it, and each later one.

    Only names whose hash occurs twice are kept in memory: all names would take more memory than the photos.
    """
    hashes = hashes_of(name(ref) for ref in refs)
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: dict[str, ImageRef] = {}
    for ref in refs if repeated else ():
        own = name(ref)
        if own in seen:
            yield seen[own], ref
        elif hash(own) in repeated:
            seen[own] = ref


def hashes_of(values: Iterable[Hashable]) -> NDArray[np.int64]:
    """The hashes of the values, (n,) int64."""
    return np.fromiter(map(hash, values), np.int64)


def fold_key(key: str) -> str:
    """The same for keys that differ in upper and lower case, or in how accents are encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


def pairing_name(name: str) -> str:
    """The same for names that differ only in how accents are encoded.

    A name has two forms in Unicode, NFC and NFD, that look alike; copies made by way of macOS often have the
    second. Photos, masks and rows are paired by this name, and keep their own where a name is output.
    """
    return unicodedata.normalize("NFC", name)


def match_ids(ids: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Pair ids with those of ``others`` that have the same :func:`pairing_name`.

    Returns:
        The other id of each of ``ids`` that has one, in the order of ``ids``.
    """
    others_by_name = {pairing_name(other): other for other in others}
    names = ((own, pairing_name(own)) for own in ids)
    return {own: others_by_name[name] for own, name in names if name in others_by_name}


def count_pairs(number: int) -> str:
    """A sentence on how many pairs of names clash, of which a message has named one; "" if no others do."""
    return f" In all, {number:,} pairs clash like this." if number > 1 else ""


def _clash(first: ImageRef, second: ImageRef, reason: str, pairs: int = 1) -> UsageError:
    return UsageError(
        f"{shown(first.path)} and {shown(second.path)} would {reason}. "
        f"Rename one, or mask them into two out folders.{count_pairs(pairs)}"
    )


def mask_id(key: str) -> str:
    """The id by which ``submit`` and ``score`` know a mask, from its path below the folder without suffix."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + (name.removesuffix("_mask") or name)


def split_id(image: str) -> tuple[str, str]:
    """Car and view of an image, from its id: what stands before the last underscore of the name, and after.

    ``("a/00087a6bd4dc", "01")`` for ``a/00087a6bd4dc_01``; all of the id, and an empty view, where nothing
    stands before an underscore.
    """
    folder, slash, name = image.rpartition("/")
    car, _, view = name.rpartition("_")
    return (folder + slash + car, view) if car else (image, "")


def row_id(name: str) -> str:
    """A photo's id, from its name in a row: without the suffix of an image, and without ``./`` before it."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in IMAGE_SUFFIXES else name
