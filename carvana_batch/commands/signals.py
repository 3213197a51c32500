"""Ctrl-C and SIGTERM: the first one asks to stop in good order, the second leaves at once."""

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
    """A flag that the first signal sets, after which ``line`` is said."""
    from carvana_batch.stopping import StopFlag

    stop = StopFlag()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.signal is not None:
            screen.restore_terminal()
            os._exit(128 + number)
        stop.signal = number
        screen.say(line)

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
