"""Loading what ``torch.save`` wrote, within limits: a small file can ask for any amount of memory."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from carvana_batch.main_memory import limit_new_memory

MAX_CHECKPOINT_BYTES = 2**31
"""Twice the largest network in float32, its averaged copy, and the two moments of its optimizer."""

MEMORY_RATIO = 3
"""Memory for each byte of a file while it is loaded: the tensors, and a copy of each in passing."""

MEMORY_MARGIN = 2**28
"""Further memory while a file is loaded, in bytes, such as for modules of torch that this imports."""


class OversizedError(Exception):
    """A file of tensors is, or unpacks to, more than any checkpoint; the message says so without its name."""


def load_pickled(path: Path) -> Any:
    """Load tensors, and lists and dicts of them; no code in the file is executed.

    The sizes that an archive declares are checked before any of its content is read. What a pickle makes of
    little cannot be told from it, so memory is limited while it is loaded.

    Raises:
        OversizedError: the file is too large, or takes far more memory than its size.
        Exception: of any kind, if the file is damaged or holds something else.
    """
    size = path.stat().st_size
    if size > MAX_CHECKPOINT_BYTES:
        raise OversizedError(
            f"it has {size:,} bytes, more than a checkpoint of any of the networks; save the state_dict()"
            " alone"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        # torch.save compresses nothing. This also finds entries that lie in the same place of the file.
        if unpacked > size:
            raise OversizedError(
                f"it has {size:,} bytes and unpacks to {unpacked:,}; save it again with torch.save, which"
                " does not compress"
            )
    try:
        with limit_new_memory(MEMORY_RATIO * size + MEMORY_MARGIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about odd pickles before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        # Without the cause, whose stack holds all that was loaded.
        raise OversizedError(f"it has {size:,} bytes and takes more than three times the memory") from None
