"""Comparing the files of an out folder with the sizes and checksums in its journals."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.ownership import Stamp, check_mask, is_whole
from carvana_batch.output.paths import OutPaths
from carvana_batch.text import shown


@dataclass(frozen=True, slots=True)
class Deviation:
    """A file that is not as a run has written it, and in which way."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of verifying an out folder.

    Attributes:
        masks: number of masks that runs have written.
        deviations: files that are not as they were written.
        without_checksum: masks of earlier versions, of which only size and readability were checked.
        kept: masks of the user, which were not checked.
    """

    masks: int
    deviations: list[Deviation]
    without_checksum: int
    kept: int


def verify(folder: Path) -> Verification:
    """Verify the masks and extra files of an out folder; nothing is written.

    Raises:
        UsageError: no run of predict has worked there.
        CarvanaBatchError: a journal cannot be read.
    """
    paths = OutPaths(folder)
    entries = list(read_entries(paths.state).values()) if paths.state.is_dir() else []
    if not entries:
        raise UsageError(f"No run of predict has worked in {shown(folder)}. Give the OUT of one.")
    masked = sorted((entry for entry in entries if entry.masked), key=lambda entry: entry.key)
    return Verification(
        masks=len(masked),
        deviations=[each for _, found in find_deviations(masked, paths) for each in found],
        without_checksum=sum(entry.mask_checksum is None for entry in masked),
        kept=sum(entry.kept for entry in entries),
    )


def find_deviations(
    entries: Sequence[Entry], paths: OutPaths
) -> Generator[tuple[Entry, list[Deviation]], None, None]:
    """Each entry of a mask with those of its files that are not as they were written."""
    # Imported here, because the help text must not wait for the library that it needs.
    from carvana_batch.parallel import map_in_order

    def compare(entry: Entry) -> list[Deviation]:
        path = paths.mask(entry.key)
        if entry.mask_checksum is None:
            reasons = {path: _inspect(path, entry.mask_bytes)}
        else:
            reasons = {path: _compare(path, Stamp(entry.mask_bytes, entry.mask_checksum))}
        for extra in entry.extras:
            path = paths.extra(extra.kind, entry.key)
            reasons[path] = _compare(path, Stamp(extra.size, extra.checksum))
        return [Deviation(path, reason) for path, reason in reasons.items() if reason]

    yield from zip(entries, map_in_order(compare, entries), strict=True)


def _compare(path: Path, written: Stamp) -> str:
    """In which way a file is not as it was written; "" if it is."""
    try:
        if Stamp.read(path) == written:
            return ""
        if path.suffix == ".png" and is_whole(path):
            return "was changed since, but is not damaged"
        return "is damaged"
    except OSError as error:
        return _describe(error)


def _inspect(path: Path, size: int) -> str:
    """The same for a mask whose checksum is not known."""
    try:
        if path.stat().st_size != size:
            return "was changed since"
        check_mask(path)
    except OSError as error:
        return _describe(error)
    except ImageError as error:
        return str(error)
    return ""


def _describe(error: OSError) -> str:
    return "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
