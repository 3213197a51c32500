"""What is written for a mask: the extras that were asked for, then the mask itself."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carvana_batch.errors import ImageError
from carvana_batch.files import write_file
from carvana_batch.inputs.keys import mask_id
from carvana_batch.masks import rle
from carvana_batch.masks.counts import SizeError, count
from carvana_batch.masks.png import encode_mask
from carvana_batch.masks.read import read_mask
from carvana_batch.output.extras import encode_extra
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry
from carvana_batch.values import PackedMask, Prediction


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
