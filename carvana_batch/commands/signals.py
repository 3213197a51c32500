"""Ctrl-C and SIGTERM: the first one stops a run in an orderly way, the second one exits at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carvana_batch.commands.reporting import Screen
    from carvana_batch.stopping import StopFlag


@contextlib.contextmanager
def stop_on_signals(screen: Screen, line: str) -> Iterator[StopFlag]:
    """A with block with a flag that the first signal sets; then ``line`` is printed."""
    from carvana_batch.stopping import StopFlag

    stop = StopFlag()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.signal is not None:
            screen.restore_terminal()
            os._exit(128 + number)
        stop.signal = number
        screen.say(line)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
