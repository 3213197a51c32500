"""Fetching photos ahead of the processes that decode them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from carvana_batch.cloud.stand_ins import StandIns
from carvana_batch.output.journal import Entry
from carvana_batch.values import Failure, ImageRef

if TYPE_CHECKING:  # it imports what takes a while, and help need not wait
    from carvana_batch.output.writer import Written

Result = TypeVar("Result", bound="Entry | Failure | Written")

Arrive = Callable[[int], object]
"""Waits until the photo with an index is on this machine."""

THREADS = 16

AHEAD = 48
"""Photos that are fetched before anyone asks for them: enough for hundreds a second over a slow network."""

BYTES_AHEAD = 2**30


class Prefetcher:
    """Fetches photos in their order, in threads, a bounded number ahead; a context manager.

    Args:
        photos: the photos.
        fetch: fetches the file of a photo.
        empty: removes its content again.
        ahead: most photos that are fetched and were not asked for.
        bytes_ahead: most bytes of these, beyond the first.
    """

    def __init__(
        self,
        photos: Sequence[ImageRef],
        fetch: Callable[[Path], object],
        empty: Callable[[Path], object],
        ahead: int = AHEAD,
        bytes_ahead: int = BYTES_AHEAD,
    ) -> None:
        self.photos, self._fetch, self._empty = photos, fetch, empty
        self._ahead, self._bytes_ahead = ahead, bytes_ahead
        self._lock = threading.Lock()
        self._next = self._asked = 0
        self._futures: dict[int, Future[object]] = {}
        self._sizes: dict[int, int] = {}  # of those that nobody has asked for
        self._indexes: dict[str, int] = {}  # of those that are fetched, by key

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(THREADS, "fetch")
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the threads, and remove what they have fetched."""
        self._threads.shutdown(cancel_futures=True)
        for index in list(self._futures):
            self._empty(self.photos[index].path)

    def arrive(self, index: int) -> None:
        """Wait until a photo is there; its file is gone if it is no longer in the store.

        Raises:
            CarvanaBatchError: it cannot be fetched.
        """
        with self._lock:
            self._asked = max(self._asked, index + 1)
            self._fill()
            for asked in [each for each in self._sizes if each < self._asked]:
                del self._sizes[asked]
            future = self._futures.get(index)
        if future is not None:
            future.result()

    def release(self, key: str) -> None:
        """Remove the content of a photo of which the result is there."""
        with self._lock:
            index = self._indexes.pop(key, None)
            if index is None:
                return
            del self._futures[index]
            self._fill()
        self._empty(self.photos[index].path)

    def _fill(self) -> None:
        while self._next < len(self.photos) and (self._next < self._asked or self._has_room()):
            ref = self.photos[self._next]
            try:
                self._sizes[self._next] = ref.path.stat().st_size
            except OSError:  # it was never listed
                self._sizes[self._next] = 0
            self._futures[self._next] = self._threads.submit(self._fetch, ref.path)
            self._indexes[ref.key] = self._next
            self._next += 1

    def _has_room(self) -> bool:
        return (
            self._next - self._asked < self._ahead
            and sum(size for index, size in self._sizes.items() if index >= self._asked) < self._bytes_ahead
        )


def process_fetched(
    source: StandIns, photos: Sequence[ImageRef], process: Callable[[Arrive], Generator[Result]]
) -> Generator[Result]:
    """Process photos, each of which is fetched before, and emptied once its result is there.

    Args:
        source: where they are.
        photos: the photos.
        process: yields what comes of each, once the function that it is given has waited for it.
    """
    with contextlib.ExitStack() as stack:
        coming = stack.enter_context(Prefetcher(photos, source.fetch, source.empty, AHEAD))
        for result in stack.enter_context(contextlib.closing(process(coming.arrive))):
            coming.release(_key_of(result))
            if isinstance(result, Failure) and (problem := source.problem_of(result.source)):
                result = replace(result, reason=problem)
            yield result


def in_words(result: Result, words: Callable[[str], str]) -> Result:
    """A result with the path of its photo, and the reason that may have it, put into other words."""
    if isinstance(result, Failure | Entry):
        return replace(result, source=words(result.source), reason=words(result.reason))
    return replace(result, entry=in_words(result.entry, words))


def _key_of(result: Entry | Failure | Written) -> str:
    if isinstance(result, Failure):
        return result.id
    return result.key if isinstance(result, Entry) else result.entry.key
