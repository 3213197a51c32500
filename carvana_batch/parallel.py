"""Working through a list in threads, in the order of the list."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import joblib

TASKS_PER_WORKER = 64

Item = TypeVar("Item")

Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Generator[Result]:
    """``function`` of each item, in the order of the items, worked out by ``workers`` threads.

    Threads are enough, because decoding and NumPy let go of the interpreter's lock. By default there is
    one for each core. The items are handed out in portions, so that results cannot pile up in memory
    while the caller is busy with the earlier ones.
    """
    workers = min(workers or joblib.cpu_count(), max(len(items), 1))
    portion = workers * TASKS_PER_WORKER
    with joblib.Parallel(workers, backend="threading", return_as="generator") as parallel:
        for first in range(0, len(items), portion):
            results = parallel(joblib.delayed(function)(item) for item in items[first : first + portion])
            try:
                for result in results:  # noqa: UP028 (`yield from` would close it before the except)
                    yield result
            except GeneratorExit:
                with warnings.catch_warnings():  # joblib's, of results that nobody wants any more
                    warnings.simplefilter("ignore")
                    results.close()
                raise
