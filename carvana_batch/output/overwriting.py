"""``--overwrite``: which masks of earlier runs are removed, and which stay."""

from __future__ import annotations

import os
from collections.abc import Iterable

from carvana_batch.files import remove_file
from carvana_batch.output.journal import Entry, drop_entries, read_journals
from carvana_batch.output.ownership import Ownership
from carvana_batch.output.paths import MASK, OutPaths
from carvana_batch.text import NAMED, counted, shown


class Overwriting:
    """What ``--overwrite`` removes from an out folder before the first photo is masked.

    If the folder holds no masks of other photos, everything that earlier runs made goes. Otherwise only what
    they made of the photos of this run goes; the other masks keep their extra files and journal lines. Files
    that are not of a run stay, but masks of the photos of this run are replaced once there are new ones.

    Args:
        keys: of the photos that this run masks.
        paths: the out folder.

    Attributes:
        replaced: number of existing masks that are removed or replaced.
        kept: number of masks of other photos, which stay.
        generation: the latest one in the journals; see :class:`Entry`.
        by_the_user: masks that are replaced although no run has made them.

    Raises:
        CarvanaBatchError: a journal cannot be read.
    """

    def __init__(self, keys: Iterable[str], paths: OutPaths) -> None:
        self._paths = paths
        own, journals = set(keys), read_journals(paths.state)
        entries, self.generation = journals.latest, journals.generation
        listed = {key for key, entry in entries.items() if entry.masked}
        self.replaced = sum(map(self._has_mask, own))
        self.kept = sum(map(self._has_mask, listed - own))
        known = entries.keys() | journals.pending.keys()
        self._removed = known & own if self.kept else known
        self._ownership = Ownership(paths, journals, self._removed)
        self.by_the_user = [key for key in sorted(own) if self._is_of_the_user(key, entries.get(key))]

    def describe(self) -> str:
        """How many masks go, for the user; empty if none do."""
        if not self.replaced:
            return ""
        masks = counted(self.replaced + self.kept, "mask")
        line = f"Overwriting {self.replaced:,} of {masks} in {shown(self._paths.root)}"
        if self.by_the_user:
            names = ", ".join(shown(self._paths.mask(key)) for key in self.by_the_user[:NAMED])
            more = ", ..." if len(self.by_the_user) > NAMED else ""
            line += f", {len(self.by_the_user):,} of them not made by predict ({names}{more})"
        return line

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
            self._ownership.remove_files(key)
        # The journal comes last: it alone says which files belong to earlier runs.
        if self.kept:
            for journal in journals:
                drop_entries(journal, self._removed)
        else:
            for path in (*journals, *spools, paths.settings):
                remove_file(path)

    def _is_of_the_user(self, key: str, entry: Entry | None) -> bool:
        if entry is None or not entry.masked:
            return self._has_mask(key) and self._ownership.is_foreign(key, MASK)
        # After drawing in it, a mask nearly always has another size; reading all of them would take long.
        path = self._paths.mask(key)
        changed = path.is_file() and path.stat().st_size != entry.mask_bytes
        return changed and self._ownership.is_foreign(key, MASK)

    def _has_mask(self, key: str) -> bool:
        return os.path.lexists(self._paths.mask(key))
