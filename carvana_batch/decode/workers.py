"""Start worker processes, keep signals from them, and notice when one dies or hangs."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

from carvana_batch.errors import is_out_of_threads
from carvana_batch.main_memory import keep_freed_memory
from carvana_batch.parallel import reserved_threads

Result = TypeVar("Result")

WORKER_POLL_SECONDS = 0.5
"""How often to check whether all workers are alive."""

FOR_MAIN_PROCESS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else {signal.SIGINT}
"""Signals that only the main process handles, although a terminal or batch system may send them to all."""

OTHER_THREADS = 4
"""Threads that the main process starts later: the watch and the writers, and one that has hardly ended."""

CANNOT_START_THREADS = 75
"""Exit code of a worker process that may not start the threads that it needs."""


def begin_worker(socket_folder: Path | None, _worker: int) -> None:
    """Initialise a worker process; with the first argument given, a ``worker_init_fn`` of torch.

    Workers return freed memory to the system, because photos may differ in size. They block SIGTERM, so a
    thread waits for it, and exits if it was sent by the main process.

    Args:
        socket_folder: where the worker makes its socket; None for the usual temporary folder.
    """
    keep_freed_memory(False)
    if socket_folder is not None:
        tempfile.tempdir = str(socket_folder)

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    if signal.SIGTERM in FOR_MAIN_PROCESS:
        with exit_if_out_of_threads():
            threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def exit_if_out_of_threads() -> Iterator[None]:
    """End a worker process without a stack trace if it may start no thread in the with block."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_threads(error):
            raise
        os._exit(CANNOT_START_THREADS)


class WorkerWatch(threading.Thread):
    """Kills all workers as soon as one has died, or spends too long on a photo.

    Otherwise the main process could wait forever: for the shared memory of earlier photos, which torch
    requests from the worker that decoded them, or for the rest of a result that a dead worker only wrote in
    part.

    Args:
        workers: the processes.
        poll_seconds: how often to check them.

    Attributes:
        deadline: time by which the photo that the main process waits for must arrive; None while it does not
            wait for one.
        hung: whether the workers were killed because the deadline had passed.
        ended: set it to end the thread.
    """

    def __init__(self, workers: Sequence[multiprocessing.Process], poll_seconds: float) -> None:
        super().__init__(daemon=True)
        self.workers, self.poll_seconds = workers, poll_seconds
        self.deadline: float | None = None
        self.hung = False
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(self.poll_seconds):
            deadline = self.deadline
            self.hung = deadline is not None and time.monotonic() > deadline
            if self.hung or any(worker.exitcode for worker in self.workers):
                for worker in self.workers:
                    worker.kill()
                return


class DecodingThread(Generic[Result]):
    """A thread that calls a function, because a decoder in the main thread could hang for ever.

    Python cannot end threads, so one that hangs goes on, but neither results nor the end of this process wait
    for it. A decoder that holds the interpreter lock holds all of them up.

    Args:
        function: what it calls.

    Raises:
        RuntimeError: it cannot be started; see :func:`is_out_of_threads`.
    """

    def __init__(self, function: Callable[[int], Result]) -> None:
        self._arguments: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(function,), daemon=True).start()

    @classmethod
    def start_if_possible(cls, function: Callable[[int], Result]) -> Self | None:
        """Start a thread; None if that is impossible, or would leave too few for the rest of a run."""
        try:
            with reserved_threads(OTHER_THREADS):
                return cls(function)
        except RuntimeError as error:
            if not is_out_of_threads(error):
                raise
            return None

    def _serve(self, function: Callable[[int], Result]) -> None:
        while (argument := self._arguments.get()) is not None:
            try:
                self._results.put(function(argument))
            except BaseException as error:  # noqa: BLE001 (raised in the main thread)
                self._results.put(error)

    def call(self, argument: int, timeout: float) -> Result:
        """What the function returns or raises.

        Raises:
            TimeoutError: it takes longer than ``timeout`` seconds; the thread must not be used again.
        """
        self._arguments.put(argument)
        try:
            result = self._results.get(timeout=timeout)
        except queue.Empty as error:
            self.end()
            raise TimeoutError from error
        if isinstance(result, BaseException):
            raise result
        return result

    def end(self) -> None:
        """Let the thread end once it has returned."""
        self._arguments.put(None)


@contextlib.contextmanager
def workers_starting() -> Iterator[None]:
    """Prepare signals for a with block that starts workers.

    Signals for the main process are blocked in the block, and workers inherit this. torch's SIGCHLD handler
    is removed after the block: when a worker dies, it would raise at an arbitrary line of the main thread.
    Without it, the death is noticed when the next photo does not arrive.
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
    """Let the garbage collector ignore all existing objects in a with block around the life of workers.

    The collector writes to each object that it examines, so a forked worker would get its own copy of nearly
    all memory that it shares with the main process, about 40 MB. This does nothing if the program, or an
    enclosing block, has already frozen objects.
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
    """Return whether an exception from a DataLoader means that a worker died.

    A worker that dies while it sends a photo causes an OSError or EOFError. Otherwise torch raises a
    RuntimeError "DataLoader worker (pid ...) exited unexpectedly". This text was seen in torch 2.13.0; torch
    has no class of its own for this error.
    """
    if isinstance(error, OSError | EOFError):
        return True
    return isinstance(error, RuntimeError) and "exited unexpectedly" in str(error)
