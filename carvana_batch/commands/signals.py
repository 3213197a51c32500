"""Ctrl-C and SIGTERM: the first one stops a run in an orderly way, the second one exits at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carvana_batch.commands.reporting import Screen
    from carvana_batch.stopping import StopFlag


def leave_at_once(number: int) -> None:
    """End the process, without waiting for anything."""
    os._exit(128 + number)


def interrupt(_number: int) -> None:
    """End what the main thread is doing, but not the process, which may be a notebook's.

    Raises:
        KeyboardInterrupt: always.
    """
    raise KeyboardInterrupt


STOPPING = "Stopping: finishing the photos in flight; once more leaves at once."
"""What is printed when the first signal comes during a run of ``predict``."""


@contextlib.contextmanager
def stop_on_signals(
    screen: Screen,
    line: str,
    numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM),
    again: Callable[[int], object] = leave_at_once,
) -> Iterator[StopFlag]:
    """A with block with a flag that the first signal sets; then ``line`` is printed.

    Args:
        screen: where the line is printed.
        line: what it says.
        numbers: of the signals.
        again: called with the number of any further signal.
    """
    from carvana_batch.stopping import StopFlag

    stop = StopFlag()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.signal is not None:
            screen.restore_terminal()
            again(number)
            return
        stop.signal = number
        screen.say(line)

    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
