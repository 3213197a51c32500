"""Standard output and error that may be closed at any time without stopping the command."""

from __future__ import annotations

import errno
import io
import os
import sys

import click

BROKEN_PIPE_EXIT = 141
"""Exit code of a command that is done, but whose output nobody wanted to read: that of SIGPIPE in a shell."""


class LastingStream(io.TextIOWrapper):
    """Writes to the same file as another text stream; once that fails, what is written vanishes.

    The reader of a pipe may be killed by the same Ctrl-C that stops a run, which then still has to finish the
    photos in flight and to write its report.

    Args:
        stream: the other stream, which must not be used any more.

    Attributes:
        error: the error that ended the output; None if all of it was written.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",  # a name that the terminal cannot show must not end the run
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.error: OSError | None = None
        self._stream = stream  # which would close the file if it were collected

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def write_bytes(self, data: bytes) -> None:
        """Write what is no text."""
        try:
            self.buffer.write(data)
            self.buffer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Leave the file open: it belongs to the other stream."""
        self.flush()

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())  # also for what is still in the buffer
        os.close(null)


def use_lasting_streams() -> None:
    """Replace stdout and stderr, and open the null device in place of those that are closed.

    Otherwise the next file to be opened would get the number of a closed one, and so what libraries print.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper) and _has_file(stream):
            stream.flush()
            setattr(sys, name, LastingStream(stream))


def write_output(data: bytes) -> None:
    """Write bytes to the standard output; see :func:`exit_code_of_output` for what comes of errors."""
    sys.stdout.flush()
    if isinstance(sys.stdout, LastingStream):
        sys.stdout.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)


def exit_code_of_output() -> int:
    """The exit code of a command that has succeeded: not 0 if not all of its output was written."""
    sys.stdout.flush()
    error = sys.stdout.error if isinstance(sys.stdout, LastingStream) else None
    if error is None:
        return 0
    if error.errno == errno.EPIPE:
        return BROKEN_PIPE_EXIT
    click.echo(f"Error: Cannot write to the standard output: {error.strerror}.", err=True)
    return 1


def _has_file(stream: io.TextIOWrapper) -> bool:
    try:
        stream.fileno()
    except io.UnsupportedOperation:
        return False
    return True
