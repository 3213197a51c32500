"""Photos with their true masks: find them, and check them before training starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from carvana_batch.decode.photo import DecodedImage, decode_image
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.find import find_images
from carvana_batch.inputs.keys import match_ids, pairing_name, split_id
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.masks.fit import Fit, FittedMask, find_other_line, read_row, turn_to_fit
from carvana_batch.masks.folder import decide_values
from carvana_batch.masks.layout import SAMPLE, find_misfit
from carvana_batch.masks.read import BLACK_AND_WHITE, read_mask
from carvana_batch.masks.values import MaskValues
from carvana_batch.orientation import UPRIGHT, Layout, turn
from carvana_batch.parallel import map_in_order
from carvana_batch.submission.table import read_rows
from carvana_batch.text import counted, list_lines, shown
from carvana_batch.training.known import is_all_known, resample_known
from carvana_batch.values import Failure

PHOTO_FOLDERS = ("images", "train")
MASK_NAMES = ("masks", "train_masks")
ROW_SUFFIXES = (".csv", ".csv.gz", ".csv.zip", ".zip")


@dataclass(frozen=True)
class Pair:
    """A photo and its true mask, which is either a file or a run-length row.

    Attributes:
        id: POSIX path of the photo below its folder, without suffix.
        image: path of the photo.
        mask: path of the mask, or None.
        runs: run-length row of the mask, or None.
        values: which values of the mask file mean car.

    Raises:
        ValueError: both or neither of ``mask`` and ``runs`` are given.
    """

    id: str
    image: Path
    mask: Path | None
    runs: str | None = field(default=None, repr=False)
    values: MaskValues = field(default=BLACK_AND_WHITE, repr=False)

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.runs is None):
            raise ValueError(f"{self.id}: a pair has either a mask file or a run-length row")

    @property
    def car(self) -> str:
        """The id up to the last underscore of the name, which all views of a car share.

        It is the ``pairing_name``, so that views whose accents are encoded differently are of one car.
        """
        return pairing_name(split_id(self.id)[0])

    @property
    def view(self) -> str:
        """The part of the name after its last underscore, or ""."""
        return split_id(self.id)[1]

    def read_mask(self, photo: Layout) -> FittedMask:
        """Read the true mask on the pixel grid on which the photo is stored.

        A mask file that has the size of the upright photo is turned, and so is a run-length row whose runs
        clearly fit it. Other rows count the pixels of the stored photo.

        Raises:
            ImageError: the mask cannot be read, has other values than the other masks of its folder, or has
                another size; or the row is not a mask of this size.
        """
        if self.mask is None:
            try:
                return read_row(self.runs or "", photo)
            except rle.RunLengthError as error:
                raise ImageError(f"The run-length row of {shown(self.id)} cannot be used: {error}") from error
        mask, fit = turn_to_fit(read_mask(self.mask, self.values), (photo.width, photo.height), photo)
        if (mask.width, mask.height) != (photo.width, photo.height):
            raise ImageError(
                f"{shown(self.mask)} is {mask.width}x{mask.height} pixels, but its photo"
                f" {shown(self.image)} is {photo.width}x{photo.height}; a mask has the size of its photo"
            )
        return FittedMask(mask, fit)


class CheckedPair(NamedTuple):
    """What is known of a pair that can be trained on.

    Attributes:
        size: (width, height) of the upright photo.
        has_car: whether any pixel of the mask is car.
        covers_corners: whether all corners of the mask are car, as if it were inverted.
        has_orientation: whether the photo has an EXIF orientation other than upright.
        fit: what the sizes say about the grid of the mask, compared with that of the stored photo.
        other_line: pixels from a line of the mask to the next, if it is a run-length row that clearly is of a
            mask of another size; else 0.
    """

    size: tuple[int, int]
    has_car: bool
    covers_corners: bool
    has_orientation: bool
    fit: Fit
    other_line: int = 0


def find_pairs(
    folder: Path, car_values: Collection[int] = (), ignored_values: Collection[int] = ()
) -> list[Pair]:
    """Find the photos of ``folder`` and their masks, sorted by id.

    Photos are in ``images/`` or ``train/``, masks in ``masks/`` or ``train_masks/``, named ``<id>`` or
    ``<id>_mask``; or there are run-length rows in ``masks.csv`` or ``train_masks.csv`` (also .csv.gz and
    .zip). If there are both ``masks/`` and ``masks.csv``, the folder is used. Links to photos are followed.
    Only enough masks are opened to decide which of their values is car; :func:`check_pairs` opens all files.

    Args:
        folder: the folder.
        car_values: grey levels or palette indexes that are car, if mask files do not simply have two values
            of which the higher is car.
        ignored_values: grey levels or palette indexes of pixels that are neither car nor background.

    Raises:
        UsageError: there is not exactly one folder of photos and one source of masks, one of them cannot be
            used, there are photos without a mask or masks without a photo, or the values of the masks do not
            tell which are car.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"The training data {shown(folder)} {what}.")
    photo_folder, mask_source = _find_photo_folder(folder), _find_mask_source(folder)
    photos = _find_photos(photo_folder)
    if mask_source.is_dir():
        masks = find_masks(mask_source)
        values = decide_values(mask_source, list(masks.values()), car_values, ignored_values)
        mask_ids = match_ids(photos, masks)
        pairs = [Pair(id, photos[id], masks[mask], values=values) for id, mask in mask_ids.items()]
        named = {id: shown(path.relative_to(folder)) for id, path in masks.items()}
    else:
        rows = read_rows(mask_source)
        mask_ids = match_ids(photos, rows)
        pairs = [Pair(id, photos[id], None, rows[mask]) for id, mask in mask_ids.items()]
        named = {id: f"{mask_source.name}: the row of {shown(id)}" for id in rows}
    matched = set(mask_ids.values())
    orphans = {id: what for id, what in named.items() if id not in matched}
    unmasked = photos.keys() - {pair.id for pair in pairs}
    if unmasked or orphans:
        faults = {id: f"{shown(photos[id].relative_to(folder))} has no mask" for id in unmasked}
        faults |= {id: f"{what} has no photo" for id, what in orphans.items()}
        raise UsageError(
            f"{shown(folder)}: photos without a mask {len(unmasked)} of {len(photos)}, masks without a photo"
            f" {len(orphans)} of {len(pairs) + len(orphans)}. The mask of the photo <id>.jpg is named <id> or"
            " <id>_mask, its run-length row <id>.jpg. Without the other are:"
            + list_lines([faults[id] for id in sorted(faults)])
        )
    return pairs


