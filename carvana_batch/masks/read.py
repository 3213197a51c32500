"""Read hard masks from image files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.decode.image_file import (
    JPEG_FORMATS,
    decode_pixels,
    open_image_file,
    read_header,
)
from carvana_batch.decode.photo import find_orientation
from carvana_batch.decode.pixels import BITS, DIFFERING_SAMPLES, LOSSY, PAGES, scale_to_eight_bits
from carvana_batch.decode.png_chunks import BITS_OF_PNG, decode_values, without_metadata
from carvana_batch.errors import ImageError
from carvana_batch.masks.bands import find_band
from carvana_batch.masks.png import decode_mask
from carvana_batch.masks.values import (
    PNG_ADVICE,
    TRANSITION_FLAT_SHARE,
    MaskPixels,
    MaskValues,
    Value,
    flat_share,
    is_soft,
)
from carvana_batch.orientation import UPRIGHT
from carvana_batch.text import shown
from carvana_batch.values import PackedMask

MASK_PIXEL_LIMIT = 2**31
"""High enough for any mask that was made with a raised --pixel-limit."""

CONTRAST = 64
"""Least difference of the two values of a mask in a JPEG; it changes values by up to a quarter of that."""

MARGIN = 16
"""In a JPEG, and in a palette that was computed, values so near to black or white mean black or white."""

JPEG_NOISE_AT_EDGES = 12
"""How far values in a JPEG may be from their level over an area beside an edge."""

JPEG_NOISE = 4
"""Range of values in a JPEG within areas that were flat before compression."""

AREA = 17
"""Side in pixels of a square that compression noise, in blocks of 8 pixels, does not fill."""

COLOURED = "has coloured pixels, so it is not a mask; car must be white, the rest black"

BLACK = (0, 0, 0)

BLACK_AND_WHITE = MaskValues()
"""How the masks of this program, and those of the Carvana ground truth, are read."""


def read_mask(
    path: Path, values: MaskValues = BLACK_AND_WHITE, *, pixel_limit: int = MASK_PIXEL_LIMIT
) -> PackedMask:
    """Decode a hard mask, such as a PNG of this program or a GIF of the Carvana ground truth.

    Colour images must be grey in fact, and an alpha channel must be opaque, or 0 throughout.

    Args:
        path: the file.
        values: which of its values mean car.
        pixel_limit: most pixels that the mask may have.

    Raises:
        ImageError: the file cannot be used as a mask, has other values, or has more than ``pixel_limit``
            pixels.
    """
    with _open_mask_file(path) as file:
        if values.one_bit_is_clear:
            mask = decode_mask(file, pixel_limit)
            if mask is not None:
                return mask
            file.seek(0)
        image = read_header(file, pixel_limit)
        _refuse_ambiguous(image)
        return values.to_mask(_find_values(decode_pixels(image, file), file))


def read_mask_pixels(path: Path, *, pixel_limit: int = MASK_PIXEL_LIMIT) -> MaskPixels:
    """Decode a mask file without deciding which of its values mean car.

    Raises:
        ImageError: the file cannot be used as a mask, or has more than ``pixel_limit`` pixels.
    """
    with _open_mask_file(path) as file:
        mask = decode_mask(file, pixel_limit)
        if mask is not None:
            return _one_bit(mask.to_bool())
        file.seek(0)
        image = read_header(file, pixel_limit)
        _refuse_ambiguous(image)
        return _find_values(decode_pixels(image, file), file)


@contextmanager
def _open_mask_file(path: Path) -> Iterator[BinaryIO]:
    """Open a mask file for a with block, in which running out of memory becomes an ImageError, too."""
    try:
        with open_image_file(path) as file:
            yield file
    except MemoryError as error:
        raise ImageError(f"{shown(path)} does not fit into the memory that is free") from error


def _one_bit(ones: NDArray[np.bool_]) -> MaskPixels:
    values: dict[int, Value] = {int(value): int(value) for value in {bool(ones.min()), bool(ones.max())}}
    return MaskPixels(ones.view(np.uint8), values, full=1)


def _find_values(image: Image.Image, file: BinaryIO) -> MaskPixels:
    if image.has_transparency_data and not image.mode.startswith("I;16"):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() not in {(255, 255), (0, 0)}:  # 0 throughout means that alpha is not used
            raise ImageError(
                "has transparent pixels, so it is not clear which are car; save it without transparency if"
                " its colours show the car, or save the alpha channel as a grey image if that does"
            )
    bits = image.info.get(BITS, 0)
    if image.format == "PNG":
        file.seek(BITS_OF_PNG)
        bits = file.read(1)[0]
    if image.mode == "1" or (image.mode == "L" and bits == 1):
        return _one_bit(np.asarray(image).view(np.uint8) > 0)  # Pillow stores 255 for True
    if image.mode == "P":
        return MaskPixels(np.asarray(image), _read_palette(image), full=255)
    grey: NDArray[np.uint8] | NDArray[np.uint16]
    if image.format == "PNG" and bits == 16 and not image.mode.startswith("I;16"):
        grey = _deep_grey(file)
    else:
        grey = _grey(image)
    lossy = image.format in JPEG_FORMATS or bool(image.info.get(LOSSY))
    if lossy:
        grey = _restore_levels(grey)
    if image.mode == "L" and 1 < bits < 8:
        grey = _undo_scaling(grey, bits)
    full = 2**bits - 1 if bits else int(np.iinfo(grey.dtype).max)
    levels = np.flatnonzero(_histogram(grey))
    return MaskPixels(grey, {level: level for level in levels.tolist()}, full, lossy=lossy)


def _undo_scaling(grey: NDArray[np.uint8] | NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Return the values of ``bits`` bits that a decoder has scaled to 8."""
    table = np.zeros(256, np.uint8)
    table[scale_to_eight_bits(np.arange(2**bits, dtype=np.uint8), bits)] = np.arange(2**bits)
    return table[grey]


