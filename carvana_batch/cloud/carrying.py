"""A worker's photos and masks, if they are in buckets: photos are fetched, and masks put, around its work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

from carvana_batch.cloud.fetching import Prefetcher
from carvana_batch.cloud.mirror import Mirror
from carvana_batch.cloud.uploading import Uploader
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.remote import RemoteJob
from carvana_batch.output.writer import Written
from carvana_batch.values import Failure, ImageRef

Arrive = Callable[[int], None]
"""Waits until the photo with an index is on this machine."""

MaskPhotos = Callable[[Sequence[ImageRef], Arrive | None], Generator[Written | Failure]]


class Carrier:
    """Carries photos to a worker, and its masks away. Only one thread calls it, in one process.

    Args:
        job: what is where.
        source_folder: the local folder of the photos; that of the job, or one of this machine.
        paths: the local out folder.
    """

    def __init__(self, job: RemoteJob, source_folder: Path, paths: OutPaths) -> None:
        self._job, self._folder, self._paths = job, source_folder, paths
        self._mirror = Mirror(BucketUrl.parse(job.source), source_folder) if job.source else None
        self._out = BucketUrl.parse(job.out) if job.out else None

    def carry(self, photos: Sequence[ImageRef], mask: MaskPhotos) -> Generator[Written | Failure]:
        """Mask photos, with each result once its files have been put.

        Args:
            photos: the photos, with the paths that they have on the machine of the run.
            mask: masks photos that are on this machine.

        Raises:
            CarvanaBatchError: see ``mask``; or a store failed.
        """
        local = PhotoList(map(self._on_this_machine, photos))
        with contextlib.ExitStack() as stack:
            photos_coming = None
            if self._mirror is not None:
                fetch, empty = self._mirror.fetch, self._mirror.empty
                photos_coming = stack.enter_context(Prefetcher(local, fetch, empty))
            uploads = None
            if self._out is not None:
                uploads = stack.enter_context(Uploader(self._out, self._paths, self._job.lock, self._job.run))
            arrive = None if photos_coming is None else photos_coming.arrive
            for result in stack.enter_context(contextlib.closing(mask(local, arrive))):
                if photos_coming is not None:
                    photos_coming.release(result.id if isinstance(result, Failure) else result.entry.key)
                result = self._as_given(result)
                if uploads is None:
                    yield result
                else:
                    uploads.submit(result)
                    yield from uploads.results(wait=False)
            if uploads is not None:
                yield from uploads.results(wait=True)

    def _on_this_machine(self, ref: ImageRef) -> ImageRef:
        folder = self._job.source_folder
        if self._mirror is None or folder == str(self._folder):
            return ref
        return ImageRef(ref.key, f"{self._folder}{ref.path_text.removeprefix(folder)}")

    def _as_given(self, result: Written | Failure) -> Written | Failure:
        """A result with the paths of the machine of the run."""
        here, there = str(self._folder), self._job.source_folder
        if self._mirror is None or here == there:
            return result
        if isinstance(result, Failure):
            source, reason = result.source.replace(here, there), result.reason.replace(here, there)
            return replace(result, source=source, reason=reason)
        entry = result.entry
        entry = replace(
            entry, source=entry.source.replace(here, there), reason=entry.reason.replace(here, there)
        )
        return replace(result, entry=entry)
