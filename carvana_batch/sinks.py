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
from carvana_batch.atomic import atomic_writer
from carvana_batch.images import read_mask
from carvana_batch.metrics import SizeError, count
from carvana_batch.png import encode_mask
from carvana_batch.records import ImageError, PackedMask, Prediction
from carvana_batch.store import Entry, OutFolder

OVERLAY_COLOUR = (255, 96, 0)
OVERLAY_STRENGTH = 0.45
JPEG_QUALITY = 90


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
        truth: true masks by key, or None where there are none to compare with.
    """

    def __init__(
        self,
        out: OutFolder,
        extras: Collection[str] = (),
        mask_bits: int = 1,
        encode_runs: bool = False,
        truth: Mapping[str, Path] | None = None,
    ) -> None:
        self.out, self.extras, self.mask_bits = out, extras, mask_bits
        self.encode_runs, self.truth = encode_runs, truth

    def write(self, prediction: Prediction) -> Written:
        """Write all files of one prediction, the mask last: once it is there, the photo is done.

        Raises what ``atomic_writer`` raises.
        """
        start = time.perf_counter()
        ref, mask = prediction.photo.ref, prediction.mask
        source = ref.path.stat()
        for kind in self.extras:
            write_file(self.out.extra_path(kind, ref.key), encode_extra(kind, prediction))
        dice, problem = self._compare(ref.key, mask)
        content = encode_mask(mask, self.mask_bits)
        write_file(self.out.mask_path(ref.key), content)
        entry = Entry(
            key=ref.key,
            source=str(ref.path),
            source_bytes=source.st_size,
            source_time=source.st_mtime_ns,
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

    def _compare(self, key: str, mask: PackedMask) -> tuple[float | None, str]:
        """Dice with the true mask, or why there is none."""
        if self.truth is None:
            return None, ""
        if key not in self.truth:
            return None, "no true mask of this name"
        try:
            return count(mask, read_mask(self.truth[key])).dice, ""
        except (ImageError, SizeError) as error:
            return None, str(error)


def write_file(path: Path, content: bytes) -> None:
    """Write a file of an out folder, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not synced: a resumed run finds a mask that a power cut has shortened by its size in the journal.
    with atomic_writer(path, sync=False) as file:
        file.write(content)


def encode_extra(kind: str, prediction: Prediction) -> bytes:
    """The file of one kind of extra: ``prob``, ``overlay``, ``panel`` or ``cutout``."""
    pixels = prediction.photo.pixels
    buffer = io.BytesIO()
    if kind == "prob":
        if prediction.probability is None:
            raise ValueError("the predictor was not told to keep probabilities")
        tifffile.imwrite(
            buffer,
            np.rint(prediction.probability * 65535).astype(np.uint16),
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
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


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
