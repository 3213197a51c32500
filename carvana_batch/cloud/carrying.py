"""A worker's photos and masks, if they are in buckets: photos are fetched, and masks put, around its work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path

from carvana_batch.cloud.fetching import Arrive, in_words, process_fetched
from carvana_batch.cloud.mirror import Mirror
from carvana_batch.cloud.stand_ins import named
from carvana_batch.cloud.uploading import Uploader
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.remote import RemoteJob
from carvana_batch.output.writer import Written
from carvana_batch.values import Failure, ImageRef

MaskPhotos = Callable[[Sequence[ImageRef], Arrive | None], Generator[Written | Failure]]


class Carrier:
    """Carries photos to a worker, and its masks away. Only one thread calls it, in one process.

    Args:
        job: what is where.
        source_folder: the local folder of the photos; that of the job, or one of this machine.
        paths: the local out folder.
        most_bytes: larger photos are not fetched.
    """

    def __init__(self, job: RemoteJob, source_folder: Path, paths: OutPaths, most_bytes: int) -> None:
        self._job, self._folder, self._paths = job, source_folder, paths
        source = BucketUrl.parse(job.source) if job.source else None
        self._mirror = None if source is None else Mirror(source, source_folder, most_bytes)
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
        names = {str(self._folder): self._job.source, str(self._paths.root): self._job.out}
        with contextlib.ExitStack() as stack:
            stack.enter_context(named({folder: url for folder, url in names.items() if url}))
            uploads = None
            if self._out is not None:
                job = self._job
                uploads = stack.enter_context(Uploader(self._out, self._paths, job.lock, job.run))
            if self._mirror is None:
                results = mask(local, None)
            else:
                results = process_fetched(self._mirror, local, partial(mask, local))
            for result in stack.enter_context(contextlib.closing(results)):
                result = in_words(result, self._as_given)
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

    def _as_given(self, text: str) -> str:
        """A text with the paths that photos have on the machine of the run."""
        return text if self._mirror is None else text.replace(str(self._folder), self._job.source_folder)
