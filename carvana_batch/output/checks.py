"""What is refused before any work starts: photos, out folder and options that do not fit together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from carvana_batch.errors import UsageError
from carvana_batch.files import check_out_folder
from carvana_batch.inputs.keys import LONGEST_NAME, find_same, fold_key, hashes_of, mask_id, refuse_clashes
from carvana_batch.options import EXTRA_FILES, Options
from carvana_batch.output.folder import OutFolder
from carvana_batch.submission.table import check_submission_name
from carvana_batch.text import shown
from carvana_batch.values import ImageRef

REPORTS = ("report.csv/", "run.json/")
"""Folders that would be where a run writes its report."""


def check_request(refs: Sequence[ImageRef], root: Path, options: Options) -> None:
    """Raise UsageError where options, photos and out folder do not fit together."""
    if options.overwrite and options.shard[1] > 1:
        raise UsageError(
            "--overwrite would remove what the other shards wrote. Choose another OUT, or use --overwrite"
            " without --shard."
        )
    if options.rle_file is not None:
        check_submission_name(options.rle_file)
    if options.truth is not None and options.truth.resolve() == root.resolve():
        raise UsageError(
            f"OUT and --gt are both {shown(root)}: the true masks would be lost. Choose another OUT."
        )
    refuse_clashes(refs)
    refuse_overlooked(refs)
    refuse_unwritable(refs)
    check_out_folder(root)
    refuse_overwriting(refs, root, options)


def refuse_overlooked(refs: Sequence[ImageRef]) -> None:
    """Raise UsageError for a photo whose mask ``submit`` and ``score`` would not find.

    They pass over hidden files and over the folders of the extras, and take the masks ``x.png`` and
    ``x_mask.png`` for two of the same photo.
    """
    extra_folders = tuple(f"{folder}/" for folder, _ in EXTRA_FILES.values())
    for ref in refs:
        if ref.key.startswith(extra_folders):
            raise UsageError(
                f"The mask of {shown(ref.path)} would lie in the folder {ref.key.partition('/')[0]} of OUT,"
                " where submit and score do not look for masks. Rename the photo's folder."
            )
        if ref.key.startswith(".") or "/." in ref.key:
            raise UsageError(
                f"The mask {shown(ref.key)}.png of {shown(ref.path)} would be hidden, and submit and score"
                " pass over hidden files. Rename the photo or its folder, or give a path below it."
            )
    for first, second in find_same(refs, lambda ref: mask_id(ref.key)):
        raise UsageError(
            f"{shown(first.path)} and {shown(second.path)} would have masks that submit and score take for"
            " two of the same photo. Move one of them away, or mask them into two out folders."
        )


def refuse_unwritable(refs: Iterable[ImageRef]) -> None:
    """Raise UsageError for a photo whose mask cannot have its place: its name would be too long for a file,
    or its folder would be where the report belongs."""
    for ref in refs:
        if len(os.fsencode(f"{ref.key.rpartition('/')[2]}.png")) > LONGEST_NAME:
            raise UsageError(
                f"The mask of {shown(ref.path)} would have too long a name, with .png at its end. Rename the"
                " photo."
            )
        if fold_key(ref.key).startswith(REPORTS):
            raise UsageError(
                f"The mask of {shown(ref.path)} would lie in a folder {ref.key.partition('/')[0]} of OUT,"
                " where the report of this name belongs. Rename the photo's folder."
            )


def refuse_overwriting(refs: Sequence[ImageRef], root: Path, options: Options) -> None:
    """Raise UsageError where the out folder ``root`` has, at the place of a mask or an extra, a photo.

    So it does for any other file there, if no run has begun in the folder and ``--overwrite`` is not given.
    """
    out = OutFolder(root, {}, options.shard, options.overwrite)

    def targets() -> Iterator[tuple[Path, tuple[int, int]]]:
        for ref in refs:
            for path in (
                out.paths.mask(ref.key),
                *(out.paths.extra(kind, ref.key) for kind in options.extras),
            ):
                if (identity := _identity(path)) is not None:
                    yield path, identity

    existing = hashes_of(identity for _, identity in targets())
    if not existing.size:
        return
    if np.intersect1d(existing, hashes_of(_identity(ref.path) for ref in refs)).size:
        photos = {_identity(ref.path) for ref in refs}
        for path, identity in targets():
            if identity in photos:
                raise UsageError(f"{shown(path)} would overwrite a photo. Choose another OUT.")
    if out.begun or options.overwrite:
        return
    for path, _ in targets():
        raise UsageError(
            f"{shown(path)} is there already, and not from an earlier run. Choose another OUT, or use"
            " --overwrite."
        )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
