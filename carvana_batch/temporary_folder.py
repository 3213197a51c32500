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
        with contextlib.suppress(OSError):
            _remove(folder)
        lock.release()


def _make_folder(parent: Path, prefix: str) -> tuple[Path, filelock.BaseFileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = filelock.FileLock(folder / LOCK_NAME)
        try:
            lock.acquire()
        except FileNotFoundError:  # another run took the folder for a dead one
            continue
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
            if folder.stat().st_uid != os.getuid():
                continue
            if not (folder / LOCK_NAME).is_file():  # killed just before or after it was locked
                folder.rmdir()
                continue
            with filelock.FileLock(folder / LOCK_NAME, timeout=0):
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last, so that the next run can tell what remains if this one is killed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()
    (folder / LOCK_NAME).unlink(missing_ok=True)
    folder.rmdir()
