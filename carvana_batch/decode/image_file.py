"""Opening an image file of any supported format as a Pillow image; a bad file becomes an ImageError.

TIFF is decoded by tifffile, everything else by Pillow. Only the first page or frame of a file is looked at,
and embedded colour profiles are ignored.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from carvana_batch.decode.jpeg_markers import has_end
from carvana_batch.decode.pixels import check_size
from carvana_batch.decode.tiff import decode_tiff
from carvana_batch.errors import ImageError
from carvana_batch.text import shown

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


# Pillow's own limit would refuse what --pixel-limit allows, and it warns long before that. The size is
# checked here, from the header, for every file.
Image.MAX_IMAGE_PIXELS = None

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

JPEG_FORMATS = {"JPEG", "MPO"}
"""As Pillow calls them."""

CUT_SHORT = "is cut short: the file ends before the picture does"

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # the base of all errors of imagecodecs
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What the decoders raise for damaged files; found by cutting and flipping bytes in every format."""


@contextmanager
def _told_as_image_error(path: Path) -> Iterator[None]:
    """Put the file's name before a reason raised within; turn what decoders raise into such a reason."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{shown(path)} {error}") from error
    except FileNotFoundError as error:
        reason = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise ImageError(f"{shown(path)} {reason}") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{shown(path)} {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    if isinstance(error, UnidentifiedImageError):
        return "is damaged or cut short: its header cannot be read"
    if not isinstance(error, (OSError, RuntimeError, SyntaxError, ValueError)):
        return "is damaged or cut short"  # the words of the others, such as "0", would tell nothing
    detail = shown(" ".join(str(error).split())[:100])
    if "truncated" in detail.lower():
        return CUT_SHORT
    return f"is damaged or cut short ({detail})"


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise ImageError("is a folder, not an image")
    if not stat.S_ISREG(kind):  # to open a pipe would be to wait for its writer
        raise ImageError("is not a regular file")
    with path.open("rb") as file:
        yield file


def _decode_header(file: BinaryIO, pixel_limit: int) -> Image.Image:
    """The first page or frame as a Pillow image, which also knows the orientation tag; TIFF is decoded."""
    head = file.read(16)
    file.seek(0)
    if not head:
        raise ImageError("is empty (0 bytes)")
    image_format = _format_of(head)
    if image_format is None:
        raise ImageError("is not an image in a supported format (JPEG, PNG, WebP, GIF, BMP, TIFF)")
    with _told_as_damage():
        if image_format == "TIFF":
            return decode_tiff(file, pixel_limit)
        with _quiet_header():
            image = Image.open(file, formats=[image_format])
        check_size(image.width, image.height, pixel_limit)
        return image


def _decode_rest(image: Image.Image, file: BinaryIO) -> Image.Image:
    with _told_as_damage():
        image.load()
        if image.format in JPEG_FORMATS:  # Pillow notices most of the ends that are missing, but not all
            file.seek(0)
            if not has_end(file.read()):
                raise ImageError(CUT_SHORT)
    return image


@contextmanager
def _told_as_damage() -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise ImageError(_reason(error)) from error


def _format_of(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in SIGNATURES if head.startswith(signature)), None)


_header_lock = threading.Lock()


@contextmanager
def _quiet_header() -> Iterator[None]:
    """Hide Pillow's warnings on odd metadata, which come from reading headers and EXIF only.

    Python has one switch for the warnings of all threads, hence the lock.
    """
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _renew_header_lock() -> None:
    global _header_lock
    _header_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread may hold the lock while a worker is forked
    os.register_at_fork(after_in_child=_renew_header_lock)
