"""Putting masks and extra files into a bucket, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from carvana_batch.cloud.lock import held_by, lost_lock, version_of
from carvana_batch.cloud.urls import BucketUrl, Store, StoreError, open_store, raise_store_error
from carvana_batch.errors import ImageError
from carvana_batch.files import read_error, remove_file
from carvana_batch.output.paths import OutPaths
from carvana_batch.values import Failure, ImageRef

if TYPE_CHECKING:
    from carvana_batch.output.writer import Written

THREADS = 16

MOST_WAITING = 64
"""Photos that may be waiting for their files to be put; with more of them, the network waits."""

TRIES = 8
"""To put a file that others change meanwhile."""

MARK = "carvanabatch"
"""The name of the metadata of objects that runs have made; its value says which run.

Letters alone, because Azure takes identifiers only, and some proxies drop names with underscores.
"""


def is_of_a_run(store: Store, url: BucketUrl, name: str) -> bool:
    """Whether a run has made an object, or there is none.

    Raises:
        StoreError: the store failed.
    """
    import obstore

    try:
        return _is_marked(obstore.get(store, name).attributes)
    except FileNotFoundError:
        return True
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        raise_store_error(url, error)


def _is_marked(attributes: Any) -> bool:
    return any(name.lower() == MARK for name in attributes)


class Uploader:
    """Puts the files of photos; a context manager.

    Args:
        url: the out folder.
        paths: the local out folder, from which files are removed once they have been put.
        lock: name of the lock below ``url``.
        run: identifies the run, which holds the lock.
    """

    def __init__(self, url: BucketUrl, paths: OutPaths, lock: str, run: str) -> None:
        self.url, self.paths, self._lock, self.run = url, paths, lock, run
        self._store = open_store(url)
        self._waiting: deque[Future[Written | Failure]] = deque()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(THREADS, "upload")
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the threads."""
        self._threads.shutdown(cancel_futures=True)

    def submit(self, result: Written | Failure) -> None:
        """Let a thread put the files of a photo."""
        self._waiting.append(self._threads.submit(self._put_files, result))

    def results(self, *, wait: bool) -> Generator[Written | Failure]:
        """The oldest results, as far as their files have been put, or too many are waiting.

        Args:
            wait: wait for all.

        Raises:
            FolderChangedError: this run does not hold the folder any more.
            StoreError: the store failed.
        """
        while self._waiting and (wait or len(self._waiting) > MOST_WAITING or self._waiting[0].done()):
            yield self._waiting.popleft().result()

    def _put_files(self, result: Written | Failure) -> Written | Failure:
        """Put the files of a photo, the mask last."""
        if isinstance(result, Failure) or not result.entry.masked:
            return result
        entry, paths = result.entry, self.paths
        files = [paths.extra(extra.kind, entry.key) for extra in entry.extras] + [paths.mask(entry.key)]
        try:
            for path in files:
                self._put(path.relative_to(paths.root).as_posix(), path.read_bytes())
        except ImageError as error:
            return Failure.of(ImageRef(entry.key, entry.source), "write", str(error))
        except OSError as error:
            raise read_error(paths.mask(entry.key), error) from error
        finally:
            for path in files:
                remove_file(path)
        return result

    def _put(self, name: str, content: bytes) -> None:
        """Put a file, unless there is one that no run has made.

        Each try is on the condition that the store has what this run has looked at, so that nothing that
        appears meanwhile is replaced.

        Raises:
            ImageError: there is one.
            FolderChangedError: this run does not hold the folder any more.
            StoreError: the store failed.
        """
        import obstore

        exceptions = obstore.exceptions
        mode: Any = "create"
        try:
            for _ in range(TRIES):
                try:
                    obstore.put(
                        self._store,
                        name,
                        content,
                        mode=mode,
                        attributes={MARK: self.run},
                        use_multipart=False,
                    )
                    return
                except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError):
                    pass
                try:
                    got = obstore.get(self._store, name)
                except FileNotFoundError:
                    mode = "create"
                    continue
                if not _is_marked(got.attributes):
                    raise ImageError(
                        f"{self.url / name} is there already and was not made by predict, so it stays"
                    )
                if bytes(got.bytes()) == content:
                    return
                # Of an earlier state of the photo, or of a run that was killed before it could say so.
                if held_by(self.url, self._lock) != self.run:
                    raise lost_lock(self.url)
                mode = version_of(got.meta)
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise_store_error(self.url / name, error)
        raise StoreError(f"{self.url / name} changes again and again while it is written.")
