"""Decode the first page of a TIFF with tifffile to a Pillow image."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, PREDICTOR

from carvana_batch.decode.jpeg_markers import jpeg_size
from carvana_batch.decode.pixels import (
    BITS,
    CUT_SHORT,
    DIFFERING_SAMPLES,
    LOSSY,
    NOTES,
    ORIENTATION,
    PAGES,
    SIGNIFICANT_BITS,
    check_size,
    notes_on_bits,
    scale_samples,
    significant_bits,
    to_image,
)
from carvana_batch.decode.tiff_damage import (
    find_contradiction,
    find_damage,
    is_cut_short,
    join_tables,
    read_segments,
)
from carvana_batch.decode.tiff_tags import (
    JPEG_IN_TIFF,
    PHOTOMETRIC_TAG,
    TIFF_CHANNELS,
    colour_model,
    declared_bits,
    extra_sample,
    unsupported_tiff,
)
from carvana_batch.errors import ImageError
from carvana_batch.notes import Note

# tifffile logs everything unusual in a file; all that matters here is whether it can be decoded.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

COMPRESSIONS = JPEG_IN_TIFF | {
    COMPRESSION.NONE,
    COMPRESSION.CCITTRLE,
    COMPRESSION.CCITTFAX3,
    COMPRESSION.CCITTFAX4,
    COMPRESSION.LZW,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.PACKBITS,
    COMPRESSION.LZMA,
    COMPRESSION.ZSTD,
}
"""Supported compressions: decoding takes no more memory than the size in the TIFF header implies.

