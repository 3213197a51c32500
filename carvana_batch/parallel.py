"""Applies a function to a list in threads, with results in the order of the list."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, TypeVar

from carvana_batch.errors import is_out_of_threads

with warnings.catch_warnings():
    # Without semaphores, it says that it starts no processes; we do not want any.
    warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")
    import joblib

TASKS_PER_WORKER = 64

POOL_THREADS = 4
"""Threads of a pool beside its workers, and one that has hardly ended; joblib starts none for one worker."""

Item = TypeVar("Item")

Result = TypeVar("Result")


@contextlib.contextmanager
def reserved_threads(count: int) -> Iterator[None]:
    """A with block during which so many threads wait, to prove that they can be started afterwards.

    Raises:
        RuntimeError: they cannot be started; see :func:`is_out_of_threads`.
    """
    ended = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=ended.wait, daemon=True)
            thread.start()
            threads.append(thread)
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


class _Calls(Generic[Item, Result]):
    """Calls a function in threads until it is closed, which waits for the calls in progress.

    A thread that is still at work when the interpreter ends is stopped in the middle of native code, which
    sometimes aborts the process, whose exit code is then 134.
    """

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function
        self._changed = threading.Condition()
        self._running: set[int] = set()  # threads
        self._closed = False

    def __call__(self, item: Item) -> Result | None:
        with self._changed:
            if self._closed:
                return None
            self._running.add(threading.get_ident())
        try:
            return self._function(item)
        finally:
            with self._changed:
                self._running.discard(threading.get_ident())
                self._changed.notify_all()

    def close(self) -> None:
        """Make no more calls."""
        with self._changed:
            self._closed = True
            own = {threading.get_ident()}  # garbage may be collected during a call
            self._changed.wait_for(lambda: self._running <= own)


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Generator[Result]:
    """The results of ``function`` for each item, in the order of the items, computed by threads.

    Threads suffice, because decoding and NumPy release the interpreter lock. Once the generator is closed, no
    call is in progress. Items are handed out in
    portions, so that results do not accumulate in memory while the caller is busy with earlier ones.

    Args:
        function: what to call for each item.
        items: its arguments.
        workers: number of threads, by default one per core; this one alone if no others can be started.
    """
    workers = min(workers or joblib.cpu_count(), max(len(items), 1))
    if not _can_start(workers + POOL_THREADS):
        workers = 1
    portion = workers * TASKS_PER_WORKER
    calls = _Calls(function)
    with (
        contextlib.closing(calls),
        joblib.Parallel(workers, backend="threading", return_as="generator") as parallel,
    ):
        for first in range(0, len(items), portion):
            results = parallel(joblib.delayed(calls)(item) for item in items[first : first + portion])
            try:
                for result in results:  # noqa: UP028 (`yield from` would close it before the except)
                    yield result
            except GeneratorExit:
                with warnings.catch_warnings():  # of joblib, about results that are no longer wanted
                    warnings.simplefilter("ignore")
                    results.close()
                raise


def _can_start(threads: int) -> bool:
    """Whether so many threads can be started; a pool that cannot start them fails in other ways or hangs."""
    try:
        with reserved_threads(threads):
            return True
    except RuntimeError as error:
        if not is_out_of_threads(error):
            raise
        return False
