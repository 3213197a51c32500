"""Read hard masks from image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.decode.image_file import (
    JPEG_FORMATS,
    decode_pixels,
    open_image_file,
    read_header,
)
from carvana_batch.decode.tiff import DIFFERING_SAMPLES, PAGES
from carvana_batch.errors import ImageError
from carvana_batch.masks.png import decode_mask
from carvana_batch.values import PackedMask

MASK_PIXEL_LIMIT = 2**31
"""High enough for any mask that was made with a raised --pixel-limit."""

JPEG_DEVIATION = 63
"""How far JPEG compression may move a mask value from black or white."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def read_mask(path: Path, *, pixel_limit: int = MASK_PIXEL_LIMIT, hard: bool = False) -> PackedMask:
    """Decode a hard mask, such as a PNG of this program or a GIF of the Carvana ground truth.

    The first of these rules that applies determines which pixels are car:

    - palette images that use only black and white: white pixels;
    - palette images that use two colours: pixels of the brighter one;
    - images whose values (in palette images: indexes) are all 0 or 1: pixels of value 1;
    - others: pixels of at least half the full value, for example 128 of 255.

    Colour images must be grey in fact, and an alpha channel must be opaque, or 0 throughout.

    Args:
        path: the file.
        pixel_limit: most pixels that the mask may have.
        hard: refuse pixels that are neither black nor white, where the last rule would have to guess. In a
            JPEG, deviations up to ``JPEG_DEVIATION`` are attributed to compression. A JPEG with no value
            above that is refused unless all are 0, because compression does not preserve 0 and 1.

    Raises:
        ImageError: the file cannot be used as a mask, or has more than ``pixel_limit`` pixels.
    """
    with open_image_file(path) as file:
        mask = decode_mask(file, pixel_limit)
        if mask is not None:
            return mask
        file.seek(0)
        image = read_header(file, pixel_limit)
        _refuse_ambiguous(image)
        return _to_mask(decode_pixels(image, file), hard)


def _to_mask(image: Image.Image, hard: bool) -> PackedMask:
    if image.has_transparency_data and not image.mode.startswith("I;16"):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() not in {(255, 255), (0, 0)}:  # 0 throughout means that alpha is not used
            raise ImageError("has transparent pixels, so it is not clear which are car; save it as grey")
    if image.mode == "1":
        return PackedMask.from_bool(np.asarray(image))
    if image.mode == "P":
        car_colours, indexes = _car_colours(image, hard), np.asarray(image)
        (cars,) = np.nonzero(car_colours)
        # Usually there is one such colour, and comparing is several times as fast as table look-up.
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
    """Refuse (H, W) values that are more than ``deviation`` from both black and white.

    Raises:
        ImageError: there is such a value; the message gives their number and the first.
    """
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
    """Return whether each palette index means car, (256,) bool, by the rules of :func:`read_mask`."""
    flat = image.getpalette("RGB") or []
    palette = list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
    palette += [BLACK] * (256 - len(palette))
    used = [index for index, count in enumerate(image.histogram()) if count]
    colours = {palette[index] for index in used}
    if colours <= {BLACK, WHITE} and WHITE in palette:
        return np.array([colour == WHITE for colour in palette])
    if len(colours) == 2:
        darker, brighter = sorted(colours, key=_brightness)
        if _brightness(darker) == _brightness(brighter):
            raise ImageError(
                f"has the colours {darker} and {brighter}, which are equally bright, so that it is not clear"
                " which is car; make car white and the rest black"
            )
        return np.array([colour == brighter for colour in palette])
    if max(used) <= 1:
        return np.array([index == 1 for index in range(256)])
    if any(not red == green == blue for red, green, blue in colours):
        raise ImageError("has coloured pixels, so it is not a mask; car must be white, the rest black")
    greys = np.array([red for red, _, _ in palette], np.uint8)
    if hard:
        _refuse_between(greys[np.asarray(image)])
    return greys >= 128


def _brightness(colour: tuple[int, int, int]) -> int:
    """Return 1000 times the luma of an RGB colour (ITU-R BT.601)."""
    red, green, blue = colour
    return 299 * red + 587 * green + 114 * blue


def _refuse_ambiguous(image: Image.Image) -> None:
    """Refuse images that may contain more than one mask.

    Raises:
        ImageError: there are several pages, or samples that would be ignored although they differ.
    """
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
        raise ImageError("has coloured pixels, so it is not a mask; car must be white, the rest black")
    return np.asarray(red)
