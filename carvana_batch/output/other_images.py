"""Images in an out folder that ``submit`` and ``score`` take for masks, although no run has made them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from carvana_batch.inputs.keys import hashes_of
from carvana_batch.inputs.masks import list_masks
from carvana_batch.output.journal import read_entries
from carvana_batch.output.paths import OutPaths
from carvana_batch.text import counted, cut_short, shown


def describe_other_images(root: Path, keys: Iterable[str]) -> str:
    """One line on images that are neither masks of these photos nor of those of earlier runs; "" if none are.

    Only names are looked at.

    Args:
        root: the out folder, which need not exist.
        keys: the keys of the photos of this run.
    """
    known = set(hashes_of(keys).tolist())
    others = [name for name in list_masks(root) if hash(_key_of(name)) not in known]
    if others:
        masked = read_entries(OutPaths(root).state)
        others = [name for name in others if _key_of(name) not in masked]
    if not others:
        return ""
    return (
        f"{shown(root)} holds {counted(len(others), 'other image')}, such as {cut_short(shown(min(others)))}:"
        " submit and score will take them for masks. Move them away, or choose another OUT."
    )


def _key_of(name: str) -> str:
    """The key of the photo whose mask this is, which no photo has if it is not named like a mask."""
    return name.removesuffix(".png") if name.endswith(".png") else ""
