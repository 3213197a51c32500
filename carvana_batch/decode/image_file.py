"""Open image files of all supported formats as Pillow images; a bad file raises ImageError.

JPEG is decoded by simplejpeg, TIFF by tifffile, JPEG XL by imagecodecs, HEIC by pillow-heif, everything else
by Pillow. Only the first page or frame of a file is decoded, and embedded colour profiles are ignored.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from carvana_batch.decode.damage import (
    find_bmp_damage,
    find_gif_damage,
    find_missing_png_rows,
    find_png_damage,
    find_webp_damage,
)
from carvana_batch.decode.heif_damage import find_heif_damage
from carvana_batch.decode.jpeg import decode_jpeg, without_odd_metadata
from carvana_batch.decode.jpeg_2000 import decode_deep_jpeg_2000, find_jpeg_2000_damage
from carvana_batch.decode.jpeg_markers import unread_jpeg
from carvana_batch.decode.jpeg_xl import decode_jpeg_xl
from carvana_batch.decode.pixels import CUT_SHORT, PAGES, check_size
from carvana_batch.decode.png_chunks import without_metadata
from carvana_batch.errors import DamageError, ImageError
from carvana_batch.inputs.formats import HEAD_BYTES, format_of, unreadable_image
from carvana_batch.text import shown

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.options.DECODE_THREADS = 1  # the workers use all cores

# Pillow's own limit would reject images that --pixel-limit allows, and warn about smaller ones. read_header
# checks the size of every file instead.
Image.MAX_IMAGE_PIXELS = None

JPEG_FORMATS = {"JPEG", "MPO"}
"""Pillow's names of the formats that contain JPEG data."""

PILLOW_FEATURES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""What Pillow, which may be built without it, needs to read a format."""

DECODER_ERRORS = (
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
"""What decoders raise for damaged files; found by cutting files and flipping bytes in every format."""


@contextmanager
def open_image_file(path: Path) -> Iterator[BinaryIO]:
    """Open an image file for a with block, in which any error of opening or decoding becomes an ImageError.

    Raises:
        ImageError: the path is not a regular file, or it cannot be opened, read or decoded. The message
            begins with the path.
    """
    try:
        with _open_regular_file(path) as file:
            yield file
    except ImageError as error:
        raise type(error)(f"{shown(path)} {error}") from error
    except FileNotFoundError as error:
        reason = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise ImageError(f"{shown(path)} {reason}") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{shown(path)} {_describe_damage(error)}") from error


def _describe_damage(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    if isinstance(error, UnidentifiedImageError):
        return "is damaged or cut short: its header cannot be read"
    if not isinstance(error, (OSError, RuntimeError, SyntaxError, ValueError)):
        return "is damaged or cut short"  # messages of other errors, such as "0", do not help
    detail = shown(" ".join(str(error).split())[:100])
    if "truncated" in detail.lower():
        return CUT_SHORT
    return f"is damaged or cut short ({detail})"


def _open_regular_file(path: Path) -> BinaryIO:
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise ImageError("is a folder, not an image")
    if not stat.S_ISREG(kind):  # opening a pipe would wait for its writer
        raise ImageError("is not a regular file")
    return path.open("rb")


def refuse_damage(reason: str) -> None:
    """Refuse a damaged image although pixels can be decoded; the other choice is to take note of the reason.

    Raises:
        DamageError: always.
    """
    raise DamageError(reason)


def read_header(
    file: BinaryIO, pixel_limit: int, on_damage: Callable[[str], None] = refuse_damage
) -> Image.Image:
    """Read the header of an image, and check the size in it.

    Args:
        file: an open image file, at its start.
        pixel_limit: most pixels that the image may have.
        on_damage: called with the reason if a TIFF or AVIF is damaged, but pixels can be decoded.

    Returns:
        The first page or frame, with its orientation tag. TIFF, AVIF and JPEG XL are decoded already; pass
        other formats to :func:`decode_pixels`.

    Raises:
        ImageError: the format is not supported, the file is damaged, or it has more than ``pixel_limit``
            pixels.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise ImageError("is empty (0 bytes)")
    if unreadable := unreadable_image(head, Path(str(file.name)).suffix):
        raise ImageError(f"is {unreadable}, which is not read; save it as JPEG, PNG or TIFF")
    image_format = format_of(head)
    if image_format is None:
        raise ImageError(
            "is not an image in a supported format (JPEG, PNG, TIFF, WebP, HEIC, AVIF, JPEG XL, JPEG 2000,"
            " GIF, BMP)"
        )
    with damage_as_image_error():
        if image_format == "TIFF":
            from carvana_batch.decode.tiff import decode_tiff  # tifffile takes long to import

            return decode_tiff(file, pixel_limit, on_damage)
        if image_format == "JPEGXL":
            return decode_jpeg_xl(file, pixel_limit)
        image = _open_header(file, image_format)
        check_size(image.width, image.height, pixel_limit)
        if image_format != "AVIF":
            return image
        turned = _decode_turned(image)
        report_damage(image, file, on_damage)
        return turned


