"""What the tags of a TIFF page say about its values, also if some are missing or wrong."""

from __future__ import annotations

import numpy as np
import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from carvana_batch.errors import ImageError

PHOTOMETRIC_TAG, COLOR_MAP = 262, 320
"""The numbers of tags: the colour model, and the colours of a palette."""

MAX_SAMPLE_VALUE = 281
"""The number of a tag: the largest value of a sample, or the largest that is possible."""

TIFF_CHANNELS = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
"""Supported colour models, and their number of channels without alpha."""

JPEG_IN_TIFF = {6, 7, 33007, 34892}
"""Compressions whose YCbCr values tifffile converts to RGB."""

FAX = {COMPRESSION.CCITTRLE, COMPRESSION.CCITTFAX3, COMPRESSION.CCITTFAX4}
"""Compressions of faxes; missing data cannot be noticed in them."""


def colour_model(page: tifffile.TiffPage) -> PHOTOMETRIC:
    """Return the colour model of a page, as libtiff guesses it if the tag is missing.

    Programs such as GDAL call three samples MINISBLACK that are red, green and blue.

    Raises:
        ImageError: the colour model is not clear.
    """
    alphas = [extra != EXTRASAMPLE.UNSPECIFIED for extra in page.extrasamples]
    if PHOTOMETRIC_TAG in page.tags:
        model = PHOTOMETRIC(page.photometric)
        if model not in {PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE} or page.samplesperpixel < 3:
            return model
        if any(alphas[:2]):  # grey, alpha, and more
            return model
        if model == PHOTOMETRIC.MINISBLACK and page.samplesperpixel - sum(alphas) <= 4:
            return PHOTOMETRIC.RGB
        raise unsupported_tiff(f"{page.samplesperpixel} samples per pixel that are all called grey")
    samples = page.samplesperpixel - len(alphas)
    has_colours = COLOR_MAP in page.tags or page.compression in JPEG_IN_TIFF
    if samples == 1 and not has_colours:
        return PHOTOMETRIC.MINISWHITE if page.compression in FAX else PHOTOMETRIC.MINISBLACK
    if samples == 3 and not has_colours:
        return PHOTOMETRIC.RGB
    raise unsupported_tiff("no colour model (tag PhotometricInterpretation)")


def extra_sample(page: tifffile.TiffPage, channels: int) -> int:
    """Return the meaning of the first sample after the colours."""
    extras = page.samplesperpixel - channels
    return page.extrasamples[-extras] if 0 < extras <= len(page.extrasamples) else EXTRASAMPLE.UNSPECIFIED


def declared_bits(page: tifffile.TiffPage) -> int | None:
    """Return the bits of the values according to the tag MaxSampleValue, or None if it does not tell."""
    values = np.asarray(page.tags.valueof(MAX_SAMPLE_VALUE, default=0))
    if values.dtype.kind not in "iu" or not values.size:  # the pixels are not affected
        return None
    largest = int(values.max())
    bits = largest.bit_length()
    return bits if largest == 2**bits - 1 else None  # others are the largest value in the picture


def unsupported_tiff(what: str) -> ImageError:
    """Return the error for a page that would be misread."""
    return ImageError(
        f"is a TIFF with {what}, which is not supported; save it as RGB with 8 or 16 bits, without"
        " compression or with LZW"
    )
