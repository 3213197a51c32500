"""Decoding: a photo becomes (H, W, 3) uint8 RGB, a hard mask becomes packed bits, a bad file an ImageError.

TIFF is decoded by tifffile, everything else by Pillow, but for colour JPEGs where simplejpeg is installed: it
gives the same pixels in half the time. All others first become a Pillow image in one of a few
modes, so that grey, palette, alpha and CMYK are each interpreted in one place. Only the first page or
frame of a file is looked at, and embedded colour profiles are ignored.
"""

from __future__ import annotations

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
from PIL import Image, UnidentifiedImageError

from carvana_batch.inputs import shown
from carvana_batch.jpeg import has_end
from carvana_batch.options import DEFAULT_PIXEL_LIMIT
from carvana_batch.pixels import ORIENTATION, check_size, scale_to_eight_bits
from carvana_batch.png import decode_mask
from carvana_batch.records import ImageError, PackedMask
from carvana_batch.tiff import decode_tiff

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

MASK_PIXEL_LIMIT = 2**31
"""Masks are the user's own, so none that a raised --pixel-limit has made is refused."""

JPEG_DEVIATION = 63
"""How far compression may move a value of a JPEG mask from black or white."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)

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


def read_image(
    path: Path,
    *,
    pixel_limit: int = DEFAULT_PIXEL_LIMIT,
    apply_exif: bool = False,
    find_room: Callable[[int], NDArray[np.uint8] | None] | None = None,
) -> NDArray[np.uint8]:
    """Decode a photo to (H, W, 3) uint8, RGB, C-contiguous and writable.

    The content decides on the format, not the suffix: JPEG, PNG, WebP, GIF, BMP or TIFF. Grey becomes
    three equal channels, CMYK becomes RGB, 16-bit values are scaled to 8 bits, and transparent pixels
    are laid over white. Floating-point TIFFs must hold values from 0 to 1.

    The pixels stay on the stored grid; ``apply_exif`` turns them the way the orientation tag says.

    ``find_room`` may give memory, uint8, for so many bytes: the pixels may then be a view of it, and what lay
    there is lost in any case.

    Raises ImageError if the file cannot be used, or has more than ``pixel_limit`` pixels.
    """
    with _told_as_image_error(path), _open(path) as file:
        image = _decode_header(file, pixel_limit)
        pixels = _decode_colour_jpeg(image, file, find_room)
        if pixels is None:
            pixels = _to_rgb(_decode_rest(image, file))
        return _upright(pixels, _orientation(image)) if apply_exif else pixels


def read_mask(path: Path, *, pixel_limit: int = MASK_PIXEL_LIMIT, hard: bool = False) -> PackedMask:
    """Decode a hard mask, such as a PNG of this program or a GIF of the Carvana ground truth.

    Which pixels are car, the first rule that fits:

    - palette images that use no colours but black and white: the white ones;
    - images whose values (in palette images: indexes) are all 0 or 1: those with 1;
    - others: those with at least half of the full value, for example 128 of 255.

    Colour images must in fact be grey, and an alpha channel must be opaque.

    ``hard`` refuses what the last rule would have to guess: pixels that are neither black nor white. In a
    JPEG, values up to ``JPEG_DEVIATION`` from either are taken for compression; one whose values are
    all so low, but not all 0, is refused, because a JPEG does not keep 0 and 1 apart.

    Raises ImageError if the file cannot be used as a mask, or has more than ``pixel_limit`` pixels.
    """
    with _told_as_image_error(path), _open(path) as file:
        mask = decode_mask(file, pixel_limit)
        if mask is not None:
            return mask
        file.seek(0)
        return _to_mask(_decode_rest(_decode_header(file, pixel_limit), file), hard)


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


def _decode_colour_jpeg(
    image: Image.Image, file: BinaryIO, find_room: Callable[[int], NDArray[np.uint8] | None] | None
) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8 as Pillow gives them; None for what Pillow has to decode, or say what is wrong with."""
    if simplejpeg is None or image.format != "JPEG" or image.mode != "RGB":
        return None
    file.seek(0)
    content = file.read()
    if not has_end(content):
        return None
    room = None if find_room is None else find_room(3 * image.width * image.height)
    try:
        return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
            content, colorspace="RGB", strict=True, buffer=room
        )
    except (RuntimeError, ValueError):
        return None


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


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):  # Pillow would clip the values
        grey = scale_to_eight_bits(np.asarray(image), 16)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    elif image.mode not in {"1", "L", "P", "RGB", "CMYK"}:
        raise ImageError(f"has pixels of the kind {image.mode}, which is not supported; save it as RGB")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_mask(image: Image.Image, hard: bool) -> PackedMask:
    if image.has_transparency_data and not image.mode.startswith("I;16"):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise ImageError("has transparent pixels, so it is not clear which are car; save it as grey")
    if image.mode == "1":
        return PackedMask.from_bool(np.asarray(image))
    if image.mode == "P":
        car_colours, indexes = _car_colours(image, hard), np.asarray(image)
        (cars,) = np.nonzero(car_colours)
        # Masks have one such colour as a rule, and to compare is several times as fast as to look up.
        return PackedMask.from_bool(indexes == cars[0] if len(cars) == 1 else car_colours[indexes])
    grey = _grey(image)
    if hard and image.format in JPEG_FORMATS:
        if 0 < grey.max() <= JPEG_DEVIATION:
            raise ImageError(
                f"has no value above {grey.max()}: JPEG does not keep a mask of 0 and 1; save it as PNG"
            )
        _refuse_between(grey, JPEG_DEVIATION)
    elif hard and grey.max() > 1:
        _refuse_between(grey)
    car = grey > 0 if grey.max() <= 1 else grey > np.iinfo(grey.dtype).max // 2
    return PackedMask.from_bool(car)


