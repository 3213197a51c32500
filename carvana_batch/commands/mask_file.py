"""A mask on its own: OUT of ``predict`` is the file of a single photo's mask, or the standard output."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from carvana_batch.commands.predict_input import STANDARD
from carvana_batch.commands.streams import write_output
from carvana_batch.errors import UsageError
from carvana_batch.files import check_target, move_to_free_place, sync_folder, temporary_prefix
from carvana_batch.inputs.formats import IMAGE_SUFFIXES
from carvana_batch.options import Options
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.text import shown
from carvana_batch.values import ImageRef


def is_mask_file(sources: Sequence[Path], out: Path) -> bool:
    """Whether OUT is where the mask of a single photo IN goes, rather than a folder.

    Raises:
        UsageError: OUT is no place for the masks of what IN is.
    """
    single = len(sources) == 1 and (sources[0] == STANDARD or sources[0].is_file())
    if out == STANDARD:
        if not single:
            raise UsageError("OUT is -, which takes the mask of one photo. Name a folder for several.")
        return True
    suffix = out.suffix.lower()
    if not single or suffix not in IMAGE_SUFFIXES or out.is_dir():
        if STANDARD in sources:
            raise UsageError(
                f"IN is -, the standard input, so OUT has to be the file of the mask, such as car.png, or -;"
                f" not the folder {shown(out)}."
            )
        return False
    if suffix != ".png":
        raise UsageError(f"Masks are PNG files: name the mask {shown(out.with_suffix('.png'))}.")
    return True


def check_mask_file(photo: Path, out: Path, options: Options) -> None:
    """Raise UsageError if the mask cannot be written, or the options need a folder."""
    if options.extras:
        raise UsageError(f"--save and --background need a folder as OUT, not the file {shown(out)}.")
    if out == STANDARD:
        if sys.stdout.isatty():
            raise UsageError(
                "The mask, a PNG file, would go to the terminal. Redirect it: `... - > car.png`, or a pipe."
            )
        return
    check_target(out)
    if out.exists() and out.samefile(photo):
        raise UsageError(f"IN and OUT are the same file {shown(out)}. Choose another OUT.")
    if out.exists() and not options.overwrite:
        raise UsageError(
            f"{shown(out)} is there already. Name another file, or use --overwrite to replace it. If it is"
            " another photo, name OUT by -o."
        )
    if out.exists() and _is_in_colour(out):
        raise UsageError(
            f"{shown(out)} is a picture in colour, which --overwrite does not replace by a mask. Remove it,"
            " or name another file; if it is another photo, name OUT by -o."
        )


def _is_in_colour(path: Path) -> bool:
    """Whether a file is a picture that has colours, and so no mask."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.mode not in ("1", "L", "P", "I", "I;16")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return False


@contextlib.contextmanager
def folder_of_mask_file(ref: ImageRef, out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary out folder, from which the mask is moved to its file, or printed, at the end.

    It lies beside that file, or among the temporary files of the system.
    """
    target = Path(os.path.realpath(out))
    parent = Path(tempfile.gettempdir()) if out == STANDARD else target.parent
    with temporary_folder(parent, temporary_prefix()) as folder:
        yield folder
        mask = folder / f"{ref.key}.png"
        if not mask.exists():
            return
        if out == STANDARD:
            write_output(mask.read_bytes())
        elif overwrite:
            mask.replace(target)
            sync_folder(target.parent)
        else:
            move_to_free_place(mask, target)
