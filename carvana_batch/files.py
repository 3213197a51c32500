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
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal, overload

from carvana_batch.errors import CarvanaBatchError, OutOfSpaceError, UsageError
from carvana_batch.text import FORMULA, escape_name, shown

TEMPORARY_PREFIX = ".carvana-batch-"

TEMPORARY_SUFFIX = ".tmp"

OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}

SINGLE_FILE_ERRORS = {
    errno.EEXIST,
    errno.EILSEQ,
    errno.EISDIR,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
}
"""Errors caused by the name of one file or by what already exists there; other files may still succeed."""

CLOCK_TOLERANCE = 2.0
"""Seconds by which the times of files and processes may be wrong: those of FAT are even."""

_in_use: set[str] = set()
"""Names of the temporary files that this process is writing."""

CANNOT_SYNC_FOLDER = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM}


class WriteError(CarvanaBatchError):
    """A file could not be written; a previous file of this name is unchanged."""


def check_target(path: Path) -> None:
    """Check, before any work is done, that a file can be written at ``path``.

    Raises:
        UsageError: the folder is missing or not writable, or ``path`` is something other than a regular file;
            renaming a file to a device such as /dev/null would replace the device.
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
        raise UsageError(f"Cannot write {shown(path)}: {error.strerror}.") from error
    raise UsageError(f"Cannot write {shown(path)}: {problem}")


@overload
def atomic_writer(
    path: Path, mode: Literal["wb"] = ..., *, sync: bool = ...
) -> AbstractContextManager[IO[bytes]]: ...


@overload
def atomic_writer(path: Path, mode: Literal["w"], *, sync: bool = ...) -> AbstractContextManager[IO[str]]: ...


@contextlib.contextmanager
def atomic_writer(path: Path, mode: Literal["wb", "w"] = "wb", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``, which is renamed to ``path`` when the block ends without error.

    Do not close the file; that is done here. If the block raises anything, the temporary file is removed, and
    what was at ``path`` is unchanged.

    Promised: a reader sees the old file or the new one, never a part. With ``sync``, the bytes reach the disk
    before the name does (fsync of the file, then of the folder); without it they may do so later, and a power
    cut may leave an empty or shorter file.

    Not promised: a process that is killed (power cut, SIGKILL, an unhandled SIGTERM) leaves its temporary
    file, a hidden one named ``.carvana-batch-*.tmp`` (see :func:`find_leftovers`). Of two writers of one
    path, the last to finish wins. The new file has the permissions of a new file, not those of the old one;
    hard links keep the old content; a symbolic link is followed. Folders that cannot be synced (some network
    file systems, Windows, no permission to read) are not synced, and there a power cut may bring the old file
    back. If syncing the folder fails, this raises although the complete new file is already there.

    Args:
        path: where the file is to appear.
        mode: "wb"; or "w" for UTF-8 text whose line ends are written as given, and in which file names that
            are not valid UTF-8 (surrogate escapes) become the original bytes.
        sync: whether to sync the file and its folder.

    Raises:
        UsageError: see :func:`check_target`.
        OutOfSpaceError: the disk or the quota is full.
        WriteError: any other OSError, also in the block.
    """
    check_target(path)
    target = Path(os.path.realpath(path))  # Path.resolve raises on a loop of links
    # Not derived from the target's name, which may be as long as the file system allows.
    name = f"{temporary_prefix()}{os.getpid()}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    temporary = target.parent / name
    text: dict[str, Any] = (
        {} if mode == "wb" else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    )
    _in_use.add(name)
    try:
        with temporary.open(mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(target)
        if sync:
            sync_folder(target.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        # It no longer exists unless there was an error; and that error matters more than one of removing.
        with contextlib.suppress(OSError):
            temporary.unlink()
        _in_use.discard(name)


def open_plain(path: str, flags: int) -> int:
    """An opener for ``open`` that refuses links and all but plain files; whoever has made one may want harm.

    Raises:
        OSError: it is one, or cannot be opened.
    """
    message = "it is a link, or not a plain file, so no run has made it; look into it, and remove it"
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, message, path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, message, path)
    return descriptor


def missing_rights(path: Path) -> str:
    """Which right is missing for a file that may not be written, and how users can share a folder."""
    nearest = next((each for each in (path, *path.parents) if each.exists()), path)
    try:
        owner = nearest.owner()
    except (KeyError, OSError, NotImplementedError):
        owner = "another user"
    return (
        f"{shown(nearest)} belongs to {owner} and is not open to your writing. Users who share a folder need"
        " a common group with all rights in it (chmod -R g+rwX, chmod g+s) and `umask 002`"
    )


def write_error(path: Path, error: OSError) -> CarvanaBatchError:
    """What to raise if ``path`` could not be written."""
    if error.errno in OUT_OF_SPACE:
        return OutOfSpaceError(
            f"No space left for {shown(path)}. Free some space and run the same command again."
        )
    return WriteError(f"Cannot write {shown(path)}: {error.strerror or error}")


def concerns_one_file(error: CarvanaBatchError) -> bool:
    """Whether a file could not be written for a reason that leaves other files unaffected."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in SINGLE_FILE_ERRORS


def read_error(path: Path, error: OSError) -> CarvanaBatchError:
    """What to raise if a file that an earlier run wrote could not be read."""
    return CarvanaBatchError(f"Cannot read {shown(path)}: {error.strerror or error}")


def find_leftovers(folder: Path) -> list[Path]:
    """Temporary files in and below ``folder`` whose process ran on this machine and has ended."""
    pattern = re.compile(f"{re.escape(temporary_prefix())}([0-9]+)-[0-9a-f]+{TEMPORARY_SUFFIX}")
    found = [
        (Path(parent, name), int(match[1]))
        for parent, _, names in os.walk(folder)
        for name in names
        if (match := pattern.fullmatch(name))
    ]
    return [path for path, process in found if not _may_be_written(path, process)]


def _may_be_written(path: Path, process: int) -> bool:
    """Whether a temporary file may be one of the process that has this number now.

    In containers, the number of a killed run may belong to another process, or to this one.
    """
    import psutil  # here, because the help text must not wait for it

    if process == os.getpid():
        return path.name in _in_use
    try:
        started: float = psutil.Process(process).create_time()
        return started <= path.stat().st_mtime + CLOCK_TOLERANCE
    except (psutil.NoSuchProcess, FileNotFoundError, OverflowError):
        return False
    except psutil.AccessDenied:  # another user's process
        return True


@functools.cache
def temporary_prefix() -> str:
    """How the names of temporary files and folders of this machine begin, among those of other machines."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f"{TEMPORARY_PREFIX}{host}-"


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power cut; a file that is gone has none.

    Raises:
        CarvanaBatchError: the disk is full, or fails.
    """
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, if the system supports it."""
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
    # Python before 3.13 does not quote a carriage return, which readers take for the end of the row.
    quoted = any("\r" in str(cell) for cell in cells)
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerow(cells)


def table_cell(text: str) -> str:
    """The text for a table that people open.

    Controls are escaped, among them tabs and line ends (see :func:`escape_name`), and an apostrophe is put
    before what a spreadsheet would take for a formula. Not for run-length rows, whose names are read back.
    """
    return FORMULA.sub(r"\1'\2", escape_name(text))


def not_writable(root: Path, problem: str, argument: str = "OUT") -> UsageError:
    """What to raise if the folder ``root`` cannot be written to; ``argument``: which one it was given as."""
    return UsageError(f"Cannot write into {shown(root)}: {problem}. Choose another {argument}.")


def remove_file(path: Path) -> None:
    """Remove a file, if it exists.

    Raises:
        WriteError: it cannot be removed.
    """
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):  # already gone, or a file has the place of its folder
        return
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no such file can exist
            return
        raise WriteError(f"Cannot remove {shown(path)}: {error.strerror or error}") from error


