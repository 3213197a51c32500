"""Faults in the file-system calls of a process: calls below one folder are counted, and the N-th one fails.

The calls are open (also for reading), write, flush, fsync, rename, mkdir and unlink. A write fails after half
of its bytes.
"""

import builtins
import errno
import io
import os
import signal
import threading

NEEDS_SPACE = {"open", "write", "mkdir"}


class Faults:
    """Injects a fault; call :meth:`install` in the process whose calls are to fail.

    Args:
        folder: calls on this folder and on files below it count.
        number: which call fails, counted from 1.
        how: "kill" to kill the process with SIGKILL, otherwise the name of an error such as "EIO".
        lasting: whether all later calls that need space fail as well, as on a disk that stays full.
        marker: a file that is created when a call fails.
    """

    def __init__(self, folder, number, how, lasting=False, marker=None):
        self.folder, self.number, self.how, self.lasting = os.path.realpath(folder), number, how, lasting
        self.marker = marker
        self.count = 0
        self.real_open = os.open
        self.lock = threading.Lock()

    def watches(self, path):
        """Whether ``path`` is the folder or below it."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        real_path = os.path.realpath(os.fsdecode(path))
        return real_path == self.folder or real_path.startswith(self.folder + os.sep)

    def is_due(self, call):
        """Count a call; return whether it has to fail."""
        with self.lock:
            self.count += 1
            return self.count == self.number or (
                self.lasting and self.count > self.number and call in NEEDS_SPACE
            )

    def fail(self, path):
        """Kill the process or raise the error."""
        if self.marker:
            os.close(self.real_open(self.marker, os.O_CREAT | os.O_WRONLY))
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.how)
        raise OSError(number, os.strerror(number), path if isinstance(path, str) else None)

    def check(self, call, path):
        """Count a call, and fail if it has to."""
        if self.is_due(call):
            self.fail(path)

    def install(self):
        """Replace ``open`` and the functions of ``os`` by ones that may fail."""
        faults = self

        class Raw(io.FileIO):
            def write(self, content):
                if faults.is_due("write"):
                    super().write(bytes(content)[: len(content) // 2])
                    faults.fail(self.name)
                return super().write(content)

        class Buffered(io.BufferedWriter):
            def flush(self):
                faults.check("flush", None)
                super().flush()

        real_open = io.open

        def faulty_open(
            file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
        ):
            if not faults.watches(file):
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            faults.check("open", os.fsdecode(file))
            if mode.replace("b", "").replace("t", "") == "r":
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = Buffered(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        io.open = builtins.open = faulty_open

        def wrap(name, call):
            real = getattr(os, name)

            def wrapped(path, *arguments, **options):
                target = f"/proc/self/fd/{path}" if name == "fsync" else path
                if faults.watches(target):
                    faults.check(call, os.fsdecode(target))
                return real(path, *arguments, **options)

            setattr(os, name, wrapped)

        for name, call in (
            ("open", "open"),
            ("fsync", "fsync"),
            ("rename", "rename"),
            ("replace", "rename"),
            ("mkdir", "mkdir"),
            ("unlink", "unlink"),
            ("remove", "unlink"),
            ("rmdir", "unlink"),
        ):
            wrap(name, call)
