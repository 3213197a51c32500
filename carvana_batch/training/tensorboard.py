"""Log lines and pictures of a run for TensorBoard, which the extra ``train`` installs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.files import write_error

SECONDS_BETWEEN_FLUSHES = 30
NOT_CURVES = {"step", "epoch"}


def import_writer() -> Any:
    """Import the class ``torch.utils.tensorboard.SummaryWriter``.

    Call this early, so that a missing package is reported before work starts.

    Raises:
        UsageError: tensorboard is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Importing tensorboard, or TensorFlow if that is installed, raises these warnings.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs the package tensorboard: pip install 'carvana-batch[train]'"
        ) from error
    return SummaryWriter


class TensorBoardLog:
    """Writes event files into ``folder``; use it as a context manager.

    A thread does the writing, so a method may raise an error of an earlier call.

    Args:
        folder: the folder of the event files, also of the run that is resumed. It is made if needed.
        purge_step: the first step that this log writes: 0 for a new run, 101 for a run that is resumed from a
            checkpoint of step 100. TensorBoard hides what earlier files say about this and later steps, so
            that no point appears twice.

    Raises:
        UsageError: tensorboard is not installed.
        OutOfSpaceError: from every method, the disk is full.
        WriteError: from every method, the folder cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int = 0) -> None:
        self.folder = folder
        writer = import_writer()
        try:
            self.writer = writer(str(folder), purge_step=purge_step, flush_secs=SECONDS_BETWEEN_FLUSHES)
        except OSError as error:
            raise write_error(folder, error) from error

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.writer.close()
        except OSError as close_error:
            if kind is None:
                raise write_error(self.folder, close_error) from close_error

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of a line of log.jsonl at its step; a line without a step is ignored.

        ``{"step": 50, "loss": 0.3, "val": {"dice": 0.9}}`` becomes ``train/loss`` and ``val/dice``.
        """
        if "step" not in line:
            return
        try:
            for name, value in _scalars(line):
                self.writer.add_scalar(name, value, line["step"])
        except OSError as error:
            raise write_error(self.folder, error) from error

    def add_picture(self, name: str, image: Image.Image, step: int) -> None:
        """Write a picture under a name, such as ``val/worst``, at a step."""
        try:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        except OSError as error:
            raise write_error(self.folder, error) from error


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a log line with the names of their curves."""
    groups = {name: value for name, value in line.items() if isinstance(value, Mapping)}
    groups["train"] = {name: value for name, value in line.items() if name not in groups.keys() | NOT_CURVES}
    for group, values in groups.items():
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{group}/{name}", value
