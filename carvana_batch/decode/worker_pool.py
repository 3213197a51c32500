"""The worker processes of a DataLoader, which prove that they can work before their first photo."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol, Self, cast

from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from carvana_batch.decode.shared_memory import SLOTS, SharedMemory
from carvana_batch.decode.workers import (
    CANNOT_START_THREADS,
    OTHER_THREADS,
    begin_worker,
    exit_if_out_of_threads,
    workers_starting,
)
from carvana_batch.decode.workers_error import (
    SharingError,
    WorkersError,
    describe_start,
)
from carvana_batch.errors import TOO_MANY_FILES, TOO_MANY_PROCESSES, is_out_of_threads
from carvana_batch.parallel import reserved_threads
from carvana_batch.temporary_folder import temporary_folder

FILES_OF_WORKER = 4 + SLOTS + 1
"""Files that the main process opens for a worker: two pipes, its slots, and a socket."""

GREETING_TIMEOUT = 60.0
"""Seconds that workers may take to start; they import everything where processes are not forked."""

OTHER_FILES = 12
"""Files of the queue of results, and those that a run opens at a time: photos, masks, the journal."""

LATER_THREADS = 2
"""Threads that a worker starts later: the one that writes to the pipe, and one that has hardly ended."""

SOCKET_FOLDER_PREFIX = "carvana-batch-"

LONGEST_SOCKET = 103
"""Most bytes of the path of a socket: of macOS, and four less than of Linux."""

SOCKET_NAME = "/carvana-batch-xxxxxxxx/pymp-xxxxxxxx/listener-xxxxxxxx"
"""Where multiprocessing makes the socket of a worker, below a temporary folder."""

SHORT_FOLDERS = ("/tmp", "/var/tmp")
"""Temporary folders to use if the chosen one is too long or not open to writing."""


class Sharing(Protocol):
    """A dataset whose items are sent through shared memory."""

    memory: SharedMemory


class WorkerPool(_MultiProcessingDataLoaderIter):
    """Iterates over the items of a dataset, which worker processes make.

    Each worker has sent shared memory, and this process has opened it, before any item is asked for. So what
    goes wrong later has to do with an item.

    Args:
        dataset: makes the items; each worker has a copy.
        indexes: of the items, in order.
        workers: number of processes.
        prefetched: number of items that each worker keeps ready.
        sockets: where workers make their sockets; see :func:`socket_folder`.

    Raises:
        WorkersError: the processes cannot be started, or cannot send anything; none is left behind.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        indexes: Iterable[Any],
        workers: int,
        prefetched: int,
        sockets: Path | None,
    ) -> None:
        self._workers: list[multiprocessing.Process] = []
        self._shutdown = True  # so far, there is nothing to shut down if an error comes
        self._worker_pids_set = False
        check_limits(workers)
        try:
            with _Handshake(sockets) as handshake:
                self._start(dataset, indexes, workers, prefetched, handshake)
                with reserved_threads(OTHER_THREADS):
                    handshake.wait_for_all(self._workers)
        except BaseException as error:
            self._kill()
            if isinstance(error, OSError):
                raise WorkersError(describe_start(error)) from error
            if isinstance(error, RuntimeError) and is_out_of_threads(error):
                raise WorkersError(TOO_MANY_PROCESSES) from error
            raise
        # Close our end of the pipe that only workers write to: reading then ends when all of them are dead.
        self._worker_result_queue._writer.close()  # type: ignore[attr-defined]

    def _start(
        self,
        dataset: Dataset[Any],
        indexes: Iterable[Any],
        workers: int,
        prefetched: int,
        handshake: _Handshake,
    ) -> None:
        with warnings.catch_warnings():
            # Users may choose more workers than there are cores.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                dataset,
                batch_size=None,
                sampler=indexes,
                num_workers=workers,
                prefetch_factor=prefetched,
                collate_fn=_unchanged,
                worker_init_fn=handshake.begin_worker,
            )
        with workers_starting():
            super().__init__(loader)

    @property
    def workers(self) -> Sequence[multiprocessing.Process]:
        return self._workers

    def _kill(self) -> None:
        """End the workers after a start that failed, in which torch's own way may hang or fail."""
        self._shutdown = True
        for worker in self._workers:
            worker.kill()
            worker.join()
        if self._worker_pids_set:
            signal_handling._remove_worker_pids(id(self))  # type: ignore[attr-defined]
            self._worker_pids_set = False

    def close(self) -> None:
        """End the workers; garbage collection would do it later, perhaps after the queues are gone."""
        self._shutdown_workers()


