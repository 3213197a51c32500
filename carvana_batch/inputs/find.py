"""Finds photos in a folder, a single file or a list of files, and returns sorted ``ImageRef`` values."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from carvana_batch.errors import UsageError
from carvana_batch.inputs.decisions import REJECT, is_decisions, match_decisions, read_decisions
from carvana_batch.inputs.formats import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    NOT_IMAGES,
    OTHER_IMAGE_SUFFIXES,
    RAW_SUFFIXES,
    is_image,
)
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.text import shown
from carvana_batch.values import ImageRef

HIDDEN = "hidden files and folders"

FOLDER_LINKS = "links to folders (use --follow-links)"

OUTSIDE_LINKS = "links leading out of the folder (use --follow-links)"

LOOPS = "links back to a folder above them"

EXCLUDED = "the out folder"

SPECIAL = "pipes, sockets and devices"

REPEATED = "repeated lines"

NOT_REJECTED = "photos whose mask was not rejected"

BESIDE_PHOTO = "raw files and other images beside a photo of the same name"


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The photos that were found.

    Attributes:
        refs: sorted by key.
        ignored: how many files and folders were passed over, by the reason in words.
    """

    refs: PhotoList
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def ignored_line(self) -> str:
        """What was passed over, in one line for the user, the largest counts first; empty if nothing was."""
        counts = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count:,} × {reason}" for reason, count in counts[:6]]
        if len(counts) > 6:
            parts.append(f"{sum(count for _, count in counts[6:]):,} × other")
        return ", ".join(parts)


def find_images(source: Path, *, follow_links: bool = False, exclude: Path | None = None) -> Found:
    """Find the photos in a folder and its subfolders, or a single photo.

    The key of a photo is its POSIX path below ``source`` without suffix; the key of a single photo is its
    stem. In a folder, files with one of ``IMAGE_SUFFIXES`` are photos, and so are files with an unknown
    suffix or none whose first bytes are those of an image; a single photo may have any suffix, because its
    content determines the format. Hidden files and folders are passed over.

    Images in formats that are not read are photos as well, so that they are not overlooked: they fail when
    they are read. They are passed over if a photo of the same name lies beside them, as with the raw files
    of cameras. The key of such a file, and of one with an unknown suffix, is its whole path.

    A link to a file below ``source`` is a photo like any other. A link to nothing is kept, so that it is not
    overlooked: it fails when it is read.

    Args:
        source: the folder or the photo.
        follow_links: also follow links to folders, and links that lead out of ``source``.
        exclude: a folder to pass over, such as an out folder below ``source``.

    Raises:
        UsageError: ``source`` or a folder below it cannot be read, or there are no photos.
    """
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise _unreadable(source, error) from error
    if stat.S_ISREG(mode):
        if not os.access(source, os.R_OK):
            raise UsageError(f"Cannot read {shown(source)}: permission denied.")
        return Found(PhotoList([ImageRef(source.stem, source)]))
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{shown(source)} is neither a folder nor a photo.")

    ignored: Counter[str] = Counter()
    others: list[ImageRef] = []
    refs = PhotoList(_walk(source, follow_links, exclude, ignored, others))
    if others:
        keys = {ref.key for ref in refs}
        alone = [ref for ref in others if str(PurePosixPath(ref.key).with_suffix("")) not in keys]
        ignored[BESIDE_PHOTO] += len(others) - len(alone)
        refs = PhotoList([*refs, *alone])
    refs = refs.sorted()
    found = Found(refs, dict(+ignored))
    if not refs:
        passed_over = f" Passed over: {found.ignored_line}." if ignored else ""
        raise UsageError(
            f"No photos in {shown(source)}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} "
            f"there and in its subfolders.{passed_over}"
        )
    return found


def find_photos(paths: Sequence[Path]) -> Found:
    """Find photos that are named one by one. The key of each is its stem.

    Raises:
        UsageError: one of them is not there, cannot be read, or is no file.
    """
    refs: list[ImageRef] = []
    for path in paths:
        if path.is_dir():
            raise UsageError(f"{shown(path)} is a folder. Give either one folder, or photos only.")
        refs += find_images(path).refs
    return Found(PhotoList(refs).sorted())


