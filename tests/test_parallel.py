"""Functions that are called in threads."""

import threading
import time

import pytest

from carvana_batch.parallel import map_in_order


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("fails", [False, True])
def test_no_call_is_in_progress_once_the_results_are_closed(workers, fails):
    """A thread that works on while the interpreter ends may abort it."""
    lock = threading.Lock()
    running = 0

    def work(number):
        nonlocal running
        with lock:
            running += 1
        time.sleep(0.05 if number else 0.01)
        with lock:
            running -= 1
        if fails and number == 1:
            raise ValueError(number)
        return number

    results = map_in_order(work, range(40), workers)
    assert next(results) == 0
    if fails:
        with pytest.raises(ValueError, match="1"):
            list(results)
    results.close()
    assert running == 0
    time.sleep(0.1)
    assert running == 0