def _deep_grey(file: BinaryIO) -> NDArray[np.uint16]:
    """Return the (H, W) values of a 16-bit PNG with several channels, of which Pillow keeps 8 bits."""
    file.seek(0)
    values: NDArray[np.uint16] = decode_values(without_metadata(file))
    colours = values[..., : values.shape[2] - (values.shape[2] + 1) % 2]
    if (colours != colours[..., :1]).any():
        raise ImageError(COLOURED)
    return np.ascontiguousarray(colours[..., 0])


def _read_palette(image: Image.Image) -> dict[int, Value]:
    """Return the grey level or colour of each index that occurs."""
    flat = image.getpalette("RGB") or []
    palette = list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
    palette += [BLACK] * (256 - len(palette))
    used = [index for index, count in enumerate(image.histogram()) if count]
    colours = {palette[index] for index in used}
    if len(used) > 1 and len(colours) == 1:  # only the indexes can tell
        return {index: index for index in used}
    values = {index: _value_of(*palette[index]) for index in used}
    levels = sorted(level for level in set(values.values()) if isinstance(level, int))
    if len(levels) == len(colours) == 2 and levels[1] - levels[0] >= CONTRAST:
        restored = dict(zip(levels, _restore_black_and_white(*levels), strict=True))
        return {index: restored[level] for index, level in values.items() if isinstance(level, int)}
    return values


def _restore_black_and_white(low: int, high: int) -> tuple[int, int]:
    return 0 if low <= MARGIN else low, 255 if high >= 255 - MARGIN else high


def _value_of(red: int, green: int, blue: int) -> Value:
    return red if red == green == blue else (red, green, blue)


def _restore_levels(grey: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Undo what JPEG compression does to a mask with two levels; soft masks are returned as they are.

    Raises:
        ImageError: the levels cannot be told from compression noise, or there are more than two.
    """
    low, high = int(grey.min()), int(grey.max())
    if low == high:
        return grey
    if high - low < CONTRAST:
        raise ImageError(
            f"has values from {low} to {high}: JPEG does not keep values as close as 0 and 1; {PNG_ADVICE}"
        )
    middle = (low + high) // 2
    counts = _histogram(grey)
    low, high = int(counts[: middle + 1].argmax()), middle + 1 + int(counts[middle + 1 :].argmax())
    margin = (high - low) // 4
    between = counts[low + margin + 1 : high - margin].sum()
    apart = (np.abs(grey.astype(np.int16) - low) > JPEG_NOISE_AT_EDGES) & (
        np.abs(grey.astype(np.int16) - high) > JPEG_NOISE_AT_EDGES
    )
    from scipy.ndimage import minimum_filter  # which takes long, and few masks need it

    has_areas = bool(minimum_filter(apart, AREA, mode="constant").any())
    low, high = _restore_black_and_white(low, high)
    if has_areas or (
        between and flat_share(grey, low + margin, high - margin, JPEG_NOISE) > TRANSITION_FLAT_SHARE
    ):
        soft = MaskPixels(grey, {int(level): int(level) for level in np.flatnonzero(counts)}, full=255)
        if (low, high) == (0, 255) and is_soft(soft, JPEG_NOISE):
            return grey
        raise ImageError(
            f"has {np.count_nonzero(apart):,} pixels that are neither near {low} nor near {high}, the most"
            f" frequent values: JPEG does not keep the values of such a mask; {PNG_ADVICE}"
        )
    band = find_band(grey, low, high, full=255)
    if band is not None:
        level, pixels = band
        raise ImageError(
            f"has {pixels:,} pixels near {level} in a band along the outline, beside {low} and {high}: JPEG"
            f" does not keep the values of such a mask; {PNG_ADVICE}"
        )
    return np.where(grey > (low + high) // 2, np.uint8(high), np.uint8(low))


def _histogram(grey: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return the number of pixels of each level."""
    if grey.dtype == np.uint8:  # Pillow is four times as fast
        return np.array(Image.fromarray(grey).histogram())
    return np.bincount(grey.ravel())


def _refuse_ambiguous(image: Image.Image) -> None:
    """Refuse images that may contain more than one mask, or lie in another way than their pixels.

    Raises:
        ImageError: there are several pages, samples that would be ignored although they differ, or an
            orientation.
    """
    orientation = find_orientation(image)
    if orientation != UPRIGHT:
        raise ImageError(
            f"has the EXIF orientation {orientation}, so it is not clear which way it lies; save it without"
        )
    pages = int(image.info.get(PAGES, 0) or getattr(image, "n_frames", 1))
    if pages > 1:
        raise ImageError(f"has {pages} pages, so it is not clear which is the mask; save one of them")
    if image.info.get(DIFFERING_SAMPLES):
        raise ImageError(
            "has several samples per pixel that differ, so it is not clear which is the mask; save one"
        )


def _grey(image: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the (H, W) values of a grey image, which may be stored as three equal channels."""
    if image.mode in {"L", "LA"}:
        return np.asarray(image.getchannel("L"))
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode not in {"RGB", "RGBA", "RGBa", "PA"}:
        raise ImageError(f"has pixels of the kind {image.mode}, so it is not a mask; save it as grey")
    red, green, blue = image.convert("RGB").split()
    if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
        raise ImageError(COLOURED)
    return np.asarray(red)