def read_file_list(file: Path | BinaryIO) -> Found:
    """Read a list of photos: one path per line, or paths separated by NUL bytes if there are any.

    Relative paths start at the current directory. The key is the path as given, in POSIX form, without suffix
    and without root or drive. Blank lines and repeated paths are passed over. The bytes of a name are kept
    even if they are not valid text. If a path does not exist, but does with its accents encoded in another
    way (see ``pairing_name``), that one is taken. Files are not opened: a wrong name fails when it is read.

    Args:
        file: the list, or an open binary file.

    Raises:
        UsageError: the list cannot be read, names no photos, or has a path that contains "..".
    """
    name = shown(file) if isinstance(file, Path) else getattr(file, "name", "<list>")
    try:
        data = file.read_bytes() if isinstance(file, Path) else file.read()
    except OSError as error:
        raise _unreadable(name, error) from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"The list {name} is UTF-16 text; save it as UTF-8.")
    if is_decisions(data):
        raise UsageError(
            f"{name} has the decisions of a review, which names photos as they are called below IN. Give it"
            " as a file, and IN as well: `carvana-batch predict IN OUT --files-from FILE`."
        )
    data = data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of Windows editors

    listed = PhotoList(_listed(data, name)).sorted()  # so that equal paths are adjacent
    if not listed:
        raise UsageError(f"The list {name} names no photos.")
    refs = listed.select(index for index, ref in enumerate(listed) if index == 0 or ref != listed[index - 1])
    repeated = len(listed) - len(refs)
    return Found(refs, {REPEATED: repeated} if repeated else {})


def find_rejected(
    source: Path, file: Path, *, follow_links: bool = False, exclude: Path | None = None
) -> Found:
    """Find the photos in a folder that were rejected in a review; see :func:`find_images`.

    Args:
        source, follow_links, exclude: see :func:`find_images`.
        file: the decisions, as :func:`read_decisions` reads them.

    Raises:
        UsageError: the same; or the decisions cannot be read, are of other photos, or reject none.
    """
    decisions = read_decisions(file)
    found = find_images(source, follow_links=follow_links, exclude=exclude)
    matched = match_decisions(decisions, (ref.key for ref in found.refs), shown(file), source)
    rejected = [
        index
        for index, ref in enumerate(found.refs)
        if ref.key in matched and matched[ref.key].decision == REJECT
    ]
    if not rejected:
        raise UsageError(f"{shown(file)} rejects no mask, so there is nothing to do.")
    others = len(found.refs) - len(rejected)
    return Found(found.refs.select(rejected), {NOT_REJECTED: others} if others else {})


def take_shard(refs: Sequence[ImageRef], index: int, count: int) -> PhotoList:
    """Shard ``index`` of ``count``, counted from 1: every ``count``-th photo in the order of the keys.

    The shards are disjoint, together they contain all ``refs``, and their sizes differ by at most one photo.

    Raises:
        UsageError: ``index`` is not between 1 and ``count``.
    """
    if not 1 <= index <= count:
        raise UsageError(f"--shard {index}/{count}: the first number must lie between 1 and the second.")
    return PhotoList.of(refs).sorted()[index - 1 :: count]


def _listed(data: bytes, name: str) -> Iterator[ImageRef]:
    separator = b"\0" if b"\0" in data else b"\n"
    for number, item in enumerate(data.split(separator), start=1):
        line = os.fsdecode(item if separator == b"\0" else item.removesuffix(b"\r"))
        if line.strip():
            path = Path(_as_on_disk(line))
            yield ImageRef(_key_of_listed(path, f"{name}, line {number}"), path)


def _as_on_disk(path: str) -> str:
    """Return ``path``, or the form of it that exists if only the encoding of accents differs."""
    if path.isascii() or os.path.lexists(path):
        return path
    forms = (unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path))
    return next((form for form in forms if os.path.lexists(form)), path)


