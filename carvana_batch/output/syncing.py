"""Letting what a run reports as done reach the disk, so that a power cut does not take it back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from carvana_batch.files import atomic_writer, remove_file, sync_file, sync_folder, write_error
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths


class Syncing:
    """Syncs all masks of a run once, at its end.

    Until then, a power cut may leave masks shorter than the journal says; the next run makes them again.

    Args:
        paths: an out folder that is locked.
    """

    def __init__(self, paths: OutPaths) -> None:
        self._paths = paths
        self._was_synced = paths.synced.exists()

    def expect_changes(self) -> None:
        """Write down that the folder is about to change; call it before the first line of the journal.

        Raises:
            CarvanaBatchError: that cannot be written down.
        """
        remove_file(self._paths.synced)

    def sync(self, entries: Sequence[Entry], new: Collection[str]) -> None:
        """Let the journal, and the files of masked photos that it lists, reach the disk.

        Args:
            entries: of all masks of this shard.
            new: keys of the photos of this run. Those of earlier runs are synced if one of them was killed.

        Raises:
            CarvanaBatchError: the disk is full, or fails.
        """
        paths = self._paths
        if paths.synced.exists():  # so nothing has changed
            return
        if self._was_synced:
            entries = [entry for entry in entries if entry.key in new]

        def sync_photo(entry: Entry) -> set[Path]:
            files = [paths.mask(entry.key), *(paths.extra(extra.kind, entry.key) for extra in entry.extras)]
            for file in files:
                sync_file(file)
            return {file.parent for file in files}

        folders: set[Path] = set().union({paths.root, paths.state}, *map(sync_photo, entries))
        for folder in list(folders):
            folders.update(parent for parent in folder.parents if paths.root in parent.parents)
        for folder in sorted(folders):
            try:
                sync_folder(folder)
            except FileNotFoundError:  # removed with its masks, which have been counted as lost
                continue
            except OSError as error:
                raise write_error(folder, error) from error
        sync_file(paths.journal)
        with atomic_writer(paths.synced):
            pass
