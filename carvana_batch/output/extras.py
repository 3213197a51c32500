"""What can be written beside a mask: probability map, overlay, panel, cut-out."""

from __future__ import annotations

import io

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.errors import ImageError
from carvana_batch.values import Prediction

OVERLAY_COLOUR = (255, 96, 0)

OVERLAY_STRENGTH = 0.45

JPEG_QUALITY = 90

JPEG_LONGEST_SIDE = 65500


def encode_extra(kind: str, prediction: Prediction, threshold: float) -> bytes:
    """The file of one kind of extra: ``prob``, ``overlay``, ``panel`` or ``cutout``.

    Raises ImageError where the file format cannot hold the photo.
    """
    pixels = prediction.photo.pixels
    buffer = io.BytesIO()
    if kind == "prob":
        tifffile.imwrite(
            buffer,
            quantise_probability(prediction, threshold),
            compression="zlib",
            predictor=True,
            description="probability of car = value / 65535",
            metadata=None,
        )
    elif kind == "cutout":
        alpha = prediction.mask.to_bool().astype(np.uint8) * 255
        Image.fromarray(np.dstack((pixels, alpha))).save(buffer, "PNG", compress_level=1)
    else:
        draw = {"overlay": draw_overlay, "panel": draw_panel}[kind]
        picture = draw(pixels, prediction.mask.to_bool())
        if max(picture.shape) > JPEG_LONGEST_SIDE:
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            raise ImageError(f"is too large for --save {kind}: a JPEG cannot have {size} pixels")
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def quantise_probability(prediction: Prediction, threshold: float) -> NDArray[np.uint16]:
    """The probability (H, W) times 65535; exactly where the mask is set, value / 65535 > threshold.

    Rounding alone would carry some pixels across the threshold.
    """
    if prediction.probability is None:
        raise ValueError("the predictor was not told to keep probabilities")
    values = np.rint(prediction.probability * 65535).astype(np.uint16)
    outside = np.uint16(np.count_nonzero(np.arange(65536) / 65535 <= threshold) - 1)  # the highest of them
    inside = np.uint16(min(int(outside) + 1, 65535))
    return np.where(prediction.mask.to_bool(), np.maximum(values, inside), np.minimum(values, outside))


def draw_overlay(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photo (H, W, 3) uint8 with the car (H, W) bool tinted."""
    tinted = pixels.copy()
    colour = np.array(OVERLAY_COLOUR, np.float32) * OVERLAY_STRENGTH
    tinted[mask] = (pixels[mask] * np.float32(1 - OVERLAY_STRENGTH) + colour).astype(np.uint8)
    return tinted


def draw_panel(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photo and, to its right, the mask in black and white: (H, 2 W, 3) uint8."""
    white = np.repeat((mask.astype(np.uint8) * 255)[:, :, None], 3, axis=2)
    return np.concatenate((pixels, white), axis=1)
