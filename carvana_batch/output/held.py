"""Noticing that the out folder is renamed, removed or replaced while a run works in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from carvana_batch.errors import FolderChangedError
from carvana_batch.files import write_error
from carvana_batch.text import shown


class HeldFolders:
    """Folders that have to stay what and where they are.

    They are held open where the system permits it, so that no new folder can get their inode number.

    Args:
        folders: existing folders, the outermost first.

    Raises:
        OSError: one of them cannot be looked at.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._descriptors: list[int] = []
        self._identities: dict[Path, tuple[int, int]] = {}
        try:
            for folder in folders:
                with contextlib.suppress(PermissionError):  # not to be read by this user, or Windows
                    self._descriptors.append(os.open(folder, os.O_RDONLY))
                self._identities[folder] = _identity(folder)
        except OSError:
            self.close()
            raise

    def check(self) -> None:
        """Check that each path still leads to the same folder.

        Raises:
            FolderChangedError: one does not.
            CarvanaBatchError: it cannot be looked at.
        """
        for folder, identity in self._identities.items():
            try:
                changed = _identity(folder) != identity
            except (FileNotFoundError, NotADirectoryError) as error:
                raise FolderChangedError(
                    f"{shown(folder)} was renamed or removed during the run, which has stopped. If it was"
                    " renamed, give it its name back, and run the same command to go on."
                ) from error
            except OSError as error:
                raise write_error(folder, error) from error
            if changed:
                raise FolderChangedError(
                    f"{shown(folder)} was replaced by another folder or link during the run, which has"
                    " stopped. Put the earlier folder back in its place, and run the same command to go on."
                )

    def close(self) -> None:
        """Hold the folders no longer."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
