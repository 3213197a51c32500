"""Checks before any work starts: photos, out folder and options have to fit together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from carvana_batch.errors import UsageError
from carvana_batch.files import check_out_folder
from carvana_batch.inputs.keys import (
    EXTRA_FOLDERS,
    hashes_of,
    refuse_bad_names,
    refuse_clashes,
    refuse_same_ids,
)
from carvana_batch.options import Options
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.paths import OutPaths
from carvana_batch.submission.table import check_submission_name, refuse_other_file
from carvana_batch.text import shown
from carvana_batch.values import ImageRef


def check_request(refs: Sequence[ImageRef], root: Path, options: Options) -> None:
    """Raise UsageError if options, photos and out folder do not fit together."""
    if options.overwrite and options.shard[1] > 1:
        raise UsageError(
            "--overwrite rewrites the journals of all shards, of which others may be running. Choose another"
            " OUT, or use --overwrite without --shard."
        )
    if options.rle_file is not None:
        check_submission_name(options.rle_file)
        refuse_losing_a_table(options.rle_file, root)
    if options.truth is not None and options.truth.resolve() == root.resolve():
        raise UsageError(
            f"OUT and --gt are both {shown(root)}: the true masks would be lost. Choose another OUT."
        )
    refuse_clashes(refs)
    refuse_bad_names(refs)
    refuse_same_ids(refs)
    check_out_folder(root)
    refuse_overwriting(refs, root, options)
    refuse_photos_in_out(refs, root)


def refuse_losing_a_table(rle_file: Path, root: Path) -> None:
    """Raise UsageError if ``--rle`` would replace the report, or a file without run-length rows."""
    if os.path.realpath(rle_file) == os.path.realpath(OutPaths(root).report):
        raise UsageError(
            f"--rle {shown(rle_file)} is the report of the run: it would be lost. Name another file."
        )
    refuse_other_file(rle_file, "--rle")


def refuse_photos_in_out(refs: Iterable[ImageRef], root: Path) -> None:
    """Raise UsageError if photos lie in the out folder where submit and score look for masks."""
    out = Path(os.path.realpath(root))
    for folder in sorted({ref.path_text.rpartition(os.sep)[0] for ref in refs}):
        found = Path(os.path.realpath(folder))
        if not found.is_relative_to(out):
            continue
        top = found.relative_to(out).parts[:1]
        if not top or not (top[0] in EXTRA_FOLDERS or top[0].startswith(".")):
            raise UsageError(
                f"The photos in {shown(folder or '.')} lie in OUT, {shown(root)}, where submit and score"
                " would take them for masks. Choose another OUT."
            )


def refuse_overwriting(refs: Sequence[ImageRef], root: Path, options: Options) -> None:
    """Raise UsageError if a mask or extra file would replace a photo.

    The same goes for any other file, if no run has begun in the out folder and --overwrite is not given.
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
