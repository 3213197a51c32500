"""Why worker processes cannot start or send, whatever the photos are, and what to do."""

from __future__ import annotations

import errno

from carvana_batch.errors import OUT_OF_FILES, TOO_MANY_FILES, TOO_MANY_PROCESSES, CarvanaBatchError

NO_SPACE = "No space left"
"""How the text of an error of torch says that /dev/shm is full; torch has no class for it."""

FULL_SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: going on with fewer photos in flight, and those that do not fit go"
    " through a pipe, which is slower; give a container more of it (--shm-size), or use fewer --workers"
)

THROUGH_PIPE = "; photos go through a pipe, which is slower"


class WorkersError(CarvanaBatchError):
    """Worker processes cannot start or go on; fewer of them may be able to."""


class SharingError(WorkersError):
    """The main process cannot open the shared memory of its workers."""


def describe_start(error: OSError) -> str:
    """Why worker processes, or their queues, could not be made."""
    if error.errno in OUT_OF_FILES:
        return TOO_MANY_FILES
    if error.errno == errno.EAGAIN:
        return TOO_MANY_PROCESSES
    if error.errno == errno.ENOMEM:
        return "memory does not suffice for another process"
    return (
        f"shared memory (/dev/shm), in which processes wait for each other, cannot be used ({_text(error)});"
        " mount it, open to writing"
    )


def describe_sharing(error: OSError | RuntimeError) -> str:
    """Why a worker cannot send shared memory, or the main process cannot open it, and what follows."""
    if isinstance(error, RuntimeError):  # of torch, about the memory itself
        if NO_SPACE in str(error):
            return FULL_SHARED_MEMORY
        return f"shared memory (/dev/shm) cannot be used ({_text(error)}){THROUGH_PIPE}"
    if error.errno in OUT_OF_FILES:
        return TOO_MANY_FILES + THROUGH_PIPE
    return (
        f"processes cannot make sockets in a temporary folder ({_text(error)}){THROUGH_PIPE}; set TMPDIR to a"
        " folder with a short path that is open to writing"
    )


def _text(error: OSError | RuntimeError) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.partition("\n")[0] or type(error).__name__
