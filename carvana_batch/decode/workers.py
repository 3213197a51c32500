"""The worker processes: how they start, which signals reach them, and who notices when one dies or hangs."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence

from carvana_batch.main_memory import keep_freed_memory

GLANCE = 0.5
"""Seconds between two looks at the workers."""

FOR_MAIN_PROCESS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else {signal.SIGINT}
"""Signals that a terminal or a batch system may send to all processes, but that are for the main one."""


def begin_worker(_worker: int) -> None:
    """In a worker: freed memory is given back, as photos may differ in size; and SIGTERM, although it is
    blocked, means to end if it comes from the main process."""
    keep_freed_memory(False)

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    if signal.SIGTERM in FOR_MAIN_PROCESS:
        threading.Thread(target=wait, daemon=True).start()


class _Watch(threading.Thread):
    """Kills all workers as soon as one has died, or does not get done with a photo in time.

    The main process would wait for ever otherwise: torch also asks a worker for the memory of photos that it
    has decoded before, and reads from a pipe what a dead one has not written to its end.

    Attributes:
        deadline: when the photo that the main process waits for has to be there; None while it does not wait.
        hung: whether the workers were killed because that had passed.
    """

    def __init__(self, workers: Sequence[multiprocessing.Process]) -> None:
        super().__init__(daemon=True)
        self.workers = workers
        self.deadline: float | None = None
        self.hung = False
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(GLANCE):
            self.hung = self.deadline is not None and time.monotonic() > self.deadline
            if self.hung or any(worker.exitcode for worker in self.workers):
                for worker in self.workers:
                    worker.kill()
                return


@contextlib.contextmanager
def workers_starting() -> Iterator[None]:
    """Keep signals for the main process from the workers that start meanwhile, which inherit that they are
    blocked; and torch from raising errors at any line.

    torch's handler of SIGCHLD would raise in the midst of whatever the main thread does when a worker dies.
    Without it the death shows when the next photo does not come.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_MAIN_PROCESS)
    try:
        yield
    finally:
        if in_main_thread:  # Python sets handlers nowhere else, and so does torch
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def memory_shared_with_workers() -> Iterator[None]:
    """A with block, around the life of workers, in which the garbage collector leaves alone what was there
    before it, in all of this process.

    The collector writes to each object that it looks at, and a forked worker would get a copy of its own of
    nearly all that it shares with the main process, some 40 MB. Does nothing where the program, or a block
    around this one, has seen to that.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
