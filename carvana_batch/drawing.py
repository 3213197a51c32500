"""Extra files that are made from photo and mask, without the network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path

from carvana_batch.cloud.fetching import Arrive
from carvana_batch.colours import RGB
from carvana_batch.decode.loader import DecodeOptions, PhotoLoader
from carvana_batch.decode.photo import read_image
from carvana_batch.decode.workers import memory_shared_with_workers
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.options import Options
from carvana_batch.output.backgrounds import Background
from carvana_batch.output.journal import Entry
from carvana_batch.output.writer import MaskWriter
from carvana_batch.output.writer_threads import WriterThreads
from carvana_batch.stopping import StopFlag
from carvana_batch.values import Failure, Photo


def read_background(background: RGB | Path | None) -> Background | None:
    """Read the picture of ``--background``, or return its colour.

    Raises:
        UsageError: it is no picture that can be read.
    """
    if not isinstance(background, Path):
        return background
    try:
        return read_image(background, apply_exif=True)
    except ImageError as error:
        raise UsageError(f"--background: {error}.") from error


class ExtrasDrawer:
    """Makes further extra files of photos that earlier runs have masked.

    Args:
        photos: the photos.
        options: what was asked for.
        writer: writes the files.
        entries: what the journal says of the photos, by key.
        kinds: the kinds of extra files that each photo lacks, by key.
        stop: when its signal is set, no more photos are read, and those in flight are finished.
        arrive: waits for a photo of an archive; see :func:`unpack`.

    Attributes:
        warnings: one line for each restriction that was necessary.
    """

    def __init__(
        self,
        photos: PhotoList,
        options: Options,
        writer: MaskWriter,
        entries: Mapping[str, Entry],
        kinds: Mapping[str, tuple[str, ...]],
        stop: StopFlag,
        arrive: Arrive | None = None,
    ) -> None:
        self.writer, self.entries, self.kinds, self.stop = writer, entries, kinds, stop
        workers = options.workers
        if workers is None:
            workers = 1 if len(photos) < 4 else min(os.cpu_count() or 1, 8)
        # Damaged photos are here only if they were accepted when they were masked.
        decode_options = DecodeOptions(
            options.pixel_limit, options.apply_exif, options.decode_timeout, accept_damage=True
        )
        self._loader = PhotoLoader(photos, decode_options, workers, arrive=arrive)

    @property
    def warnings(self) -> list[str]:
        return self._loader.warnings

    def results(self) -> Generator[Entry | Failure]:
        """Make the files; close the generator in any case, so that the processes that decode end.

        Yields:
            For each photo that was read, its new entry for the journal, or why it has none.

        Raises:
            CarvanaBatchError: no file can be made, whatever the photo is; such as if the disk is full.
        """
        with contextlib.ExitStack() as stack:
            threads = stack.enter_context(WriterThreads[Entry]())
            stack.enter_context(memory_shared_with_workers())
            for photo in stack.enter_context(contextlib.closing(iter(self._loader))):
                if isinstance(photo, Failure):
                    yield photo
                else:
                    threads.submit(photo.ref, partial(self._draw, photo))
                yield from threads.results(wait=False)
                if self.stop.signal is not None:
                    break
            yield from threads.results(wait=True)

    def _draw(self, photo: Photo) -> Entry:
        return self.writer.draw(photo, self.entries[photo.ref.key], self.kinds[photo.ref.key])
