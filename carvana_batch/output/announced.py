"""Workers of a run that are other processes, perhaps on other machines: how they see the out folder.

Only the process of the run adds to its journal. A worker has journals of its own, with nothing but pending
lines: they say after a kill which files are of a run. Each is of one list of photos, and goes once the run's
own journal says what came of them.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

from carvana_batch.errors import FolderChangedError, UsageError
from carvana_batch.files import open_plain, remove_file, write_error
from carvana_batch.options import Choice
from carvana_batch.output.held import HeldFolders
from carvana_batch.output.journal import Entry, append_entry, read_pending
from carvana_batch.output.lock import read_holder
from carvana_batch.output.ownership import Ownership
from carvana_batch.output.paths import OutPaths, holder_of
from carvana_batch.text import shown

LISTS_IN_FLIGHT = 2
"""Lists of photos that a worker is given at a time; what came of others is in the journal of the run."""

PATIENCE = 5.0
"""Seconds until a shared folder has to show what another machine has written."""


class WorkerOut:
    """The out folder of a run in another process.

    Args:
        root: the out folder.
        run: identifies the run; see :class:`OutFolder`.
        generation: of the lines of the run; see :class:`Entry`.
        replace_all: whether masks of the user are replaced.
        patience: seconds until a shared folder has to show what another machine has written.

    Attributes:
        paths: where each file belongs.
        ownership: which files are of a run, of the photos at hand; see :meth:`take_up`.
        choice: the latest choice that was recorded; None if none was.

    Raises:
        UsageError: this is not the out folder of the run, as on a machine that does not share it.
        CarvanaBatchError: it cannot be looked at.
    """

    def __init__(
        self, root: Path, run: str, generation: int, replace_all: bool, patience: float = PATIENCE
    ) -> None:
        self.paths = OutPaths(root)
        self.choice: Choice | None = None
        self._run, self._generation, self._replace_all = run, generation, replace_all
        self._name = uuid.uuid4().hex
        self._lists = 0
        self._journals: deque[Path] = deque()
        self._journal: IO[bytes] | None = None
        self._journal_lock = threading.Lock()
        deadline = time.monotonic() + patience
        while not self._is_held() and time.monotonic() < deadline:
            time.sleep(patience / 20)
        if not self._is_held():
            raise UsageError(
                f"{shown(root)} is not the folder of this run: share OUT under the same path on all machines"
            )
        try:
            self._held = HeldFolders([root, self.paths.state])
        except OSError as error:
            raise write_error(root, error) from error
        self.take_up({})

    def _is_held(self) -> bool:
        try:
            return read_holder(holder_of(self.paths.lock)).get("run") == self._run
        except (OSError, ValueError, TypeError):
            return False

    def take_up(self, claims: Mapping[str, Iterable[Entry]]) -> None:
        """Get ready for the next list of photos.

        Args:
            claims: the lines of journals about files of these photos, by key.

        Raises:
            FolderChangedError: the run no longer holds the folder.
        """
        if not self._is_held():
            raise FolderChangedError(
                f"{shown(self.paths.root)} is no longer held by this run, which has ended"
            )
        self.ownership = Ownership(self.paths, replace_all=self._replace_all)
        self.ownership.learn(claims)
        self._close_journal()
        self._lists += 1
        self._journals.append(self.paths.state / f"journal-worker-{self._name}-{self._lists}.jsonl")
        if len(self._journals) > LISTS_IN_FLIGHT:
            remove_file(self._journals.popleft())

    def check(self) -> None:
        """See :meth:`OutFolder.check`."""
        self._held.check()

    def commit(self, entry: Entry) -> None:
        """Append a pending entry to a journal of this worker; several threads may call it at once."""
        self.check()
        path = self._journals[-1]
        try:
            with self._journal_lock:
                if self._journal is None:
                    self._journal = open(path, "ab", buffering=0, opener=open_plain)  # noqa: SIM115
                entry = replace(entry, generation=self._generation, committed=time.time_ns())
                append_entry(self._journal, entry)
        except OSError as error:
            raise write_error(path, error) from error

    def record_choice(self, choice: Choice) -> None:
        """Keep the choice, for the process of the run to write it down."""
        self.choice = choice

    def close(self) -> None:
        """Hold the folder no longer."""
        self._held.close()
        self._close_journal()

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def worker_journals(state: Path) -> list[Path]:
    """The journals of workers, also those of earlier runs."""
    return sorted(state.glob("journal-worker-*.jsonl"))


def remove_settled(state: Path, latest: Mapping[str, Entry]) -> None:
    """Remove the journals of workers that have nothing to say which the run's own journals do not.

    Args:
        state: the folder of the journals.
        latest: the latest entry of each key.

    Raises:
        CarvanaBatchError: a journal cannot be read or removed.
    """
    for path in worker_journals(state):
        if all(
            key in latest and entry.generation <= latest[key].generation
            for key, entries in read_pending(path).items()
            for entry in entries
        ):
            remove_file(path)
