"""Resuming: which photos still have to be masked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.options import PROBABILITY_EXTRAS
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.remote import another_out
from carvana_batch.output.verifying import find_deviations
from carvana_batch.text import shown
from carvana_batch.values import ImageRef


def find_missing(
    photos: PhotoList,
    entries: Mapping[str, Entry],
    paths: OutPaths,
    extras: Collection[str] = (),
    verify: bool = False,
) -> PhotoList:
    """The photos without a complete mask of their present state, or without an extra file.

    Args:
        photos: the photos of this run.
        entries: what the journals say, by key.
        paths: the out folder.
        extras: kinds of extra files that each photo has to have.
        verify: whether files that are not as they were written count as missing, whatever their size.

    Raises:
        UsageError: the mask of another photo would be replaced.
    """
    changed = _find_changed(photos, entries, paths) if verify else set()
    missing = photos.select(
        index
        for index, ref in enumerate(photos)
        if ref.key in changed or not _is_done(ref, entries.get(ref.key), paths, extras)
    )
    for ref in missing:
        if ref.key in entries:
            _refuse_another_photo(ref, entries[ref.key], paths)
    return missing


def find_undrawn(
    photos: PhotoList, entries: Mapping[str, Entry], paths: OutPaths, extras: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """The photos that only lack extra files which can be made from photo and mask, with the kinds of these.

    Args:
        photos, entries, paths, extras: see :func:`find_missing`.
    """
    undrawn = {}
    for ref in photos:
        entry = entries.get(ref.key)
        if entry is None or entry.kept or not _is_done(ref, entry, paths, ()):
            continue
        kinds = tuple(kind for kind in extras if not _has_files(entry, paths, [kind]))
        if kinds and PROBABILITY_EXTRAS.isdisjoint(kinds):
            undrawn[ref.key] = kinds
    return undrawn


def find_lost(
    photos: PhotoList, entries: Mapping[str, Entry], paths: OutPaths, extras: Collection[str] = ()
) -> dict[str, Entry]:
    """Failures of the photos that were masked, but whose mask or extra file is no longer there.

    Args:
        photos, entries, paths, extras: see :func:`find_missing`.
    """
    lost = {}
    for ref in photos:
        entry = entries.get(ref.key)
        if entry is not None and not entry.failed and not _has_files(entry, paths, extras):
            reason = "its files were removed or changed during the run; the same command makes them again"
            lost[ref.key] = replace(
                entry, expected_dice=None, doubt=None, dice=None, stage="write", reason=reason
            )
    return lost


def _find_changed(photos: PhotoList, entries: Mapping[str, Entry], paths: OutPaths) -> set[str]:
    """Keys of the photos with files that are not as a run has written them."""
    masked = [entries[ref.key] for ref in photos if ref.key in entries and entries[ref.key].masked]
    return {entry.key for entry, deviations in find_deviations(masked, paths) if deviations}


def _is_done(ref: ImageRef, entry: Entry | None, paths: OutPaths, extras: Collection[str]) -> bool:
    """Whether the photo has not changed since it was masked, and its mask and extra files are complete."""
    if entry is None or entry.failed:
        return False
    try:
        source = ref.path.stat()
    except OSError:
        return False
    unchanged = (source.st_size, source.st_mtime_ns) == (entry.source_bytes, entry.source_time)
    return unchanged and _has_files(entry, paths, extras)


def _has_files(entry: Entry, paths: OutPaths, extras: Collection[str]) -> bool:
    """Whether the mask and the extra files of a photo are complete."""
    try:
        mask_bytes = paths.size_of(paths.mask(entry.key))
        if entry.kept:
            return mask_bytes == entry.mask_bytes
        sizes = {kind: paths.size_of(paths.extra(kind, entry.key)) for kind in extras}
        written = {extra.kind: extra.size for extra in entry.extras}
        if entry.mask_checksum is None:
            # An earlier version did not write down the sizes, but a power cut leaves some files empty.
            written = {kind: size or -1 for kind, size in sizes.items()} | written
        return mask_bytes == entry.mask_bytes and all(
            size == written.get(kind) for kind, size in sizes.items()
        )
    except OSError:
        return False


def _refuse_another_photo(ref: ImageRef, entry: Entry, paths: OutPaths) -> None:
    """Raise UsageError if the existing mask is of another photo, which is still where it was."""
    if not entry.masked or entry.source == ref.path_text:
        return
    try:
        source, other = ref.path.stat(), Path(entry.source).stat()
    except OSError:  # it was moved, or has another path as seen from this folder
        return
    unchanged = (other.st_size, other.st_mtime_ns) == (entry.source_bytes, entry.source_time)
    if unchanged and (source.st_dev, source.st_ino) != (other.st_dev, other.st_ino):
        raise UsageError(
            f"{shown(paths.mask(ref.key))} is the mask of {shown(entry.source)}, and would be"
            f" replaced by that of {shown(ref.path)}. {another_out(paths.sizes)}"
        )