def move_to_free_place(source: Path, target: Path) -> None:
    """Rename a file in the same file system, unless there is something in the new place.

    Raises:
        WriteError: there is something; or the file cannot be renamed.
    """
    try:
        try:
            os.link(source, target)  # unlike renaming, this never replaces anything
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links, such as FAT
            target.open("xb").close()
            source.replace(target)
        else:
            source.unlink()
        sync_folder(target.parent)
    except FileExistsError as error:
        raise WriteError(
            f"{shown(target)} has appeared during the run, and stays as it is. Name another file, or use"
            " --overwrite to replace it."
        ) from error
    except OSError as error:
        raise write_error(target, error) from error


def write_file(path: Path, content: bytes, root: Path | None = None) -> None:
    """Write a file of an out folder, and create the folders above it.

    Args:
        path: the file.
        content: its content.
        root: a folder above it that has to exist, None if all may be created.

    Raises:
        CarvanaBatchError: see :func:`atomic_writer`.
    """
    try:
        if root is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.parent.is_dir():
            for folder in reversed(path.parents):
                if root in folder.parents:
                    folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    # Not synced here, because syncing one file after the other takes long; see Syncing.
    with atomic_writer(path, sync=False) as file:
        file.write(content)


def check_out_folder(root: Path) -> None:
    """Check, before any work is done, that ``root`` can be created as an out folder or be written to.

    The folder above it must exist, because a missing one may be a typing error, or a disk that is not
    mounted.

    Raises:
        UsageError: it cannot be created or written to.
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
