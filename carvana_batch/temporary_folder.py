"""Temporary folders that the next run removes if theirs is killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

LOCK_NAME = "lock"

RANDOM_PART = "[a-z0-9_]{8}"
"""What tempfile adds to a prefix."""


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder in ``parent``, lock it during the with block, and remove it at the end.

    The lock ends with the process, so what a killed one has left can be told from what is in use, also in
    containers in which each run has the same host name and process number. Such folders of this user are
    removed first.

    Args:
        parent: where to make it.
        prefix: how its name begins; no other program may use it.

    Raises:
        OSError: it cannot be made or locked.
    """
    _remove_dead_folders(parent, prefix)
    folder, lock = _make_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _make_folder(parent: Path, prefix: str) -> tuple[Path, filelock.BaseFileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = filelock.FileLock(folder / LOCK_NAME)
        try:
            lock.acquire()
        except (OSError, NotImplementedError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if (folder / LOCK_NAME).exists():
            return folder, lock
        lock.release()  # another run took the folder for a dead one, just before it was locked


def _remove_dead_folders(parent: Path, prefix: str) -> None:
    pattern = re.compile(re.escape(prefix) + RANDOM_PART)
    with os.scandir(parent) as entries:
        found = [
            Path(entry)
            for entry in entries
            if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    for folder in found:
        # Others' folders, and what vanishes meanwhile, are no reason to stop.
        with contextlib.suppress(OSError, NotImplementedError, filelock.Timeout):
            if folder.stat().st_uid != os.getuid() or not (folder / LOCK_NAME).is_file():
                continue
            with filelock.FileLock(folder / LOCK_NAME, timeout=0):
                shutil.rmtree(folder)
