"""Faults in a process's file-system calls below one folder: they are counted, and the N-th one goes wrong.

The calls are open (also for reading), write, flush, fsync, rename, mkdir and unlink. A write goes wrong after
half of its bytes.
"""

import builtins
import errno
import io
import os
import signal
import threading

NEEDS_SPACE = {"open", "write", "mkdir"}


class Faults:
    """Call :meth:`install` in the process that shall suffer.

    Args:
        folder: calls on files below it count.
        number: the call that goes wrong, from 1.
        how: "kill" for SIGKILL, else the name of an error such as "EIO".
        lasting: whether all later calls go wrong, too, if they need space: the disk stays full.
        marker: a file that is made when something goes wrong.
    """

    def __init__(self, folder, number, how, lasting=False, marker=None):
        self.folder, self.number, self.how, self.lasting = os.path.realpath(folder), number, how, lasting
        self.marker = marker
        self.count = 0
        self.real_open = os.open
        self.lock = threading.Lock()

    def watches(self, path):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        place = os.path.realpath(os.fsdecode(path))
        return place == self.folder or place.startswith(self.folder + os.sep)

    def is_due(self, call):
        """Count a call, and say whether it goes wrong."""
        with self.lock:
            self.count += 1
            return self.count == self.number or (
                self.lasting and self.count > self.number and call in NEEDS_SPACE
            )

    def strike(self, path):
        if self.marker:
            os.close(self.real_open(self.marker, os.O_CREAT | os.O_WRONLY))
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.how)
        raise OSError(number, os.strerror(number), path if isinstance(path, str) else None)

    def before(self, call, path):
        if self.is_due(call):
            self.strike(path)

    def install(self):
        faults = self

        class Raw(io.FileIO):
            def write(self, content):
                if faults.is_due("write"):
                    super().write(bytes(content)[: len(content) // 2])
                    faults.strike(self.name)
                return super().write(content)

        class Buffered(io.BufferedWriter):
            def flush(self):
                faults.before("flush", None)
                super().flush()

        real_open = io.open

        def opened(
            file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
        ):
            if not faults.watches(file):
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            faults.before("open", os.fsdecode(file))
            if mode.replace("b", "").replace("t", "") == "r":
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = Buffered(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        io.open = builtins.open = opened

        def wrap(name, call):
            real = getattr(os, name)

            def wrapped(path, *arguments, **options):
                where = f"/proc/self/fd/{path}" if name == "fsync" else path
                if faults.watches(where):
                    faults.before(call, os.fsdecode(where))
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