def _refuse_between(grey: NDArray[np.uint8] | NDArray[np.uint16], deviation: int = 0) -> None:
    """Raise ImageError for (H, W) values that are more than ``deviation`` from both black and white."""
    full = np.iinfo(grey.dtype).max
    between = (grey > deviation) & (grey < full - deviation)
    if between.any():
        y, x = np.unravel_index(between.argmax(), between.shape)
        count = np.count_nonzero(between)
        raise ImageError(
            f"has {count} {'pixel' if count == 1 else 'pixels'} neither black (0) nor white ({full}), such as"
            f" the value {grey[y, x]} at x {x}, y {y}; make each of them background or car"
        )


def _car_colours(image: Image.Image, hard: bool) -> NDArray[np.bool_]:
    """For each index of a palette image, (256,), whether it is car: the rules of ``read_mask``."""
    flat = image.getpalette("RGB") or []
    palette = list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
    palette += [BLACK] * (256 - len(palette))
    used = [index for index, count in enumerate(image.histogram()) if count]
    colours = {palette[index] for index in used}
    if colours <= {BLACK, WHITE} and WHITE in palette:
        return np.array([colour == WHITE for colour in palette])
    if max(used) <= 1:
        return np.array([index == 1 for index in range(256)])
    if any(not red == green == blue for red, green, blue in colours):
        raise ImageError("has coloured pixels, so it is not a mask; car must be white, the rest black")
    greys = np.array([red for red, _, _ in palette], np.uint8)
    if hard:
        _refuse_between(greys[np.asarray(image)])
    return greys >= 128


def _grey(image: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The (H, W) values of an image that may have several channels, but equal ones."""
    if image.mode in {"L", "LA"}:
        return np.asarray(image.getchannel("L"))
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode not in {"RGB", "RGBA", "RGBa", "PA"}:
        raise ImageError(f"has pixels of the kind {image.mode}, so it is not a mask; save it as grey")
    red, green, blue = image.convert("RGB").split()
    if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
        raise ImageError("has coloured pixels, so it is not a mask; car must be white, the rest black")
    return np.asarray(red)


def _orientation(image: Image.Image) -> int:
    try:
        with _quiet_header():
            value = image.getexif().get(ORIENTATION, 1)
    except DAMAGE:  # the picture itself is fine
        return 1
    return value if isinstance(value, int) else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo a stored ``orientation``, 1 to 8 as in EXIF; other values mean upright."""
    if orientation in {5, 6, 7, 8}:  # stored with rows and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
