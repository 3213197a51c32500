"""``--overwrite``: which masks of earlier runs are removed, and which stay."""

from __future__ import annotations

import os
from collections.abc import Iterable

from carvana_batch.files import remove_file
from carvana_batch.output.journal import drop_entries, read_entries
from carvana_batch.output.paths import OutPaths
from carvana_batch.text import counted, shown


class Overwriting:
    """What ``--overwrite`` removes from an out folder before the first photo is masked.

    If the folder holds no masks of other photos, everything that earlier runs made goes. Otherwise only what
    they made of the photos of this run goes; the other masks keep their extra files and journal lines.

    Args:
        keys: of the photos that this run masks.
        paths: the out folder.

    Attributes:
        replaced: number of existing masks that are removed or replaced.
        kept: number of masks of other photos, which stay.

    Raises:
        CarvanaBatchError: a journal cannot be read.
    """

    def __init__(self, keys: Iterable[str], paths: OutPaths) -> None:
        self._paths = paths
        own, entries = set(keys), read_entries(paths.state)
        listed = {key for key, entry in entries.items() if not entry.failed}
        self.replaced = sum(map(self._has_mask, own))
        self.kept = sum(map(self._has_mask, listed - own))
        self._removed = entries.keys() & own if self.kept else set(entries)

    def describe(self) -> str:
        """How many masks go, for the user; empty if none do."""
        if not self.replaced:
            return ""
        masks = counted(self.replaced + self.kept, "mask")
        return f"Overwriting {self.replaced:,} of {masks} in {shown(self._paths.root)}"

    def remove(self) -> None:
        """Remove it; after a kill during this, the same command ends as if there had been none.

        Raises:
            CarvanaBatchError: a file cannot be removed or written.
        """
        # Imported here, because the help text must not wait for the image libraries that it needs.
        from carvana_batch.output.rle_spool import drop_rows

        paths = self._paths
        journals, spools = (
            sorted(paths.state.glob("journal-*.jsonl")),
            sorted(paths.state.glob("rle-*.jsonl")),
        )
        if self.kept:
            for spool in spools:
                drop_rows(spool, self._removed)
        for key in sorted(self._removed):
            for path in paths.of_photo(key):
                remove_file(path)
        # The journal comes last: it alone says which files belong to earlier runs.
        if self.kept:
            for journal in journals:
                drop_entries(journal, self._removed)
        else:
            for path in (*journals, *spools, paths.settings):
                remove_file(path)

    def _has_mask(self, key: str) -> bool:
        return os.path.lexists(self._paths.mask(key))
