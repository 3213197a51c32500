"""How a signal asks a run to stop."""

from __future__ import annotations


class StopFlag:
    """Holds the number of the signal that asked the run to read no more photos and finish those in flight."""

    signal: int | None = None
