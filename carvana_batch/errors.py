"""The errors that a command can end with, and their exit codes.

CarvanaBatchError            exit code 1
├── UsageError               exit code 2: options or folders that do not fit together
├── ImageError               one file that cannot be used; in a run it becomes a Failure
│   └── DamageError          its data are damaged, but pixels could be decoded
├── ModelError               weights or a network that cannot be used
│   └── NoModelError         exit code 2: there are no weights of this name
├── OutOfSpaceError          the disk of the out folder is full
├── QualityGateError         exit code 4: a score below the demanded one
├── FolderChangedError       the out folder was renamed, removed or replaced during the run
└── FolderInUseError         exit code 11: another run works on the out folder
"""

from __future__ import annotations

import errno

OUT_OF_FILES = {errno.EMFILE, errno.ENFILE}

TOO_MANY_FILES = "too many files are open; allow more of them (ulimit -n)"

TOO_MANY_PROCESSES = (
    "no more processes or threads may be started; allow more of them (ulimit -u, or the limit of the"
    " container)"
)

EXIT_SOME_FAILED = 3
"""Exit code of a run that finished although some photos failed or could not be paired."""


class CarvanaBatchError(Exception):
    """What went wrong, with which file or option, and what to do; shown to the user as it is."""

    exit_code = 1


class UsageError(CarvanaBatchError):
    exit_code = 2


class ImageError(CarvanaBatchError):
    pass


class DamageError(ImageError):
    pass


class ModelError(CarvanaBatchError):
    pass


class NoModelError(ModelError):
    exit_code = 2


class OutOfSpaceError(CarvanaBatchError):
    pass


class QualityGateError(CarvanaBatchError):
    exit_code = 4


class FolderChangedError(CarvanaBatchError):
    pass


class FolderInUseError(CarvanaBatchError):
    exit_code = 11


def is_out_of_threads(error: RuntimeError) -> bool:
    """Whether Python could not start a thread; it has no class for this error."""
    return str(error) == "can't start new thread"