Other compressed data, such as WebP, has its own size. So has JPEG, which :func:`_check_jpeg` checks.
"""

PREDICTED = {
    COMPRESSION.LZW,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.LZMA,
    COMPRESSION.ZSTD,
}
"""Compressions with which a predictor may be used; the tag is ignored with others."""

LZW_CLEAR, LZW_END = 256, 257

LZW_WIDTHS = 9 + np.searchsorted([511, 1023, 2047], np.arange(257, 4400), side="right")
"""Bit widths of the first, second, ... code after a clear code, up to the most before the next one."""

LZW_OFFSETS = np.cumsum(LZW_WIDTHS) - LZW_WIDTHS
"""Bit offsets of these codes."""


def decode_tiff(file: BinaryIO, pixel_limit: int, on_damage: Callable[[str], None]) -> Image.Image:
    """Decode the first page.

    Args:
        file: an open TIFF.
        pixel_limit: most pixels that the page may have.
        on_damage: called with the reason if the page is damaged, but pixels can be decoded.

    Returns:
        An image of mode L, I;16, P, RGB, RGBA, RGBa or CMYK, with its orientation tag, and with ``PAGES`` and
        ``DIFFERING_SAMPLES`` in its ``info``.

    Raises:
        ImageError: the page is damaged, not supported, or too large. For other damage, tifffile and
            imagecodecs raise errors of many types.
    """
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        stored_model = page.photometric if PHOTOMETRIC_TAG in page.tags else None
        page.photometric = colour_model(page)
        if page.compression not in PREDICTED:  # as in libtiff
            page.predictor = PREDICTOR.NONE
        file_size = os.fstat(file.fileno()).st_size
        # Reading reserves as much memory as it is told to.
        page.databytecounts = tuple(min(count, file_size) for count in page.databytecounts)
        _check_tiff(page, file_size, pixel_limit)
        if page.compression == COMPRESSION.LZW:
            _check_lzw(page, file)
        if page.compression in JPEG_IN_TIFF:
            _check_jpeg(page, file)
        damage = find_damage(page, file, file_size)
        if damage is not None:
            on_damage(damage)
        planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # (planes, H, W, samples)
        colormap = page.colormap
        orientation = page.tags.valueof(ORIENTATION, default=1)
        is_single = len(tiff.pages) == 1
        pages = 1 if is_single else sum(not getattr(other, "is_reduced", False) for other in tiff.pages)
    values = np.moveaxis(planes[..., 0], 0, -1) if planes.shape[0] > 1 else planes[0]
    image = _tiff_image(page, values, colormap)
    image.getexif()[ORIENTATION] = orientation
    image.info[PAGES] = pages
    if page.photometric != stored_model:
        image.info[NOTES] = (Note.GUESSED_COLOURS, *image.info.get(NOTES, ()))
    if image.mode == "I;16" or page.bitspersample < 8:
        image.info[BITS] = page.bitspersample
    image.info[LOSSY] = page.compression in JPEG_IN_TIFF
    image.info[DIFFERING_SAMPLES] = _has_differing_samples(page, values)
    return image


def _has_differing_samples(page: tifffile.TiffPage, values: NDArray[Any]) -> bool:
    """Return whether any sample other than colour and alpha, which is ignored, differs from the first."""
    channels = TIFF_CHANNELS[PHOTOMETRIC(page.photometric)]
    has_alpha = extra_sample(page, channels) != EXTRASAMPLE.UNSPECIFIED
    ignored = values[..., channels + has_alpha :]
    return ignored.size > 0 and bool((ignored != values[..., :1]).any())


def _check_tiff(page: tifffile.TiffPage, file_size: int, pixel_limit: int) -> None:
    """Refuse pages that would be misread, filled with black, or too large, before they are decoded.

    Raises:
        ImageError: the page is refused.
    """
    check_size(page.imagewidth, page.imagelength, pixel_limit)
    channels = TIFF_CHANNELS.get(PHOTOMETRIC(page.photometric))
    jpeg = page.compression in JPEG_IN_TIFF and page.planarconfig == PLANARCONFIG.CONTIG
    if channels is None or (page.photometric == PHOTOMETRIC.YCBCR and not jpeg):
        raise unsupported_tiff(f"the colour model {PHOTOMETRIC(page.photometric).name}")
    if page.compression not in COMPRESSIONS:
        raise unsupported_tiff(f"the compression {COMPRESSION(page.compression).name}")
    if page.is_reduced and (page.subifds or len(page.parent.pages) > 1):
        raise unsupported_tiff("a thumbnail as its first page, as in raw files of cameras")
    planes = page.samplesperpixel if page.planarconfig == PLANARCONFIG.SEPARATE else 1
    if page.shaped[:2] != (planes, 1) or not channels <= page.samplesperpixel <= 16:
        raise unsupported_tiff("an unusual number of planes or channels")
    bits = page.bitspersample
    kind = page.dtype.kind if page.dtype is not None else None
    max_bits = 8 if page.photometric == PHOTOMETRIC.PALETTE else 16
    if not (kind == "f" or (kind in {"b", "u"} and isinstance(bits, int) and bits <= max_bits)):
        raise unsupported_tiff(f"{bits}-bit values of kind {page.dtype}")
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is None:
        raise ImageError("is damaged: it has no colours for its palette")
    if page.is_tiled and page.tilewidth * page.tilelength > pixel_limit:
        raise ImageError("is damaged, or has tiles larger than --pixel-limit")
    # tifffile would fill missing strips and tiles with zeros, or with what is at the offset 0: the header.
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(segments) < math.prod(page.chunked) or not all(map(all, segments)):
        raise ImageError("is damaged: parts of the picture are missing")
    contents = find_contradiction(page)
    if contents is not None:
        raise unsupported_tiff(
            f"tags that say {page.samplesperpixel} x {bits} bits per pixel, but data as large as {contents}"
        )
    if is_cut_short(page, file_size):
        raise ImageError(CUT_SHORT)


def _check_jpeg(page: tifffile.TiffPage, file: BinaryIO) -> None:
    """Refuse JPEG data larger than its strip or tile, because it would be decoded as a whole, then cropped.

    Raises:
        ImageError: a strip or tile is larger, or its size is missing.
    """
    max_width, max_height = page.imagewidth, min(page.rowsperstrip, page.imagelength)
    if page.is_tiled:
        max_width, max_height = page.tilewidth, page.tilelength
    for data in read_segments(page, file):
        size = jpeg_size(join_tables(page, data))
        if size is None:
            raise ImageError("is damaged or cut short: a part of it has no size")
        if size[0] > max_width or size[1] > max_height:
            raise ImageError(
                f"is damaged: it has a part of {size[0]} x {size[1]} pixels in a place for"
                f" {max_width} x {max_height}"
            )


def _check_lzw(page: tifffile.TiffPage, file: BinaryIO) -> None:
    """Refuse LZW data that may crash imagecodecs.

    Raises:
        ImageError: a strip or tile contains such data.
    """
    for data in read_segments(page, file):
        codes = bytes(imagecodecs.bitorder_decode(data)) if page.fillorder == 2 else data
        if _crashes_imagecodecs(codes):
            raise ImageError("is damaged, or has LZW compression of a kind that is no longer used")


def _crashes_imagecodecs(data: bytes) -> bool:
    """Return whether LZW ``data`` may crash imagecodecs, which does not check the code after a clear code.

    Damage that does not cause a crash is left for imagecodecs to find.
    """
    if not (data[:1] == b"\x80" and data[1:2] < b"\x80"):  # does not begin with a clear code
        return data[:1] == b"\0"  # the old variant with reversed bits, which cannot be checked here
    padded = np.frombuffer(data + bytes(3), np.uint8).astype(np.uint32)
    words = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
    start = 9
    while True:
        # The offsets and widths of all codes up to the next clear code are known in advance.
        offsets = start + LZW_OFFSETS
        offsets = offsets[offsets + LZW_WIDTHS <= 8 * len(data)]
        if not offsets.size:
            return False
        widths = LZW_WIDTHS[: offsets.size]
        codes = words[offsets >> 3] >> (32 - (offsets & 7) - widths) & ((1 << widths) - 1)
        if codes[0] > LZW_END:
            return True
        (ends,) = np.nonzero((codes == LZW_CLEAR) | (codes == LZW_END))
        if not ends.size or codes[ends[0]] == LZW_END:
            return False
        start = int(offsets[ends[0]] + widths[ends[0]])


def _tiff_image(
    page: tifffile.TiffPage, values: NDArray[Any], colormap: NDArray[np.uint16] | None
) -> Image.Image:
    """Convert ``values``, (H, W, samples) of any supported type, to an image."""
    size = (values.shape[1], values.shape[0])
    if page.photometric == PHOTOMETRIC.PALETTE and colormap is not None:
        image = Image.frombytes("P", size, values[..., 0].tobytes())
        # Writers give 255 as 65535 or 65280, and some, against the standard, as 255.
        palette = colormap >> 8 if colormap.max() > 255 else colormap
        image.putpalette(palette.T.astype(np.uint8).tobytes())
        return image

    channels = TIFF_CHANNELS[PHOTOMETRIC(page.photometric)]
    extra = extra_sample(page, channels)
    has_alpha = extra != EXTRASAMPLE.UNSPECIFIED and values.shape[2] > channels and channels < 4
    colours: NDArray[Any] = values[..., :channels]
    alpha: NDArray[Any] | None = values[..., channels] if has_alpha else None
    if values.dtype == np.uint16 and page.photometric == PHOTOMETRIC.MINISBLACK and alpha is None:
        # Not scaled to 8 bits yet, because a mask may have values of 0 and 1.
        image = Image.frombytes("I;16", size, colours.astype("<u2").tobytes())
        image.info[SIGNIFICANT_BITS] = page.bitspersample
        if page.bitspersample == 16:
            image.info[SIGNIFICANT_BITS] = significant_bits(colours, declared_bits(page))
            image.info[NOTES] = notes_on_bits(image.info[SIGNIFICANT_BITS])
        return image
    colours, alpha, notes = scale_samples(colours, alpha, page.bitspersample, declared_bits(page))
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        colours = 255 - colours
    image = to_image(colours, alpha, premultiplied=extra == EXTRASAMPLE.ASSOCALPHA)
    image.info[NOTES] = notes
    return image
