"""A mask with a file name of its own: OUT of ``predict`` is that of a single photo, rather than a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from carvana_batch.errors import UsageError
from carvana_batch.files import check_target, move_to_free_place, sync_folder, temporary_prefix
from carvana_batch.inputs.formats import IMAGE_SUFFIXES
from carvana_batch.options import Options
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.text import shown
from carvana_batch.values import ImageRef


def is_mask_file(source: Path | None, out: Path) -> bool:
    """Whether OUT is the file of the mask of a single photo IN, rather than a folder."""
    suffix = out.suffix.lower()
    if source is None or not source.is_file() or suffix not in IMAGE_SUFFIXES or out.is_dir():
        return False
    if suffix != ".png":
        raise UsageError(f"Masks are PNG files: name the mask {shown(out.with_suffix('.png'))}.")
    return True


def check_mask_file(photo: Path, out: Path, options: Options) -> None:
    """Raise UsageError if the file of the mask cannot be written, or the options need a folder."""
    if options.extras:
        raise UsageError(f"--save and --background need a folder as OUT, not the file {shown(out)}.")
    check_target(out)
    if out.exists() and out.samefile(photo):
        raise UsageError(f"IN and OUT are the same file {shown(out)}. Choose another OUT.")
    if out.exists() and not options.overwrite:
        raise UsageError(
            f"{shown(out)} is there already. Name another file, or use --overwrite to replace it."
        )


@contextlib.contextmanager
def folder_of_mask_file(ref: ImageRef, out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary out folder beside a single mask file, from which the mask is moved at the end."""
    target = Path(os.path.realpath(out))
    with temporary_folder(target.parent, temporary_prefix()) as folder:
        yield folder
        mask = folder / f"{ref.key}.png"
        if mask.exists() and overwrite:
            mask.replace(target)
            sync_folder(target.parent)
        elif mask.exists():
            move_to_free_place(mask, target)
