"""Locks of folders, and who holds them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import filelock

from carvana_batch.files import atomic_writer

LOCK_PATIENCE = 0.5
"""Seconds to wait for a lock, because a run that only checks whether it is free holds it for a moment."""


class FolderLock:
    """A lock that one process holds at a time; a file beside it says which.

    Args:
        lock: the lock file.
        holder: the file that says who holds the lock.
    """

    def __init__(self, lock: Path, holder: Path) -> None:
        self.path, self.holder = lock, holder
        self._lock = filelock.FileLock(lock, timeout=LOCK_PATIENCE, thread_local=False)
        self._is_new = False
        self._made: list[Path] = []  # folders that acquire has made, the innermost first

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def acquire(self) -> bool:
        """Take the lock, and make the folders above it; False if another process holds it.

        Raises:
            OSError: a folder cannot be made, or the lock file cannot be opened.
        """
        self._is_new = not self.path.exists()
        self._made = [folder for folder in self.path.parents if not folder.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            return False
        return True

    def release(self) -> None:
        """Give the lock up, if it is held."""
        self._lock.release()

    def undo(self, others: Iterable[Path] = ()) -> None:
        """Give the lock up, and remove what it has left: after a start that failed before any work was done.

        A lock file that was there before stays, and so do folders that hold anything else.

        Args:
            others: other files to remove if the lock file is new.
        """
        # The error that made the start fail matters more than one of removing.
        if self._is_new and self.is_held:
            for path in (*others, self.holder, self.path):
                with contextlib.suppress(OSError):
                    path.unlink()
        self.release()
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def write_holder(self, **more: str) -> None:
        """Write down that this process holds the lock, and ``more`` about it.

        Raises:
            CarvanaBatchError: see :func:`atomic_writer`.
        """
        with atomic_writer(self.holder, "w", sync=False) as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname()} | more, file)


def is_locked(lock: Path, patience: float = LOCK_PATIENCE) -> bool:
    """Whether another process holds the lock, and keeps holding it for ``patience`` seconds."""
    try:
        with filelock.FileLock(lock, timeout=patience):
            return False
    except filelock.Timeout:
        return True


def read_holder(holder: Path) -> dict[str, str | int]:
    """What was written down about a run that holds a folder, or was the last to hold it.

    Raises:
        OSError, ValueError: nothing, or it is damaged.
    """
    return dict(json.loads(holder.read_text(encoding="utf-8")))


def describe_holder(holder: Path) -> str:
    """Who holds a locked folder, as far as it was written down."""
    try:
        content = read_holder(holder)
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
