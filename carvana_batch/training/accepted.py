"""Masks of a run of predict that a review has accepted, to train on."""

from __future__ import annotations

from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.inputs.decisions import ACCEPT, match_decisions, read_decisions
from carvana_batch.notes import Note
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.paths import STATE_FOLDER, OutPaths
from carvana_batch.output.photos import locate_photos
from carvana_batch.text import counted, list_lines, shown
from carvana_batch.training.pairs import Pair

DECISIONS = "decisions.csv"
"""Where the decisions of a review are looked for in an out folder: the name that the page saves them by."""


def is_out_folder(folder: Path) -> bool:
    """Whether a run of predict has worked in this folder."""
    return (folder / STATE_FOLDER).is_dir()


def find_accepted(out: Path) -> list[Pair]:
    """Find the accepted masks of an out folder and their photos, sorted by id.

    Raises:
        UsageError: there are no decisions, they are of other masks, or accept none; or an accepted mask is
            missing or newer than the decisions, or its photo is missing or has changed.
        CarvanaBatchError: a journal cannot be read.
    """
    table = out / DECISIONS
    if not table.is_file():
        raise UsageError(
            f"{shown(out)} has masks of predict, of which only those are trained on that were accepted. Judge"
            f" them with `carvana-batch review {shown(out)}`, and save the decisions as {shown(table)}."
        )
    entries = read_entries(OutPaths(out).state)
    decisions = match_decisions(read_decisions(table), entries, shown(table), out)
    accepted = [entries[key] for key in sorted(decisions) if decisions[key].decision == ACCEPT]
    if not accepted:
        raise UsageError(f"{shown(table)} accepts no mask, so there is nothing to train on.")
    locate = locate_photos(out, accepted)
    decided = table.stat().st_mtime
    pairs, faults = [], []
    for entry in accepted:
        mask, photo = OutPaths(out).mask(entry.key), locate(entry)
        if problem := _find_problem(entry, mask, photo, decided):
            faults.append(f"{shown(entry.key)}: {problem}")
        elif photo is not None:
            pairs.append(Pair(entry.key, photo, mask))
    if faults:
        raise UsageError(
            f"{shown(out)}: {counted(len(faults), 'accepted mask')} cannot be trained on:"
            + list_lines(faults)
        )
    return pairs


def _find_problem(entry: Entry, mask: Path, photo: Path | None, decided: float) -> str:
    """Why a mask cannot be trained on; "" if it can."""
    if not mask.is_file():
        return "there is no mask"
    if mask.stat().st_mtime > decided:
        return "the mask is newer than the decisions; judge it again"
    if photo is None:
        return f"its photo {shown(entry.source)} was not found"
    if photo.stat().st_size != entry.source_bytes:
        return f"its photo {shown(photo)} has changed since it was masked"
    if Note.TURNED_WITH_MASK in entry.notes:
        return "the mask was turned upright by --exif apply; mask the photos with --exif ignore"
    return ""
