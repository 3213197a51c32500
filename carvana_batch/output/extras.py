"""Extra files that can be written in addition to a mask, such as a probability map, an overlay or a cut-out.

A new kind joins in ``ENCODERS`` and, with its folder and suffix, in ``options.EXTRA_FILES``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.colours import RGB
from carvana_batch.errors import ImageError
from carvana_batch.notes import Note
from carvana_batch.options import DEFAULT_THRESHOLD
from carvana_batch.output.backgrounds import Background, put_on_background
from carvana_batch.output.recolour import recolour
from carvana_batch.values import Prediction

OVERLAY_COLOUR = (255, 96, 0)

OVERLAY_STRENGTH = 0.45

JPEG_QUALITY = 90

JPEG_LONGEST_SIDE = 65500


@dataclass(frozen=True, slots=True)
class Drawing:
    """How extra files are drawn.

    Attributes:
        threshold: probability above which a pixel of the mask is car.
        colour: the new colour of the paint, for ``recolour``.
        background: the new ground, for ``background``.
        shadow: whether the car casts a shadow on it.
    """

    threshold: float = DEFAULT_THRESHOLD
    colour: RGB | None = None
    background: Background | None = field(default=None, repr=False)
    shadow: bool = False


class Encoded(NamedTuple):
    """The content of an extra file, and what the user should know about it."""

    content: bytes
    notes: tuple[Note, ...] = ()


def encode_extra(kind: str, prediction: Prediction, drawing: Drawing) -> Encoded:
    """Make an extra file.

    Args:
        kind: one of ``ENCODERS``.
        prediction: what it is made of.
        drawing: how it is drawn.

    Raises:
        ImageError: the file format cannot hold the photo.
    """
    try:
        encoded = ENCODERS[kind](prediction, drawing)
        return encoded if isinstance(encoded, Encoded) else Encoded(encoded)
    except ImageError as error:
        raise ImageError(f"is too large for --save {kind}: {error}") from error


def encode_probability(prediction: Prediction, drawing: Drawing) -> bytes:
    """A 16-bit TIFF of the probability map; see :func:`quantise_probability`."""
    import tifffile  # which takes long, and is needed for nothing else than TIFF

    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        quantise_probability(prediction, drawing.threshold),
        compression="zlib",
        predictor=True,
        description="probability of car = value / 65535",
        metadata=None,
    )
    return buffer.getvalue()


def encode_overlay(prediction: Prediction, _drawing: Drawing) -> bytes:
    """A JPEG of the photo with the car tinted."""
    return _encode_jpeg(draw_overlay(prediction.photo.pixels, prediction.mask.to_bool()))


def encode_panel(prediction: Prediction, _drawing: Drawing) -> bytes:
    """A JPEG of the photo beside its mask."""
    return _encode_jpeg(draw_panel(prediction.photo.pixels, prediction.mask.to_bool()))


def encode_cutout(prediction: Prediction, _drawing: Drawing) -> bytes:
    """A PNG of the photo with the mask as its alpha channel."""
    buffer = io.BytesIO()
    picture = Image.fromarray(draw_cutout(prediction.photo.pixels, prediction.mask.to_bool()))
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_recoloured(prediction: Prediction, drawing: Drawing) -> Encoded:
    """A JPEG of the photo with another paint."""
    if drawing.colour is None:
        raise ValueError("there is no colour")
    pixels, has_paint = recolour(prediction.photo.pixels, prediction.mask.to_bool(), drawing.colour)
    return Encoded(_encode_jpeg(pixels), () if has_paint else (Note.NOT_RECOLOURED,))


def encode_on_background(prediction: Prediction, drawing: Drawing) -> bytes:
    """A JPEG of the car on another ground."""
    if drawing.background is None:
        raise ValueError("there is no background")
    if prediction.probability is None:
        raise ValueError("the predictor was not told to keep probabilities")
    pixels, mask = prediction.photo.pixels, prediction.mask.to_bool()
    picture = put_on_background(
        pixels, mask, prediction.probability, drawing.threshold, drawing.background, drawing.shadow
    )
    return _encode_jpeg(picture)


ENCODERS: dict[str, Callable[[Prediction, Drawing], bytes | Encoded]] = {
    "prob": encode_probability,
    "overlay": encode_overlay,
    "panel": encode_panel,
    "cutout": encode_cutout,
    "recolour": encode_recoloured,
    "background": encode_on_background,
}
"""For each kind of extra file, a function that makes its content, perhaps with notes."""


def quantise_probability(prediction: Prediction, threshold: float) -> NDArray[np.uint16]:
    """The (H, W) probabilities times 65535, so that value / 65535 > threshold exactly where the mask is set.

    Rounding alone would move some pixels across the threshold.
    """
    if prediction.probability is None:
        raise ValueError("the predictor was not told to keep probabilities")
    values = np.rint(prediction.probability * 65535).astype(np.uint16)
    highest_outside = np.uint16(np.count_nonzero(np.arange(65536) / 65535 <= threshold) - 1)
    lowest_inside = np.uint16(min(int(highest_outside) + 1, 65535))
    return np.where(
        prediction.mask.to_bool(), np.maximum(values, lowest_inside), np.minimum(values, highest_outside)
    )


def draw_overlay(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photo (H, W, 3) uint8 with the car, (H, W) bool, tinted."""
    tinted = pixels.copy()
    colour = np.array(OVERLAY_COLOUR, np.float32) * OVERLAY_STRENGTH
    tinted[mask] = (pixels[mask] * np.float32(1 - OVERLAY_STRENGTH) + colour).astype(np.uint8)
    return tinted


def draw_cutout(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photo (H, W, 3) uint8 with its mask, (H, W) bool, as the alpha channel: (H, W, 4) uint8."""
    return np.dstack((pixels, mask.astype(np.uint8) * 255))


def draw_panel(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photo and, to its right, the mask in black and white: (H, 2 W, 3) uint8."""
    white = np.repeat((mask.astype(np.uint8) * 255)[:, :, None], 3, axis=2)
    return np.concatenate((pixels, white), axis=1)


def _encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A JPEG; raises ImageError if the picture is too large for one."""
    if max(picture.shape) > JPEG_LONGEST_SIDE:
        raise ImageError(f"a JPEG cannot have {picture.shape[1]}x{picture.shape[0]} pixels")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
