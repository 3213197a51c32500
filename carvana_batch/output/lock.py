"""Locks of folders, and who holds them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import filelock

from carvana_batch.files import (
    atomic_writer,
)

LOCK_PATIENCE = 0.5
"""Seconds to wait for a lock: a run that only looks whether it is free holds it for an instant."""


def is_locked(lock: Path, patience: float = LOCK_PATIENCE) -> bool:
    """Whether another process holds the lock, and keeps it for ``patience`` seconds."""
    try:
        with filelock.FileLock(lock, timeout=patience):
            return False
    except filelock.Timeout:
        return True


def write_holder(holder: Path) -> None:
    """Say, for those who find the folder locked, who holds it."""
    with atomic_writer(holder, "w", sync=False) as file:
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)


def describe_holder(holder: Path) -> str:
    """Who holds a locked folder, as far as that was written down."""
    try:
        content = json.loads(holder.read_text())
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
