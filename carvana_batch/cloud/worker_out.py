"""An out folder in a bucket as a worker in another process sees it."""

from __future__ import annotations

from pathlib import Path

from carvana_batch.cloud.lock import held_by
from carvana_batch.cloud.urls import BucketUrl
from carvana_batch.output.announced import WorkerOut
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.remote import RemoteJob


class BucketWorkerOut(WorkerOut):
    """The local folder in which files of a worker appear before they are put into the bucket.

    The metadata of objects tell which are of runs, so that nothing has to be announced to other machines.

    Args:
        job: what is where.
        root: the local folder, which is created.
        generation: of the lines of the run; see :class:`Entry`.

    Raises:
        UsageError: the run does not hold the out folder.
        CarvanaBatchError: the store cannot be reached.
    """

    def __init__(self, job: RemoteJob, root: Path, generation: int) -> None:
        self._url, self._lock_name = BucketUrl.parse(job.out), job.lock
        OutPaths(root).state.mkdir(parents=True, exist_ok=True)
        super().__init__(root, job.run, generation, replace_all=False)

    def _is_held(self) -> bool:
        return held_by(self._url, self._lock_name) == self._run
