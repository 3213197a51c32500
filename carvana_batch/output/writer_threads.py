"""Writer threads, with a bounded queue in the order of the photos."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from carvana_batch.errors import CarvanaBatchError, ImageError
from carvana_batch.files import concerns_one_file
from carvana_batch.values import Failure, ImageRef

WRITER_THREADS = 2

MOST_UNWRITTEN = 8
"""Photos that may be waiting for a writer thread; with more of them, whoever hands them over waits."""

Written = TypeVar("Written")


class WriterThreads(Generic[Written]):
    """Threads that write the files of photos, and what they have not written yet; a context manager."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[ImageRef, Future[Written]]] = deque()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(WRITER_THREADS, "writer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the threads."""
        self._threads.shutdown()

    def submit(self, ref: ImageRef, write: Callable[[], Written]) -> None:
        """Let a thread write the files of a photo."""
        self._waiting.append((ref, self._threads.submit(write)))

    def results(self, *, wait: bool) -> Generator[Written | Failure]:
        """What came of the oldest photos, as far as they are written or too many are waiting.

        Args:
            wait: wait for all.

        Raises:
            CarvanaBatchError: no file can be written, whatever the photo is; such as if the disk is full.
        """
        while self._waiting and (wait or len(self._waiting) > MOST_UNWRITTEN or self._waiting[0][1].done()):
            ref, future = self._waiting.popleft()
            try:
                result: Written | Failure = future.result()
            except CarvanaBatchError as error:
                if not (isinstance(error, ImageError) or concerns_one_file(error)):
                    raise
                result = Failure.of(ref, "write", str(error))
            yield result
