"""Writing what a prediction is made into: extra files, the mask, its run-length row and its Dice."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from carvana_batch.errors import ImageError
from carvana_batch.files import write_file
from carvana_batch.inputs.keys import mask_id, pairing_name
from carvana_batch.masks import rle
from carvana_batch.masks.counts import SizeError, count
from carvana_batch.masks.fit import Fit, turn_to_fit_file
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.png import encode_mask
from carvana_batch.notes import TURNED, Note
from carvana_batch.options import DEFAULT_THRESHOLD
from carvana_batch.output.extras import encode_extra
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths
from carvana_batch.values import ImageRef, PackedMask, Prediction

NOTES_OF_FIT: dict[Fit, tuple[Note, ...]] = {
    Fit.SAME: (),
    Fit.TURNED: (Note.TRUE_MASK_TURNED,),
    Fit.UNCLEAR: (Note.TRUE_MASK_UNCLEAR,),
}


@dataclass(frozen=True)
class Written:
    """What was written for a prediction.

    Attributes:
        entry: the entry for the journal.
        runs: the run-length row of the mask, None unless asked for.
        seconds: time that writing took.
    """

    entry: Entry
    runs: str | None
    seconds: float


class MaskWriter:
    """Writes predictions into an out folder; several threads may call it at once.

    Args:
        paths: where each file belongs.
        extras: kinds of ``options.EXTRA_FILES`` to write in addition to the mask.
        mask_bits: 1 or 8 bits per pixel of the mask.
        encode_runs: whether to make the run-length row of each mask.
        truth: the true masks by the ``pairing_name`` of their id, None if there are none to compare with.
        threshold: probability above which a pixel of the masks is car.
        check: called before the files of a photo are written.
    """

    def __init__(
        self,
        paths: OutPaths,
        extras: Collection[str] = (),
        mask_bits: int = 1,
        encode_runs: bool = False,
        truth: MaskFolder | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.paths, self.extras, self.mask_bits = paths, extras, mask_bits
        self.encode_runs, self.truth, self.threshold = encode_runs, truth, threshold
        self.check = check

    def write(self, prediction: Prediction) -> Written:
        """Write all files of a prediction, the mask last: once it is there, the photo is done.

        Raises:
            ImageError: the format of an extra file cannot hold this photo.
            CarvanaBatchError: see :func:`write_file`, or raised by ``check``.
        """
        start = time.perf_counter()
        photo, mask = prediction.photo, prediction.mask
        key, root = photo.ref.key, self.paths.root
        self.check()
        for kind in self.extras:
            write_file(self.paths.extra(kind, key), encode_extra(kind, prediction, self.threshold), root)
        compared = Compared() if self.truth is None else compare(photo.ref, mask, photo.notes, self.truth)
        content = encode_mask(mask, self.mask_bits)
        write_file(self.paths.mask(key), content, root)
        entry = Entry(
            key=key,
            source=photo.ref.path_text,
            source_bytes=photo.file_bytes,
            source_time=photo.file_time,
            width=mask.width,
            height=mask.height,
            car_share=int(np.bitwise_count(mask.rows).sum()) / (mask.width * mask.height),
            expected_dice=prediction.expected_dice,
            dice=compared.dice,
            mask_bytes=len(content),
            reason=compared.reason,
            notes=photo.notes + compared.notes,
            damage=photo.damage,
        )
        runs = rle.encode_packed(mask) if self.encode_runs else None
        return Written(entry, runs, time.perf_counter() - start)


class Compared(NamedTuple):
    """What came of a comparison with a true mask.

    Attributes:
        dice: the Dice; None if there is none.
        reason: why there is none, although it was asked for.
        notes: what the user should know about the true mask.
    """

    dice: float | None = None
    reason: str = ""
    notes: tuple[Note, ...] = ()


def compare(ref: ImageRef, mask: PackedMask, notes: Collection[Note], truth: MaskFolder) -> Compared:
    """The Dice of a mask with the true mask of the same photo.

    If the photo has an EXIF orientation, one of the masks may be upright, and the other as the photo is
    stored. The true mask is then turned.

    Args:
        ref: the photo.
        mask: the predicted mask.
        notes: those on the photo.
        truth: the true masks by the ``pairing_name`` of their id.
    """
    image = pairing_name(mask_id(ref.key))
    if image not in truth.ids:
        return Compared(reason="no true mask of this name")
    fit = Fit.SAME
    try:
        true = truth.read(image)
        if not TURNED.isdisjoint(notes):
            true, fit = turn_to_fit_file(true, (mask.width, mask.height), ref.path)
        return Compared(count(mask, true).dice, notes=NOTES_OF_FIT[fit])
    except (ImageError, SizeError) as error:
        return Compared(reason=str(error))
