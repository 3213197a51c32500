"""A run's log lines and pictures for TensorBoard, which belongs to the extra ``train``."""

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

SECONDS_TO_DISK = 30
NOT_CURVES = {"step", "epoch"}


def import_writer() -> Any:
    """The class ``torch.utils.tensorboard.SummaryWriter``.

    Raises UsageError where tensorboard is missing; call it early, so that this is known before work starts.
    """
    try:
        with warnings.catch_warnings():
            # Both are what importing tensorboard, or a TensorFlow beside it, has to say about itself.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs the package tensorboard: pip install 'carvana-batch[train]'"
        ) from error
    return SummaryWriter


class TensorBoardLog:
    """Writes event files into ``folder``, which is made where it is missing; use it as a context manager.

    Args:
        folder: where the event files of this run, and of what it goes on from, lie.
        purge_step: the first step that is written anew; TensorBoard then hides what earlier files of the
            folder say of it and of later ones, so that no point is there twice. A run that goes on from a
            checkpoint of step 100 gives 101, one that starts at the beginning 0.

    Every method raises OutOfSpaceError where the disk is full and WriteError where the folder cannot be
    written; that may be noticed a call later, because a thread does the writing.

    Raises UsageError where tensorboard is missing.
    """

    def __init__(self, folder: Path, purge_step: int = 0) -> None:
        self.folder = folder
        writer = import_writer()
        try:
            self.writer = writer(str(folder), purge_step=purge_step, flush_secs=SECONDS_TO_DISK)
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
        """Write the numbers of a line of log.jsonl at its step; a line without a step is passed over.

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
        """Show a picture under a name, such as ``val/worst``, at a step."""
        try:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        except OSError as error:
            raise write_error(self.folder, error) from error


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a log line, by the names of their curves."""
    groups = {name: value for name, value in line.items() if isinstance(value, Mapping)}
    groups["train"] = {name: value for name, value in line.items() if name not in groups.keys() | NOT_CURVES}
    for group, values in groups.items():
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{group}/{name}", value
