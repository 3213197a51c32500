"""Files that appear whole or not at all, and CSV that people open."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal, overload

from carvana_batch.errors import CarvanaBatchError, OutOfSpaceError, UsageError
from carvana_batch.text import shown

TEMPORARY_PREFIX = ".carvana-batch-"

TEMPORARY_SUFFIX = ".tmp"

OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}

CANNOT_SYNC_FOLDER = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM}


class WriteError(CarvanaBatchError):
    """A file that could not be written; what was there before is still there."""


def check_target(path: Path) -> None:
    """Say early, before any work, that a file cannot be written at ``path``.

    Raises UsageError where the folder is missing or must not be written, and where something lies at
    ``path`` that is not a regular file: renaming over a device such as /dev/null would replace it.
    """
    folder = path.parent
    try:
        if not folder.is_dir():
            problem = f"there is no folder {shown(folder)}. Create it first."
        elif path.is_dir():
            problem = "it is a folder. Name a file."
        elif path.exists() and not path.is_file():
            problem = "it is not a regular file. Name another."
        elif not os.access(folder, os.W_OK):
            problem = f"the folder {shown(folder)} is not open to writing. Choose another."
        else:
            return
    except OSError as error:
        problem = f"{error.strerror}."
    raise UsageError(f"Cannot write {shown(path)}: {problem}")


@overload
def atomic_writer(
    path: Path, mode: Literal["wb"] = ..., *, sync: bool = ...
) -> AbstractContextManager[IO[bytes]]: ...


@overload
def atomic_writer(path: Path, mode: Literal["w"], *, sync: bool = ...) -> AbstractContextManager[IO[str]]: ...


@contextlib.contextmanager
def atomic_writer(path: Path, mode: Literal["wb", "w"] = "wb", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that takes its name when the block ends well.

    Leave the file open; it is flushed and closed here. If anything is raised in the block, the temporary
    file is removed and whatever was at ``path`` stays as it was. Mode "w" is UTF-8, writes line ends as
    they are given, and gives file names that are not UTF-8 back as the bytes they were.

    What is promised: a reader sees the old file or the new one, never a part. The bytes reach the disk
    before the name does (fsync of the file, then of the folder); without ``sync`` they may reach it later,
    and a power cut may leave an empty or shorter file.

    What is not: a process killed outright (power, SIGKILL, an unhandled SIGTERM) leaves its temporary file,
    a hidden one named ``.carvana-batch-*.tmp`` (see ``find_leftovers``). Of two writers of one path the last
    to finish wins. The new file has the permissions of a new file, not those of the old one; hard links keep
    the old content; a symbolic link is followed. Folders that cannot be synced (some network file systems,
    Windows, no right to read) are not, and there a power cut may bring the old file back. If syncing the
    folder itself fails, this raises although the new file is already there, whole.

    Raises UsageError (see ``check_target``), OutOfSpaceError where the disk or the quota is full, and
    WriteError for any other OSError, in the block too.
    """
    check_target(path)
    target = Path(os.path.realpath(path))  # Path.resolve raises on a loop of links
    # Not built from the target's name: that may already be as long as the file system allows.
    name = f"{TEMPORARY_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    temporary = target.parent / name
    text: dict[str, Any] = (
        {} if mode == "wb" else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    )
    try:
        with temporary.open(mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(target)
        if sync:
            _sync_folder(target.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        # Gone already if all went well; and if it cannot be removed, the first error matters more.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_error(path: Path, error: OSError) -> CarvanaBatchError:
    """What to raise, and so what to tell the user, where ``path`` could not be written."""
    if error.errno in OUT_OF_SPACE:
        return OutOfSpaceError(
            f"No space left for {shown(path)}. Free some space and run the same command again."
        )
    return WriteError(f"Cannot write {shown(path)}: {error.strerror or error}")


def read_error(path: Path, error: OSError) -> CarvanaBatchError:
    """What to raise where a file that an earlier run wrote could not be read."""
    return CarvanaBatchError(f"Cannot read {shown(path)}: {error.strerror or error}")


def find_leftovers(folder: Path) -> list[Path]:
    """Temporary files in and below ``folder`` of processes of this machine that are no more."""
    pattern = re.compile(f"{re.escape(TEMPORARY_PREFIX + _host())}-([0-9]+)-[0-9a-f]+{TEMPORARY_SUFFIX}")
    found = [
        (Path(place, name), int(match[1]))
        for place, _, names in os.walk(folder)
        for name in names
        if (match := pattern.fullmatch(name))
    ]
    return [path for path, process in found if not _is_alive(process)]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's
        return True
    return True


@functools.cache
def _host() -> str:
    """A name of this machine that fits into file names."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` outlast a power cut, where the system can."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC_FOLDER:
            raise


def write_row(file: IO[str], cells: Sequence[object]) -> None:
    """Write one row of a CSV, with line feeds at the ends of rows."""
    # Python before 3.13 leaves a carriage return without quotes, and readers take it for the end of the row.
    quoted = any("\r" in str(cell) for cell in cells)
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerow(cells)


def defuse_formula(text: str) -> str:
    """``text`` with an apostrophe before it if a spreadsheet would take it for a formula.

    For tables that people open. Not for a submission, whose names must stay what they are.
    """
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def not_writable(root: Path, problem: str, argument: str = "OUT") -> UsageError:
    return UsageError(f"Cannot write into {shown(root)}: {problem}. Choose another {argument}.")


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):  # gone, or a file is where its folder was
        return
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # so it was never written
            return
        raise WriteError(f"Cannot remove {shown(path)}: {error.strerror or error}") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file of an out folder, and the folders above it.

    Raises what ``atomic_writer`` raises.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    # Not synced: a resumed run finds a mask that a power cut has shortened by its size in the journal.
    with atomic_writer(path, sync=False) as file:
        file.write(content)


def check_out_folder(root: Path) -> None:
    """Raise UsageError, before any work, where no out folder can be made or written at ``root``.

    The folder above it must be there: what is missing may as well be a typing error, or a disk that is not.
    """
    nearest = root
    try:
        if not nearest.exists():
            nearest = nearest.parent
        if not nearest.exists():
            raise UsageError(
                f"Cannot write into {shown(root)}: there is no folder {shown(nearest)}. Create it first, or"
                " choose another OUT."
            )
        if not nearest.is_dir():
            raise not_writable(root, f"{shown(nearest)} is not a folder")
    except OSError as error:
        raise not_writable(root, error.strerror or str(error)) from error
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise not_writable(root, f"the folder {shown(nearest)} is not open to writing")
