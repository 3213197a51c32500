"""Worker processes: how they start, which signals reach them, and how one that dies or hangs is noticed."""

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

WORKER_POLL_SECONDS = 0.5
"""How often it is checked whether all workers are alive."""

FOR_MAIN_PROCESS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else {signal.SIGINT}
"""Signals that a terminal or batch system may send to all processes, but that only the main one handles."""


def begin_worker(_worker: int) -> None:
    """Initialise a worker.

    Freed memory is returned to the system, because photos may differ in size. SIGTERM, although blocked, ends
    the worker if the main process sent it.
    """
    keep_freed_memory(False)

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    if signal.SIGTERM in FOR_MAIN_PROCESS:
        threading.Thread(target=wait, daemon=True).start()


class WorkerWatch(threading.Thread):
    """Kills all workers as soon as one has died, or takes too long for a photo.

    Otherwise the main process would wait forever: torch also asks a worker for the memory of photos that it
    decoded earlier, and reads from a pipe what a dead worker has only written in part.

    Attributes:
        deadline: time by which the photo that the main process waits for must arrive; None while it does not
            wait for one.
        hung: whether the workers were killed because the deadline had passed.
    """

    def __init__(self, workers: Sequence[multiprocessing.Process]) -> None:
        super().__init__(daemon=True)
        self.workers = workers
        self.deadline: float | None = None
        self.hung = False
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(WORKER_POLL_SECONDS):
            self.hung = self.deadline is not None and time.monotonic() > self.deadline
            if self.hung or any(worker.exitcode for worker in self.workers):
                for worker in self.workers:
                    worker.kill()
                return


@contextlib.contextmanager
def workers_starting() -> Iterator[None]:
    """A with block in which workers are started.

    Signals for the main process are blocked during it, which the workers inherit. torch's handler of SIGCHLD
    is removed after it: when a worker dies, it would raise at an arbitrary line of the main thread. Without
    it, the death is noticed when the next photo does not arrive.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_MAIN_PROCESS)
    try:
        yield
    finally:
        if in_main_thread:  # Python, and so torch, only sets handlers there
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def memory_shared_with_workers() -> Iterator[None]:
    """A with block around the life of workers, in which the garbage collector ignores all earlier objects.

    The collector writes to each object that it examines, so that a forked worker would get its own copy of
    nearly all memory that it shares with the main process, about 40 MB. If the program, or an enclosing
    block, has already frozen objects, this does nothing.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def is_lost_worker(error: BaseException) -> bool:
    """Whether an exception of a DataLoader means that a worker died.

    OSError and EOFError are raised if it died while it sent a photo. In other cases torch has no class for
    it, but raises a RuntimeError "DataLoader worker (pid ...) exited unexpectedly", as seen in torch 2.13.0.
    """
    if isinstance(error, OSError | EOFError):
        return True
    return isinstance(error, RuntimeError) and "exited unexpectedly" in str(error)
