"""Applies a function to a list in threads, with results in the order of the list."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from carvana_batch.decode.workers import reserved_threads
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


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Generator[Result]:
    """The results of ``function`` for each item, in the order of the items, computed by threads.

    Threads suffice, because decoding and NumPy release the interpreter lock. Items are handed out in
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
    with joblib.Parallel(workers, backend="threading", return_as="generator") as parallel:
        for first in range(0, len(items), portion):
            results = parallel(joblib.delayed(function)(item) for item in items[first : first + portion])
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
