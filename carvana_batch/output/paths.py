"""Where each file of an out folder belongs.

out/a/b.png                       the mask of in/a/b.jpg; its rename commits it
out/_overlay/a/b.jpg              extra files, each kind in a folder of its own
out/report.csv, out/run.json      the report
out/.carvana-batch/settings.json  what the first run was asked for and what it chose
out/.carvana-batch/journal-1-of-1.jsonl   one line for each photo that is done or has failed
out/.carvana-batch/journal-worker-*.jsonl   what workers in other processes write; see announced.py
out/.carvana-batch/synced-1-of-1  while everything that the journal lists is known to be on the disk
out/.carvana-batch/rle-1-of-1.jsonl       run-length rows of the masks, for the CSV of --rle
out/.carvana-batch/lock-1-of-1    held by the run of a shard; holder-1-of-1.json says by whom
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from carvana_batch.options import EXTRA_FILES

STATE_FOLDER = ".carvana-batch"

MASK = "mask"


@dataclass(frozen=True)
class OutPaths:
    """The paths of an out folder, seen from one shard.

    Attributes:
        root: the out folder.
        shard: (number, count) of the shard, counted from 1.
        sizes: of the files of an out folder that is elsewhere; see :class:`Remote`.
    """

    root: Path
    shard: tuple[int, int] = (1, 1)
    sizes: Mapping[str, int] | None = field(default=None, repr=False, compare=False)

    def size_of(self, path: Path) -> int:
        """The size of a mask or extra file in bytes.

        Raises:
            OSError: there is none.
        """
        if self.sizes is None:
            return path.stat().st_size
        try:
            return self.sizes[path.relative_to(self.root).as_posix()]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from None

    def mask(self, key: str) -> Path:
        """The mask of a photo."""
        return self.root / f"{key}.png"

    def extra(self, kind: str, key: str) -> Path:
        """The extra file of a photo; ``kind``: one of ``EXTRA_FILES``."""
        folder, suffix = EXTRA_FILES[kind]
        return self.root / folder / f"{key}{suffix}"

    def of_photo(self, key: str) -> dict[str, Path]:
        """All files that can be made of a photo, by ``MASK`` or the kind of extra file."""
        return {MASK: self.mask(key)} | {kind: self.extra(kind, key) for kind in EXTRA_FILES}

    @property
    def report(self) -> Path:
        return self.root / "report.csv"

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def state(self) -> Path:
        return self.root / STATE_FOLDER

    @property
    def settings(self) -> Path:
        return self.state / "settings.json"

    @property
    def journal(self) -> Path:
        return self.state / f"journal-{self._shard_name}.jsonl"

    @property
    def spool(self) -> Path:
        return self.state / f"rle-{self._shard_name}.jsonl"

    @property
    def lock(self) -> Path:
        return self.state / f"lock-{self._shard_name}"

    @property
    def synced(self) -> Path:
        return self.state / f"synced-{self._shard_name}"

    @property
    def shared_lock(self) -> Path:
        return self.state / "shared.lock"

    def other_locks(self) -> list[Path]:
        """The locks of all other shards that have ever been started."""
        return [lock for lock in sorted(self.state.glob("lock-*-of-*")) if lock != self.lock]

    @property
    def _shard_name(self) -> str:
        return f"{self.shard[0]}-of-{self.shard[1]}"


def holder_of(lock: Path) -> Path:
    """The file that says who holds a lock of an out folder."""
    return lock.with_name(f"holder-{lock.name.removeprefix('lock-')}.json")