def _open_header(file: BinaryIO, image_format: str) -> Image.Image:
    if image_format == "HEIF":
        if pillow_heif is None:
            raise ImageError("is a HEIC photo; to read it, run: pip install 'carvana-batch[heic]'")
        return pillow_heif.HeifImageFile(file)  # type: ignore[no-any-return]
    feature = PILLOW_FEATURES.get(image_format)
    if feature is not None and not features.check(feature):
        raise ImageError(f"is an image of the format {image_format}, which this build of Pillow cannot read")
    with without_metadata_warnings():
        if image_format == "JPEG":
            return _open_jpeg_header(file)
        content = without_metadata(file) if image_format == "PNG" else file
        return Image.open(content, formats=[image_format])


def _open_jpeg_header(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=["JPEG"])
    except UnidentifiedImageError:
        file.seek(0)
        content = file.read()
        if unread := unread_jpeg(content):
            advice = "save it as JPEG of 8 bits, PNG or TIFF"
            raise ImageError(f"is {unread}, which is not read; {advice}") from None
        return Image.open(io.BytesIO(without_odd_metadata(content)), formats=["JPEG"])


def _decode_turned(image: Image.Image) -> Image.Image:
    """Decode an image whose turn belongs to the picture, so that masks must lie on the turned grid.

    Pillow gives the turn of AVIF as an orientation tag. The decoders of HEIC and JPEG XL, of which the same
    holds, turn the pixels.
    """
    image.load()
    pages = getattr(image, "n_frames", 1)
    with without_metadata_warnings():
        turned = ImageOps.exif_transpose(image)
    turned.info[PAGES] = pages
    return turned


FIND_DAMAGE = {
    "AVIF": find_heif_damage,
    "BMP": find_bmp_damage,
    "GIF": find_gif_damage,
    "HEIF": find_heif_damage,
    "JPEG2000": find_jpeg_2000_damage,
    "PNG": find_png_damage,
    "WEBP": find_webp_damage,
}
"""Damage that Pillow does not notice, by its names of the formats."""


def decode_pixels(
    image: Image.Image, file: BinaryIO, on_damage: Callable[[str], None] = refuse_damage
) -> Image.Image:
    """Decode the pixels of an image that :func:`read_header` has returned.

    Args:
        image: the header.
        file: its file.
        on_damage: called with the reason if the file is damaged, but pixels can be decoded.

    Raises:
        ImageError: the file is damaged.
    """
    with damage_as_image_error():
        if image.format in JPEG_FORMATS:
            file.seek(0)
            pixels = decode_jpeg(file.read(), image.mode, None, on_damage)
            if pixels is not None:
                return _as_image(pixels, image)
        if image.format == "JPEG2000":
            file.seek(0)
            deep = decode_deep_jpeg_2000(file)
            if deep is not None:
                report_damage(image, file, on_damage)
                return deep
        image.load()
        report_damage(image, file, on_damage)
        if image.format == "PNG" and _may_lack_rows(image):  # counting takes a third of the time of decoding
            file.seek(0)
            damage = find_missing_png_rows(file)
            if damage is not None:
                on_damage(damage)
    if image.mode == "P" and image.palette is None:  # Pillow fails when it converts such an image
        raise ImageError("is damaged: it has no colours for its palette")
    return image


def _may_lack_rows(image: Image.Image) -> bool:
    """Return whether the last row of a PNG is zero, as Pillow leaves rows for which there are no data."""
    width, height = image.size
    last = image.crop((0, height - 1, width, height))
    return bool(image.info.get("interlace")) or last.getbbox(alpha_only=False) is None


def report_damage(image: Image.Image, file: BinaryIO, on_damage: Callable[[str], None]) -> None:
    """Call ``on_damage`` if there is damage of which the decoder of an image says nothing."""
    if image.format in FIND_DAMAGE:
        file.seek(0)
        damage = FIND_DAMAGE[image.format](file)
        if damage is not None:
            on_damage(damage)


def _as_image(pixels: NDArray[np.uint8], header: Image.Image) -> Image.Image:
    """Make an image of the pixels of a JPEG and its header."""
    if header.mode == "CMYK":  # inverted, as Adobe writes it
        pixels = 255 - pixels
    image = Image.fromarray(pixels[..., 0] if header.mode == "L" else pixels, header.mode)
    image.format, image.info = header.format, header.info
    return image


@contextmanager
def damage_as_image_error() -> Iterator[None]:
    """Turn any error of a decoder in a with block into an ImageError."""
    try:
        yield
    except DECODER_ERRORS as error:
        raise ImageError(_describe_damage(error)) from error


warnings_lock = threading.Lock()


@contextmanager
def without_metadata_warnings() -> Iterator[None]:
    """Hide Pillow's warnings about invalid metadata in a with block, for reading headers and EXIF.

    The lock is needed because Python's warning filters are shared by all threads.
    """
    with warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def renew_warnings_lock() -> None:
    """Let others read headers again after a thread has vanished, or hangs, that may hold the lock."""
    global warnings_lock
    warnings_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread may hold the lock when a worker is forked
    os.register_at_fork(after_in_child=renew_warnings_lock)
