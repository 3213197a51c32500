"""What a dispatcher of photos and the workers of an engine tell each other; free of any framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from carvana_batch.engines.contract import Account, Hello, Job, Result
from carvana_batch.errors import CarvanaBatchError
from carvana_batch.options import Choice
from carvana_batch.output.journal import Entry


class Task(NamedTuple):
    """A photo for a worker.

    Attributes:
        key: of the photo.
        path: of its file, from the root.
        claims: the lines of journals about files of the photo; see :class:`Ownership`.
        must_exist: leave the photo to others if its file is not there.
    """

    key: str
    path: str
    claims: tuple[Entry, ...] = ()
    must_exist: bool = True


@dataclass(frozen=True)
class Loaded:
    """A worker has loaded the weights."""

    worker: str


@dataclass(frozen=True)
class Greeted:
    """A worker has said hello; it is ready, or ready again."""

    worker: str
    hello: Hello


@dataclass(frozen=True)
class Refused:
    """A worker answered that it cannot do the job, or no more of it."""

    worker: str
    error: CarvanaBatchError


@dataclass(frozen=True)
class Returned:
    """A worker returned photos of a call; those in ``unseen`` do not exist for it, and were left out."""

    worker: str
    call: int
    results: Sequence[Result]
    account: Account
    unseen: Sequence[str] = ()


@dataclass(frozen=True)
class Ended:
    """A call has returned all that it will."""

    worker: str
    call: int


@dataclass(frozen=True)
class Unavailable:
    """A worker cannot be reached; it may have died, or not."""

    worker: str


@dataclass(frozen=True)
class Died:
    """A worker is gone."""

    worker: str
    reason: str
    node_lost: bool = False


Event = Loaded | Greeted | Refused | Returned | Ended | Unavailable | Died


class Crew(Protocol):
    """Starts workers in other processes and passes messages on. No method waits, except ``events``."""

    name: str

    def open(self, job: Job, chosen: Choice | None) -> None:
        """Connect to the machines; call it before all others.

        Args:
            job: what is to be done.
            chosen: what the first worker of the job chose in an earlier run, None if there was none.

        Raises:
            CarvanaBatchError: that is impossible, or they cannot do the job.
        """

    def wanted(self) -> int:
        """How many workers there should be now; at least 1."""

    def describe_wanted(self) -> str:
        """What a worker needs, in words."""

    def start(self) -> str:
        """Start a worker, which loads the weights; returns its name."""

    def begin(self, worker: str, chosen: Choice | None) -> None:
        """Ask a worker for its hello; see :meth:`Worker.begin`."""

    def give(self, worker: str, call: int, tasks: Sequence[Task]) -> None:
        """Let a worker mask photos after those that it was given before."""

    def events(self, seconds: float) -> Sequence[Event]:
        """What has happened; waits for so many seconds at most."""

    def stop(self) -> None:
        """Let all workers read no more photos and finish those in flight."""

    def close(self) -> None:
        """End all workers; may be called again."""
