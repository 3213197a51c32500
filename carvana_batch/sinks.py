"""What is written for a mask: the extras that were asked for, then the mask itself."""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from carvana_batch import rle
from carvana_batch.atomic import atomic_writer, write_error
from carvana_batch.images import read_mask
from carvana_batch.journal import Entry
from carvana_batch.masks import mask_id
from carvana_batch.metrics import SizeError, count
from carvana_batch.png import encode_mask
from carvana_batch.records import ImageError, PackedMask, Prediction
from carvana_batch.store import OutFolder

OVERLAY_COLOUR = (255, 96, 0)
OVERLAY_STRENGTH = 0.45
JPEG_QUALITY = 90
JPEG_LONGEST_SIDE = 65500


@dataclass(frozen=True)
class Written:
    """The journal line of a mask, its run-length row if that was asked for, and the seconds it took."""

    entry: Entry
    runs: str | None
    seconds: float


class Sinks:
    """Writes predictions into an out folder; safe to call from several threads at once.

    Args:
        extras: kinds of ``options.EXTRA_FILES`` to write beside the mask.
        mask_bits: 1 or 8 bits a pixel of the mask.
        encode_runs: also give each mask's run-length row.
        truth: true masks by id, or None where there are none to compare with.
        threshold: the probability above which a pixel of the masks is car.
    """

    def __init__(
        self,
        out: OutFolder,
        extras: Collection[str] = (),
        mask_bits: int = 1,
        encode_runs: bool = False,
        truth: Mapping[str, Path] | None = None,
        threshold: float = 0.5,
    ) -> None:
        self.out, self.extras, self.mask_bits = out, extras, mask_bits
        self.encode_runs, self.truth, self.threshold = encode_runs, truth, threshold

    def write(self, prediction: Prediction) -> Written:
        """Write all files of one prediction, the mask last: once it is there, the photo is done.

        Raises ImageError where an extra cannot hold this photo, and what ``write_file`` raises.
        """
        start = time.perf_counter()
        photo, mask = prediction.photo, prediction.mask
        key = photo.ref.key
        for kind in self.extras:
            write_file(self.out.extra_path(kind, key), encode_extra(kind, prediction, self.threshold))
        dice, problem = (None, "") if self.truth is None else compare(key, mask, self.truth)
        content = encode_mask(mask, self.mask_bits)
        write_file(self.out.mask_path(key), content)
        entry = Entry(
            key=key,
            source=photo.ref.path_text,
            source_bytes=photo.file_bytes,
            source_time=photo.file_time,
            width=mask.width,
            height=mask.height,
            car_share=int(np.bitwise_count(mask.rows).sum()) / (mask.width * mask.height),
            expected_dice=prediction.expected_dice,
            dice=dice,
            mask_bytes=len(content),
            reason=problem,
        )
        runs = rle.encode_packed(mask) if self.encode_runs else None
        return Written(entry, runs, time.perf_counter() - start)


def compare(key: str, mask: PackedMask, truth: Mapping[str, Path]) -> tuple[float | None, str]:
    """Dice of a photo's mask with the true one, or why there is none."""
    true_mask = truth.get(mask_id(key))
    if true_mask is None:
        return None, "no true mask of this name"
    try:
        return count(mask, read_mask(true_mask)).dice, ""
    except (ImageError, SizeError) as error:
        return None, str(error)


def write_file(path: Path, content: bytes) -> None:
    """Write a file of an out folder, and the folders above it.

    Raises what ``atomic_writer`` raises.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    # Not synced: a resumed run finds a mask that a power cut has shortened by its size in the journal.
    with atomic_writer(path, sync=False) as file:
        file.write(content)


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