def load_pair(pair: Pair, size: tuple[int, int] | None) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Load the RGB photo and its L masks, upright, reduced to ``size`` if given.

    Args:
        pair: the pair.
        size: (width, height), or None for the photo's own.

    Returns:
        The photo and its mask (0 to 255), both area-averaged, and the mask of known pixels: 0 if the mask
        ignores some part of the pixel, else 255.

    Raises:
        ImageError: one of them cannot be read, or their sizes differ.
    """
    decoded, fitted = _read_pair(pair)
    image = Image.fromarray(turn(decoded.pixels, decoded.orientation))
    upright = fitted.mask.turned(decoded.orientation)
    mask = Image.fromarray(upright.to_bool().astype(np.uint8) * 255)
    known = Image.fromarray((~upright.ignored_to_bool()).astype(np.uint8) * 255)
    if size is not None:
        image = image.resize(size, Image.Resampling.BOX)
        mask = mask.resize(size, Image.Resampling.BOX)
        if is_all_known(known):
            known = Image.new("L", size, 255)
        else:
            known = resample_known(known, lambda picture: picture.resize(size, Image.Resampling.BOX))
    return image, mask, known


def check_pairs(
    pairs: Sequence[Pair],
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[CheckedPair]:
    """Decode every photo and mask.

    Args:
        pairs: the pairs to check.
        workers: number of threads, by default one per core.
        on_progress: called as ``on_progress(done, total)`` after each pair.

    Returns:
        What was found, in the order of the pairs.

    Raises:
        UsageError: some cannot be used, and the message lists all of them with the reasons; or the run-length
            rows seem to count pixels down the columns, or to be of masks of another size.
    """
    checked: list[CheckedPair] = []
    faults: list[str] = []
    with contextlib.closing(map_in_order(_check_pair, pairs, workers)) as results:
        for done, result in enumerate(results, start=1):
            if isinstance(result, Failure):
                faults.append(result.reason)
            else:
                checked.append(result)
            on_progress(done, len(pairs))
    if not faults:
        _refuse_misfit(pairs, checked)
        faults = [
            f"The run-length row of {shown(pair.id)} is of a mask of another size: its lines are"
            f" {each.other_line} pixels apart, but its photo is {each.size[0]}x{each.size[1]}"
            for pair, each in zip(pairs, checked, strict=True)
            if each.other_line
        ]
    if faults:
        raise UsageError(
            f"{len(faults)} of {len(pairs)} photos cannot be trained on. Repair them, or remove them with"
            " their masks:" + list_lines(faults)
        )
    return checked


def describe_orientations(checked: Sequence[CheckedPair]) -> str:
    """One line on the photos with an EXIF orientation and their masks; empty if there are none."""
    fits = [each.fit for each in checked if each.has_orientation]
    if not fits:
        return ""
    masks = {
        "upright": fits.count(Fit.TURNED),
        "as stored": fits.count(Fit.SAME),
        "taken as stored, which cannot be told from the size": fits.count(Fit.UNCLEAR),
    }
    counts = ", ".join(f"{number:,} {words}" for words, number in masks.items() if number)
    return f"Turned upright by their EXIF orientation: {counted(len(fits), 'photo')}; their masks: {counts}"


def _refuse_misfit(pairs: Sequence[Pair], checked: Sequence[CheckedPair]) -> None:
    """Raise UsageError if a sample of the run-length rows does not fit the photos."""
    rows = [
        (pair.runs, each.size)
        for pair, each in zip(pairs, checked, strict=True)
        if pair.runs and not each.has_orientation
    ]
    misfit = find_misfit(rows[:: -(-len(rows) // SAMPLE) or 1])
    if misfit is None:
        return
    reason = f"the lines of the mask are {misfit.line} pixels apart, which is not the width of the photo"
    if misfit.columns:
        reason = (
            "pixels seem to be counted down the columns, not along the rows. `carvana-batch decode` with"
            " --rle-order columns makes masks of such rows, for a folder masks/ in their place"
        )
    raise UsageError(
        f"The run-length rows do not fit the photos: in {misfit.rows} of {misfit.judged} of them, {reason}."
    )


def _find_photo_folder(folder: Path) -> Path:
    found = [folder / name for name in PHOTO_FOLDERS if (folder / name).is_dir()]
    if not found:
        raise UsageError(
            f"There are no photos in {shown(folder)}: looked for a folder images/ or train/ in it."
            + _suggest(folder)
        )
    if len(found) > 1:
        raise UsageError(
            f"{shown(folder)} has both images/ and train/, so it is not clear which photos are meant. Move"
            " one of them away." + _suggest(folder)
        )
    return found[0]


def _find_mask_source(folder: Path) -> Path:
    found = _mask_sources(folder)
    if not found:
        raise UsageError(
            f"There are no masks in {shown(folder)}: looked for a folder masks/ or train_masks/, and for"
            " run-length rows in masks.csv or train_masks.csv (also .csv.gz and .zip)." + _suggest(folder)
        )
    if len(found) > 1:
        names = " and ".join(path.name + "/" * path.is_dir() for path in found)
        raise UsageError(
            f"{shown(folder)} has masks in {names}, so it is not clear which are meant. Leave one of them and"
            " move the rest away."
        )
    return found[0]


def _mask_sources(folder: Path) -> list[Path]:
    found = []
    for name in MASK_NAMES:
        if (folder / name).is_dir():
            found.append(folder / name)
        else:
            rows = (folder / (name + suffix) for suffix in ROW_SUFFIXES)
            found += [path for path in rows if path.is_file()]
    return found


def _suggest(folder: Path) -> str:
    """Suggest a folder that was probably meant: one in ``folder``, or its parent."""
    for other in [*(folder / name for name in PHOTO_FOLDERS), folder.parent]:
        if (
            other != folder
            and _mask_sources(other)
            and any((other / name).is_dir() for name in PHOTO_FOLDERS)
        ):
            return f" Did you mean {shown(other)}?"
    return ""


def _find_photos(folder: Path) -> dict[str, Path]:
    photos: dict[str, Path] = {}
    first_paths: dict[str, Path] = {}
    for ref in find_images(folder, follow_links=True).refs:
        first = first_paths.setdefault(pairing_name(ref.key), ref.path)
        if first != ref.path:
            raise UsageError(
                f"Two photos have the id {shown(ref.key)}: {shown(first)} and {shown(ref.path)}."
                " Remove or rename one of them."
            )
        photos[ref.key] = ref.path
    return photos


def _read_pair(pair: Pair) -> tuple[DecodedImage, FittedMask]:
    """The photo as it is stored, and its mask on the same grid."""
    decoded = decode_image(pair.image)
    return decoded, pair.read_mask(decoded.layout)


def _check_pair(pair: Pair) -> CheckedPair | Failure:
    try:
        decoded, fitted = _read_pair(pair)
    except ImageError as error:
        return Failure(pair.id, "read", str(error))
    return CheckedPair(
        size=decoded.layout.upright_size,
        has_car=bool(fitted.mask.rows.any()),
        covers_corners=fitted.mask.covers_corners,
        has_orientation=decoded.orientation != UPRIGHT,
        fit=fitted.fit,
        other_line=find_other_line(pair.runs, decoded.layout) if pair.runs else 0,
    )
