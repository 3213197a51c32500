"""Writing what a prediction is made into: extra files, the mask, its run-length row and its Dice."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from carvana_batch.errors import ImageError
from carvana_batch.files import write_file
from carvana_batch.inputs.keys import mask_id, pairing_name
from carvana_batch.masks import rle
from carvana_batch.masks.counts import SizeError, count
from carvana_batch.masks.doubts import fits_otherwise
from carvana_batch.masks.fit import Fit, turn_otherwise_by_file, turn_to_fit_file
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.png import encode_mask
from carvana_batch.masks.read import read_mask
from carvana_batch.masks.specks import clean
from carvana_batch.notes import TURNED, Note
from carvana_batch.output.extras import Drawing, encode_extra
from carvana_batch.output.journal import Entry, ExtraFile
from carvana_batch.output.ownership import Ownership, Stamp
from carvana_batch.output.paths import MASK, OutPaths
from carvana_batch.text import shown
from carvana_batch.values import ImageRef, PackedMask, Photo, Prediction

DEFAULT_DRAWING = Drawing()

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
        clean_masks: whether to remove specks from the mask.
        encode_runs: whether to make the run-length row of each mask.
        truth: the true masks by the ``pairing_name`` of their id, None if there are none to compare with.
        drawing: how extra files are drawn.
        check: called before the files of a photo are written.
        announce: called with a pending entry for the journal before the files of a photo are written.
        ownership: which of the files that are there already are of a run; by default none.
    """

    def __init__(
        self,
        paths: OutPaths,
        extras: Collection[str] = (),
        mask_bits: int = 1,
        clean_masks: bool = False,
        encode_runs: bool = False,
        truth: MaskFolder | None = None,
        drawing: Drawing = DEFAULT_DRAWING,
        check: Callable[[], object] = lambda: None,
        announce: Callable[[Entry], object] = lambda entry: None,
        ownership: Ownership | None = None,
    ) -> None:
        self.paths, self.extras, self.mask_bits = paths, extras, mask_bits
        self.clean, self.encode_runs, self.truth, self.drawing = clean_masks, encode_runs, truth, drawing
        self.check, self.announce = check, announce
        self.ownership = ownership or Ownership(paths)

    def write(self, prediction: Prediction) -> Written:
        """Write all files of a prediction, the mask last: once it is there, the photo is done.

        If there is a mask of the user in its place, that is kept, and nothing is written.

        Raises:
            ImageError: the format of an extra file cannot hold this photo, or another file of the user is in
                the place of one.
            CarvanaBatchError: see :func:`write_file`, or raised by ``check`` or ``announce``.
        """
        start = time.perf_counter()
        if self.clean:
            prediction = replace(prediction, mask=clean(prediction.mask))
        photo, mask = prediction.photo, prediction.mask
        key, root = photo.ref.key, self.paths.root
        self.check()
        files, notes = self._encode_extras(prediction, self.extras)
        files[MASK] = encode_mask(mask, self.mask_bits)
        stamp = Stamp.of(files[MASK])
        if self.ownership.is_foreign(key, MASK, files[MASK]):
            return Written(self._keep(photo), None, time.perf_counter() - start)
        for kind in self.extras:
            if self.ownership.is_foreign(key, kind, files[kind]):
                raise ImageError(self._foreign(kind, key))
        extras = tuple(ExtraFile(kind, *Stamp.of(files[kind])) for kind in self.extras)
        pending = Entry(key, "", 0, 0, mask_bytes=stamp.size, mask_checksum=stamp.checksum, extras=extras)
        self.announce(replace(pending, pending=True))
        paths = self.paths.of_photo(key)
        for kind, content in files.items():
            write_file(paths[kind], content, root)
        compared = Compared() if self.truth is None else compare(photo.ref, mask, photo.notes, self.truth)
        entry = Entry(
            key=key,
            source=photo.ref.path_text,
            source_bytes=photo.file_bytes,
            source_time=photo.file_time,
            width=mask.width,
            height=mask.height,
            car_share=int(np.bitwise_count(mask.rows).sum()) / (mask.width * mask.height),
            expected_dice=prediction.expected_dice,
            doubt=prediction.doubt,
            dice=compared.dice,
            true_share=compared.true_share,
            mask_bytes=stamp.size,
            mask_checksum=stamp.checksum,
            extras=extras,
            reason=compared.reason,
            notes=photo.notes + compared.notes + notes,
            damage=photo.damage,
        )
        runs = rle.encode_packed(mask) if self.encode_runs else None
        return Written(entry, runs, time.perf_counter() - start)

    def draw(self, photo: Photo, entry: Entry, kinds: Collection[str]) -> Entry:
        """Write extra files of a photo that has been masked; they are made from the photo and its mask.

        Args:
            photo: the photo.
            entry: what the journal says of it.
            kinds: of ``options.EXTRA_FILES``, none of which needs the probability map.

        Returns:
            The new entry.

        Raises:
            ImageError: the mask cannot be read, or has another size than the photo; or see :meth:`write`.
            CarvanaBatchError: see :meth:`write`.
        """
        key = photo.ref.key
        self.check()
        mask = read_mask(self.paths.mask(key))
        height, width = photo.pixels.shape[:2]
        if (mask.width, mask.height) != (width, height):
            raise ImageError(f"is {width}x{height} pixels, but its mask is {mask.width}x{mask.height}")
        prediction = Prediction(photo, mask, entry.expected_dice or 0.0, doubt=entry.doubt)
        files, notes = self._encode_extras(prediction, kinds)
        for kind, content in files.items():
            if self.ownership.is_foreign(key, kind, content):
                raise ImageError(self._foreign(kind, key))
        drawn = tuple(ExtraFile(kind, *Stamp.of(content)) for kind, content in files.items())
        others = tuple(extra for extra in entry.extras if extra.kind not in files)
        notes = tuple(note for note in notes if note not in entry.notes)
        entry = replace(entry, extras=others + drawn, notes=entry.notes + notes)
        self.announce(replace(entry, pending=True))
        paths = self.paths.of_photo(key)
        for kind, content in files.items():
            write_file(paths[kind], content, self.paths.root)
        return entry

    def _encode_extras(
        self, prediction: Prediction, kinds: Collection[str]
    ) -> tuple[dict[str, bytes], tuple[Note, ...]]:
        """The content of extra files by kind, and the notes on them."""
        encoded = {kind: encode_extra(kind, prediction, self.drawing) for kind in kinds}
        notes = tuple(note for each in encoded.values() for note in each.notes)
        return {kind: each.content for kind, each in encoded.items()}, notes

    def _keep(self, photo: Photo) -> Entry:
        """The entry of a photo in the place of whose mask there is a file of the user."""
        key = photo.ref.key
        try:
            kept = self.ownership.read_kept_mask(key)
        except ImageError as error:
            raise ImageError(f"{self._foreign(MASK, key)}; it {error}") from error
        self.ownership.remove_files(key)  # extra files show an earlier mask
        entry = Entry(key, photo.ref.path_text, photo.file_bytes, photo.file_time)
        return entry.keep(*kept)

    def _foreign(self, kind: str, key: str) -> str:
        path = self.paths.of_photo(key)[kind]
        return (
            f"{shown(path)} is there already and was not made by predict, so it stays; move it away, or use"
            " --overwrite"
        )


class Compared(NamedTuple):
    """What came of a comparison with a true mask.

    Attributes:
        dice: the Dice; None if there is none.
        reason: why there is none, although it was asked for.
        notes: what the user should know about the true mask.
        true_share: part of the photo that the true mask covers; None if there is no Dice.
    """

    dice: float | None = None
    reason: str = ""
    notes: tuple[Note, ...] = ()
    true_share: float | None = None


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
        counts = count(mask, true)
        share = counts.area_true / (true.width * true.height)
        added = NOTES_OF_FIT[fit]
        if fit is Fit.UNCLEAR:
            turned = turn_otherwise_by_file(true, ref.path)
            if fits_otherwise(counts.dice, max(count(mask, each).dice for each in turned)):
                added = (Note.TRUE_MASK_OTHERWISE,)
        return Compared(counts.dice, notes=added, true_share=share)
    except (ImageError, SizeError) as error:
        return Compared(reason=str(error))