def _walk(
    source: Path,
    follow_links: bool,
    exclude: Path | None,
    ignored: Counter[str],
    others: list[ImageRef],
) -> Iterator[ImageRef]:
    """Yield the photos below a folder; append images with other suffixes to ``others``."""
    leads_outside = _outside_of(source)
    excluded = os.path.realpath(exclude) if exclude is not None else None
    # Folders to visit: path, prefix of the keys, and identities of the folder and all above it.
    waiting = [(str(source), "", frozenset([_identity(source)]))]
    while waiting:
        folder, prefix, above = waiting.pop()
        for entry in list_folder(folder):
            name = entry.name
            if name.startswith("."):
                ignored[HIDDEN] += 1
            elif _is_folder(entry):
                if entry.is_symlink() and not follow_links:
                    ignored[FOLDER_LINKS] += 1
                elif excluded is not None and os.path.realpath(entry.path) == excluded:
                    ignored[EXCLUDED] += 1
                elif not follow_links:
                    waiting.append((entry.path, f"{prefix}{name}/", above))
                elif (identity := _identity(entry.path)) in above:
                    ignored[LOOPS] += 1
                else:
                    waiting.append((entry.path, f"{prefix}{name}/", above | {identity}))
            else:
                path = Path(entry.path)
                is_photo = path.suffix.lower() in IMAGE_SUFFIXES
                if not is_photo and not _is_other_image(entry, path.suffix.lower()):
                    kind = f"files ending in {shown(path.suffix)}" if path.suffix else "files without suffix"
                    ignored[kind] += 1
                elif not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
                    ignored[SPECIAL] += 1
                elif entry.is_symlink() and not follow_links and leads_outside(entry.path):
                    ignored[OUTSIDE_LINKS] += 1
                elif is_photo:
                    yield ImageRef(prefix + path.stem, path)
                else:
                    others.append(ImageRef(prefix + name, path))


def _is_other_image(entry: os.DirEntry[str], suffix: str) -> bool:
    """Return whether a file is an image although its suffix is none of ``IMAGE_SUFFIXES``.

    Only files with an unknown suffix are opened.
    """
    if suffix in RAW_SUFFIXES or suffix in OTHER_IMAGE_SUFFIXES:
        return True
    if not may_be_image(entry.name):
        return False
    try:
        if not entry.is_file():  # opening a pipe would wait for its writer
            return False
        with open(entry.path, "rb") as file:  # noqa: PTH123 (takes any name)
            return is_image(file.read(HEAD_BYTES))
    except OSError:  # a file that cannot be opened is passed over like others with its suffix
        return False


def may_be_image(name: str) -> bool:
    """Whether only the first bytes of a file tell whether it is an image, because its suffix is unknown."""
    suffix = Path(name).suffix.lower()
    known = IMAGE_SUFFIXES | RAW_SUFFIXES | OTHER_IMAGE_SUFFIXES | NOT_IMAGES
    return suffix not in known and not suffix.endswith("~")


def list_folder(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise _unreadable(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop
        return False


def _identity(folder: Path | str) -> tuple[int, int]:
    try:
        status = Path(folder).stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _outside_of(source: Path) -> Callable[[str], bool]:
    inside = os.path.realpath(source).rstrip(os.sep) + os.sep

    def leads_outside(link: str) -> bool:
        target = os.path.realpath(link)
        return not target.startswith(inside) and os.path.exists(target)  # noqa: PTH110 (takes any name)

    return leads_outside


def _key_of_listed(path: Path, where: str) -> str:
    parts = list(path.parts)
    if path.anchor:
        del parts[0]
    if not parts:
        raise UsageError(f"{where}: {shown(path)} is not a file.")
    if ".." in parts:
        raise UsageError(
            f'{where}: {shown(path)} contains "..", so its mask would lie outside of the out folder; '
            "give the path without it, or an absolute one."
        )
    parts[-1] = path.stem
    return "/".join(parts)


def _unreadable(path: Path | str, error: OSError) -> UsageError:
    if isinstance(error, FileNotFoundError):
        return UsageError(f"There is no file or folder {shown(path)}.")
    return UsageError(f"Cannot read {shown(path)}: {error.strerror or error}.")
