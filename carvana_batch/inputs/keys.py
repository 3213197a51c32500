"""All rules of names: keys of photos, ids of masks, and which of them can be a mask below an out folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from carvana_batch.errors import UsageError
from carvana_batch.text import shown
from carvana_batch.values import ImageRef

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of the files that a folder is searched for, in lower case; upper case counts as well."""

LONGEST_NAME = 255
"""Bytes of a file's name: no common disk takes more."""


def refuse_clashes(refs: Sequence[ImageRef]) -> None:
    """Raise UsageError, naming two files, if they cannot both have a mask in one out folder.

    Keys that differ only in upper and lower case, or in how accents are encoded, clash as well: the out
    folder may lie on, or be copied to, a disk that takes such names for the same. So does a mask
    ``x.png`` with a folder ``x.png`` that holds other masks.
    """
    for first, second in find_same(refs, lambda ref: fold_key(ref.key)):
        why = "" if first.key == second.key else ", as many disks do not tell their names apart"
        raise _clash(first, second, f"write the same mask {shown(second.key)}.png{why}")
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
    """Each photo that has the same ``name`` as one before, behind the first one that has it.

    Only names whose hash occurs twice are kept: all of them would take more memory than the photos.
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
    """The hash of each value, (n,) int64."""
    return np.fromiter(map(hash, values), np.int64)


def fold_key(key: str) -> str:
    """The same for keys that differ in upper and lower case, or in how accents are encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


def _clash(first: ImageRef, second: ImageRef, reason: str) -> UsageError:
    return UsageError(
        f"{shown(first.path)} and {shown(second.path)} would {reason}. "
        "Rename one, or mask them into two out folders."
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


def without_suffix(name: str) -> str:
    """A photo's id: its name without the suffix of an image."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in IMAGE_SUFFIXES else name
