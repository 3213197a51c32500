"""An engine of many workers: starts them, gives out photos, and goes on when workers die.

This is free of any framework: a :class:`Crew` starts the workers and passes messages on.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from carvana_batch import __version__
from carvana_batch.engines.absolute import absolute, absolute_job
from carvana_batch.engines.contract import Account, Hello, Job, OutOfRun, Result, Summary
from carvana_batch.engines.crew import (
    Crew,
    Died,
    Ended,
    Greeted,
    Loaded,
    Refused,
    Returned,
    Task,
    Unavailable,
)
from carvana_batch.engines.handout import Call, Handout
from carvana_batch.errors import CarvanaBatchError, FolderChangedError, OutOfSpaceError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.options import Choice
from carvana_batch.output.writer import Written
from carvana_batch.stopping import StopFlag
from carvana_batch.text import counted, shown
from carvana_batch.values import Failure

MOST_FAILED_STARTS = 4
"""So many workers in a row that died before their hello end the run."""

MOST_DEATHS_IN_A_ROW = 12
"""So many workers that died without a photo returned in between end the run: it cannot be the photos."""

POLL_SECONDS = 0.5
"""How often to look for signals, and for machines that have come."""

ASK_AGAIN_SECONDS = 1.0
"""How often a worker is asked again that cannot be reached."""

WAIT_SECONDS = 30.0
"""Without any worker for so long, the user is told what is being waited for."""

NODES_SHOWN = 3


@dataclass
class Member:
    """A worker as the dispatcher knows it.

    Attributes:
        state: loading, loaded, greeting, ready, unavailable, or refused: one that cannot do the job. It is
            kept, so that no other worker is started in its place.
        hello: its latest one.
        account: its latest one.
        told: the choice that it was told when it was last asked for its hello.
        ask_at: when to ask it again, None unless it cannot be reached.
    """

    state: str = "loading"
    hello: Hello | None = None
    account: Account | None = None
    told: Choice | None = None
    ask_at: float | None = None

    @property
    def node(self) -> str:
        return "" if self.hello is None else self.hello.node


class Dispatcher:
    """An :class:`Engine` whose workers are the members of a crew.

    Args:
        crew: starts them.
        on_wait: called with a line for the user if there is no worker for long.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        crew: Crew,
        on_wait: Callable[[str], object] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.crew, self.on_wait, self._clock = crew, on_wait, clock
        self.summary = Summary(crew.name)
        self._members: dict[str, Member] = {}
        self._gone: list[Account] = []
        self._chosen: Choice | None = None
        self._first = ""
        self._failed_starts = self._deaths = 0
        self._warnings: list[str] = []
        self._unseen: set[int] = set()
        self._stopping = False
        self._node_began: dict[str, float] = {}

    def begin(self, job: Job, out: OutOfRun, chosen: Choice | None, stop: StopFlag) -> Hello | None:
        self._out, self._chosen = out, chosen
        self._job = job
        self._absolute, self._given = absolute_job(job)
        self._handout = Handout(PhotoList([]), self._clock)
        self._alone_since: float | None = self._clock()
        self.crew.open(self._absolute, chosen)
        while stop.signal is None:
            for _ in self._advance():
                pass
            for name, member in self._members.items():
                if member.state == "ready" and member.hello is not None:
                    self._first = name
                    return member.hello
        return None

    def bind(self, chosen: Choice) -> Hello:
        first = self._members[self._first]
        if first.hello is None:
            raise RuntimeError("there is no first worker")
        self._chosen = chosen
        if chosen != first.hello.choice:
            self._ask(self._first, first)
        return first.hello

    def results(self, photos: PhotoList, stop: StopFlag) -> Generator[Result]:
        self._handout = Handout(photos, self._clock)
        try:
            while self._handout.left:
                if stop.signal is not None and not self._stopping:
                    self._stopping = True
                    self.crew.stop()
                if self._stopping and not self._handout.in_flight():
                    return
                self._feed()
                yield from self._advance()
        finally:
            self.close()

    def account(self) -> Account:
        accounts = self._gone + [each.account for each in self._members.values() if each.account]
        stages: Counter[str] = Counter()
        for account in accounts:
            stages.update(account.stages)
        if self._chosen is None:
            raise RuntimeError("no worker has begun")
        return Account(
            {stage: stages[stage] for stage in ("decode", "predict", "write")},
            sum(account.decode_seconds for account in accounts),
            sum(account.write_seconds for account in accounts),
            max((account.peak_memory for account in accounts), default=0),
            tuple(dict.fromkeys(self._warnings)),
            self._chosen,
        )

    def describe_nodes(self) -> str:
        ready = [member.node for member in self._members.values() if member.state == "ready"]
        nodes = Counter(ready)
        rates = [
            f"{node} {self.summary.nodes.get(node, 0) / max(self._clock() - self._node_began[node], 1):.1f}/s"
            for node, _ in nodes.most_common(NODES_SHOWN)
        ]
        more = [f"{len(nodes) - NODES_SHOWN} more"] if len(nodes) > NODES_SHOWN else []
        return f"{counted(len(ready), 'worker')}: {', '.join(rates + more)}" if ready else "no worker"

    def close(self) -> None:
        self.crew.close()

    def _advance(self) -> Iterator[Result]:
        """Start the workers that are missing, and deal with what happens."""
        if not self._stopping:
            self._fill()
        for name, member in self._members.items():
            if member.ask_at is not None and member.ask_at <= self._clock():
                self._tell(name, member)
        for event in self.crew.events(POLL_SECONDS):
            match event:
                case Loaded(worker):
                    self._load(worker)
                case Greeted(worker, hello):
                    self._greet(worker, hello)
                case Refused(worker, error):
                    self._refuse(worker, error)
                case Returned():
                    yield from self._return(event)
                case Ended(_, call):
                    reason = "two workers returned nothing for this photo, which they had alone"
                    yield from self._give_up(self._handout.end(call, self._stopping), reason)
                case Unavailable(worker):
                    member = self._members[worker]
                    member.state, member.ask_at = "unavailable", self._clock() + ASK_AGAIN_SECONDS
                case Died(worker):
                    yield from self._bury(event)

    def _fill(self) -> None:
        """Start workers, and tell the user if there are none for long.

        Raises:
            CarvanaBatchError: none can do the job.
        """
        wanted = self.crew.wanted()
        for _ in range(wanted - len(self._members)):
            self._members[self.crew.start()] = Member()
        states = {member.state for member in self._members.values()}
        if states == {"refused"}:
            raise CarvanaBatchError(f"No worker can do this job. {self._warnings[-1]}")
        if states & {"ready", "loaded", "greeting"}:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = self._clock()
        elif self._clock() - self._alone_since > WAIT_SECONDS:
            self._alone_since = float("inf")
            self.on_wait(f"Waiting for a worker, which needs {self.crew.describe_wanted()}.")

    def _load(self, worker: str) -> None:
        member = self._members[worker]
        asking = any(other.state == "greeting" for other in self._members.values())
        if self._chosen is not None or not asking:  # the others wait for the choice of the first
            self._ask(worker, member)
        else:
            member.state = "loaded"

    def _ask(self, worker: str, member: Member) -> None:
        member.state = "greeting"
        self._tell(worker, member)

    def _tell(self, worker: str, member: Member) -> None:
        member.told, member.ask_at = self._chosen, None
        self.crew.begin(worker, self._chosen)

    def _greet(self, worker: str, hello: Hello) -> None:
        """Take a worker that has said hello."""
        member = self._members[worker]
        if member.state == "unavailable":  # it may have lost its calls, and may not
            self._handout.drop(worker)
        if self._chosen is not None and member.told != self._chosen and hello.choice != self._chosen:
            self._ask(worker, member)  # it was chosen, or reduced, while this one was asked
            return
        theirs = {
            "carvana-batch": (hello.versions.get("carvana-batch", ""), __version__),
            "weights": (hello.digest[:16], self._job.digest[:16]),
            "the choice": (str(hello.choice), str(self._chosen or hello.choice)),
        }
        for name, (its, ours) in theirs.items():
            if its != ours:
                member.hello = hello
                self._refuse(worker, CarvanaBatchError(f"it has {name} {its}, and this job {ours}"))
                return
        member.hello, member.state = hello, "ready"
        self._failed_starts = 0
        self._node_began.setdefault(hello.node, self._clock())
        if self._chosen is None:
            self._chosen = hello.choice
            for name, other in self._members.items():
                if other.state == "loaded":
                    self._ask(name, other)

    def _refuse(self, worker: str, error: CarvanaBatchError) -> None:
        """Give no more photos to a worker.

        Raises:
            CarvanaBatchError: the error concerns the out folder, and so all workers.
        """
        if isinstance(error, OutOfSpaceError | FolderChangedError):
            raise error
        member = self._members[worker]
        member.state = "refused"
        self._handout.take_back(worker)
        self._warnings.append(f"A worker on {member.node or 'a machine'} was not used: {error}")
        if self._chosen is None:
            for name, other in self._members.items():
                if other.state == "loaded":
                    self._ask(name, other)
                    return

    def _feed(self) -> None:
        """Give photos to the workers that are ready."""
        if self._stopping:
            return
        ready = [name for name, member in self._members.items() if member.state == "ready"]
        coming = sum(member.state != "refused" for member in self._members.values())
        for name in ready:
            while (call := self._handout.give(name, coming)) is not None:
                self.summary.handed_out += len(call.waiting)
                self.crew.give(name, call.number, self._tasks(call))

    def _tasks(self, call: Call) -> list[Task]:
        tasks = []
        for key, index in call.waiting.items():
            path = absolute(self._handout.photos[index].path_text)
            claims = self._out.ownership.claims_of(key)
            tasks.append(Task(key, path, claims, must_exist=index not in self._unseen))
        return tasks

    def _return(self, event: Returned) -> Iterator[Result]:
        """Pass on the results that are the first ones of their photos."""
        member = self._members[event.worker]
        self._take_account(member, event.account)
        for result in event.results:
            key = result.id if isinstance(result, Failure) else result.entry.key
            index = self._handout.settle(event.call, key)
            if index is not None:
                self._unseen.discard(index)
                self._deaths = 0
                self.summary.nodes[member.node] = self.summary.nodes.get(member.node, 0) + 1
                yield self._as_given(result, index)
        for key in event.unseen:
            index = self._handout.give_again(event.call, key)
            if index is None:
                continue
            path = self._handout.photos[index].path
            if os.path.lexists(path):
                text = f"{shown(path)} is not there: share IN under the same path on all machines"
                self._refuse(event.worker, CarvanaBatchError(text))
            else:  # it is gone for all, and fails as it does in a single process
                self._unseen.add(index)

    def _take_account(self, member: Member, account: Account) -> None:
        before = member.hello.choice if member.account is None and member.hello else None
        before = member.account.choice if member.account is not None else before
        if account.choice != before:
            self._chosen = account.choice
            self._out.record_choice(account.choice)
        member.account = account
        self._warnings += [
            f"{member.node}: {line}" if f"{member.node}: {line}" not in self._warnings else ""
            for line in account.warnings
        ]
        self._warnings = [line for line in self._warnings if line]

    def _as_given(self, result: Result, index: int) -> Result:
        """A result with paths as they were given to this process, which are often relative."""
        ref = self._handout.photos[index]
        if isinstance(result, Failure):
            return Failure.of(ref, result.stage, self._in_given_words(result.reason))
        entry = replace(result.entry, source=ref.path_text, reason=self._in_given_words(result.entry.reason))
        return Written(entry, result.runs, result.seconds)

    def _in_given_words(self, reason: str) -> str:
        for from_root, given in self._given.items():
            reason = reason.replace(from_root, given)
        return reason

    def _bury(self, event: Died) -> Iterator[Result]:
        """Go on without a worker that has died.

        Raises:
            CarvanaBatchError: too many workers in a row have died before their hello.
        """
        member = self._members.pop(event.worker)
        if member.account is not None:
            self._gone.append(member.account)
        if member.hello is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise CarvanaBatchError(
                    f"{self._failed_starts} workers in a row could not be started; the last one:"
                    f" {event.reason}"
                )
            if self._chosen is None:
                for name, other in self._members.items():
                    if other.state == "loaded":
                        self._ask(name, other)
                        break
            return
        self.summary.lost_workers += 1
        self._warnings.append(f"A worker on {member.node} died and was replaced: {event.reason}")
        if self._stopping:
            self._handout.drop(event.worker)
            return
        self._deaths += 1
        if self._deaths >= MOST_DEATHS_IN_A_ROW:
            raise CarvanaBatchError(
                f"{self._deaths} workers in a row died without having masked a photo; the last one:"
                f" {event.reason}"
            )
        calls = self._handout.in_flight(event.worker)
        self._out.learn_announced([key for call in calls for key in call.waiting])
        given_up = self._handout.lose_worker(event.worker, event.node_lost)
        reason = f"two workers died with this photo alone, the second one because: {event.reason}"
        yield from self._give_up(given_up, reason)

    def _give_up(self, indexes: Sequence[int], reason: str) -> Iterator[Result]:
        for index in indexes:
            yield Failure.of(self._handout.photos[index], "predict", reason)