def _unchanged(item: Any) -> Any:
    """Replaces torch's own collate function, which would convert arrays to tensors."""
    return item


class _Handshake:
    """How workers show that they can send, and wait until this process has opened what they sent."""

    def __init__(self, sockets: Path | None) -> None:
        self._sockets = sockets
        self._greetings, self._greeting = multiprocessing.Pipe(duplex=False)
        self._go_on, self._hold = multiprocessing.Pipe(duplex=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let the workers go on: they wait until all copies of ``hold`` are closed."""
        for end in (self._greetings, self._greeting, self._go_on, self._hold):
            end.close()

    def begin_worker(self, worker: int) -> None:
        """Initialise a worker; its ``worker_init_fn``."""
        self._greetings.close()
        self._hold.close()
        try:
            self._greet(worker)
        except Exception as error:
            self._greeting.send((worker, error))
            raise

    def _greet(self, worker: int) -> None:
        begin_worker(self._sockets, worker)
        memory = cast(Sharing, get_worker_info().dataset).memory  # type: ignore[union-attr]
        # torch and multiprocessing start threads later, and would print a stack trace, or wait forever.
        with exit_if_out_of_threads():
            greeting = memory.greet()
            with reserved_threads(LATER_THREADS):
                self._greeting.send((worker, greeting))
                self._greeting.close()
                with contextlib.suppress(EOFError):
                    self._go_on.recv_bytes()
        self._go_on.close()

    def wait_for_all(self, workers: Sequence[multiprocessing.Process]) -> None:
        """Open what each worker sends.

        Raises:
            WorkersError: a worker has died, or takes too long.
            SharingError: what it sent cannot be opened.
        """
        self._greeting.close()
        waiting = {worker.sentinel for worker in workers}
        deadline = time.monotonic() + GREETING_TIMEOUT
        while waiting:
            left = max(0.0, deadline - time.monotonic())
            ready = connection.wait([self._greetings, *waiting], left)
            if not ready:
                raise WorkersError("a process that decodes does not answer")
            try:
                if self._greetings not in ready:
                    raise EOFError
                number, greeting = self._greetings.recv()
                if isinstance(greeting, Exception):
                    raise greeting
                greeting.open()
            except EOFError as error:
                for worker in workers:
                    worker.join(0.1)
                if any(worker.exitcode == CANNOT_START_THREADS for worker in workers):
                    raise WorkersError(TOO_MANY_PROCESSES) from error
                raise WorkersError("a process that decodes died at its start; memory may be short") from error
            waiting.remove(workers[number].sentinel)


def check_limits(workers: int) -> None:
    """Check that a run with this many workers may open the files that it needs.

    Raises:
        WorkersError: it may not.
    """
    opened: list[int] = []
    try:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        while len(opened) < workers * FILES_OF_WORKER + OTHER_FILES:
            opened.append(os.dup(opened[0]))
    except OSError as error:
        raise WorkersError(TOO_MANY_FILES) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def make_do(error: WorkersError, memory: SharedMemory, workers: int) -> int:
    """How many workers to try next, after ``error``; what cannot be shared will go through a pipe.

    Args:
        error: why a pool of workers could not start or go on.
        memory: of the dataset.
        workers: number of workers of that pool, at least 1.
    """
    if isinstance(error, SharingError) and not memory.problem:
        memory.problem = str(error)
        return workers
    return min(1, workers - 1)


@contextlib.contextmanager
def socket_folder() -> Iterator[Path | None]:
    """A temporary folder in which workers can make sockets, None if there is none.

    Those of killed runs are removed first.
    """
    parents = list(SHORT_FOLDERS)
    with contextlib.suppress(FileNotFoundError):  # none that is open to writing
        parents.insert(0, tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        for parent in dict.fromkeys(parents):
            if len(os.fsencode(parent + SOCKET_NAME)) > LONGEST_SOCKET:
                continue
            with contextlib.suppress(OSError, NotImplementedError):
                folder = stack.enter_context(temporary_folder(Path(parent), SOCKET_FOLDER_PREFIX))
                break
        else:
            folder = None
        yield folder
