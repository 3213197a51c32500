"""Workers on the machines of a Ray cluster. This is the only module that imports Ray.

Ray Core with actors, because the journal knows what is done: Ray Data would lose all rows of a task with a
photo that kills its worker, and repeat it without end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from carvana_batch.cloud.carrying import Carrier
from carvana_batch.cloud.places import SCRATCH_PREFIX
from carvana_batch.cloud.worker_out import BucketWorkerOut
from carvana_batch.engines.absolute import absolute
from carvana_batch.engines.contract import Account, Hello, Job, Result, Worker
from carvana_batch.engines.crew import (
    Died,
    Ended,
    Event,
    Greeted,
    Loaded,
    Refused,
    Returned,
    Task,
    Unavailable,
)
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.options import Choice, most_bytes
from carvana_batch.output.announced import WorkerOut
from carvana_batch.stopping import StopFlag
from carvana_batch.temporary_folder import temporary_folder
from carvana_batch.text import counted
from carvana_batch.values import ImageRef

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is masked here is nobody's business

try:
    import ray
    from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] == "carvana_batch":
        raise
    raise UsageError(
        f"--engine ray needs Ray, of which {error.name} is missing: pip install 'carvana-batch[ray]'"
    ) from error

RETURN_SECONDS = 0.2
"""Results are collected for so long, because each message costs the coordinator about the same."""

CONNECTION_ADVICE = (
    "Check the address, and that RAY_AUTH_MODE and the token (RAY_AUTH_TOKEN, or ~/.ray/auth_token) are those"
    " of the cluster."
)

CONNECT_SECONDS = 10.0
"""Time for the head of a cluster to accept a connection."""

TIDY_SECONDS = 5.0
"""Time for workers to remove the files of theirs that are in buckets."""

STOP_SIGNAL = signal.SIGTERM
"""What a worker takes a request to stop for."""


class Batch(NamedTuple):
    """What a worker returns at a time; see :class:`Returned`."""

    results: list[Result]
    account: Account
    unseen: list[str]


class Place(NamedTuple):
    """What a worker is given of its machine.

    Attributes:
        cores: for it, such as for processes that decode.
        share: of the memory of its machine or GPU.
        scratch: a folder of its own for files that are in buckets; None if there are none.
    """

    cores: int
    share: float
    scratch: Path | None = None


class Needs(NamedTuple):
    """What Ray reserves for a worker; ``gpus`` may be a fraction."""

    cpus: int
    gpus: float

    def fit_into(self, resources: Mapping[str, float]) -> int:
        """How many such workers a machine with these resources has room for."""
        cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0)
        if not self.gpus:
            return cpus // self.cpus
        on_gpus = gpus // self.gpus if self.gpus >= 1 else gpus * (1 // self.gpus)
        return min(cpus // self.cpus, int(on_gpus))

    def describe(self) -> str:
        """In words."""
        return counted(self.cpus, "CPU") + (f" and {self.gpus:g} GPU" if self.gpus else "")


def make_worker(job: Job, weights: str, out: WorkerOut, stop: StopFlag, place: Place) -> Worker:
    """The worker of an actor.

    Args:
        job: what is to be done.
        weights: what masks the photos; see :func:`load_model`.
        out: the out folder.
        stop: when its signal is set, no more photos are read.
        place: what it is given of its machine.

    Raises:
        CarvanaBatchError: the weights cannot be loaded.
    """
    # Imported here, because the process of the run need not wait for them.
    from carvana_batch.engines.local import LocalWorker
    from carvana_batch.inference.devices import pick_device
    from carvana_batch.inference.memory import memory_budget
    from carvana_batch.network.checkpoints import load_model

    model = load_model(weights, job.options.model_settings)
    options = job.options
    if options.memory is None and place.share < 1:
        budget = memory_budget(pick_device(options.device), None)
        job = replace(job, options=replace(options, memory=int(budget * place.share)))
    carrier = None
    if job.remote is not None and place.scratch is not None:
        carrier = Carrier(job.remote, place.scratch / "in", out.paths, most_bytes(options.pixel_limit))
    return LocalWorker(job, model, out, stop, place.cores, carrier)


MakeWorker = Callable[[Job, str, WorkerOut, StopFlag, Place], Worker]


class Actor:
    """The process of a worker.

    Errors that are for the user are returned, because Ray wraps those that are raised.

    Args:
        job: what is to be done.
        weights: see :func:`make_worker`.
        needs: what Ray reserves for it.
        make: makes the worker, as :func:`make_worker` does.
    """

    def __init__(self, job: Job, weights: str, needs: Needs, make: MakeWorker) -> None:
        self._job, self._weights, self._needs, self._make = job, weights, needs, make
        self._stop = StopFlag()
        self._scratch = contextlib.ExitStack()

    def load(self) -> str | CarvanaBatchError:
        """Load the weights and look for the out folder; returns Ray's name of the machine."""
        job = self._job
        node = str(ray.get_runtime_context().get_node_id())
        try:
            place = _place_of(self._needs, node)
            if job.remote is not None:
                folder = temporary_folder(Path(tempfile.gettempdir()), SCRATCH_PREFIX)
                place = place._replace(scratch=self._scratch.enter_context(folder))
            if job.remote is not None and job.remote.out and place.scratch is not None:
                self._out: WorkerOut = BucketWorkerOut(job.remote, place.scratch / "out", job.generation)
            else:
                self._out = WorkerOut(job.root, job.run, job.generation, job.options.overwrite)
            self._worker = self._make(job, self._weights, self._out, self._stop, place)
        except CarvanaBatchError as error:
            return error
        return node

    def begin(self, chosen: Choice | None) -> Hello | CarvanaBatchError:
        """See :meth:`Worker.begin`."""
        try:
            hello = self._worker.begin(chosen)
        except CarvanaBatchError as error:
            return error
        return replace(hello, node=socket.gethostname())

    def run(self, tasks: Sequence[Task]) -> Iterator[Batch | CarvanaBatchError]:
        """Mask photos, and return what is there every ``RETURN_SECONDS``."""
        if self._stop.signal is not None:
            return
        local = self._job.remote is None or not self._job.remote.source
        unseen = [task.key for task in tasks if local and task.must_exist and not os.path.lexists(task.path)]
        left_out = set(unseen)
        refs = [ImageRef(task.key, task.path) for task in tasks if task.key not in left_out]
        results: list[Result] = []
        refusal = None
        sent = time.monotonic()
        try:
            self._out.take_up({task.key: task.claims for task in tasks if task.claims})
            for result in self._worker.run(refs) if refs else ():
                results.append(result)
                if time.monotonic() - sent > RETURN_SECONDS:
                    yield Batch(results, self._worker.account(), unseen)
                    results, unseen, sent = [], [], time.monotonic()
        except CarvanaBatchError as error:
            refusal = error
        yield Batch(results, self._worker.account(), unseen)
        if refusal is not None:
            yield refusal

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Let :meth:`run` finish the photos in flight; Ray calls it in another thread."""
        self._stop.signal = STOP_SIGNAL

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def tidy(self) -> None:
        """Remove what is on this machine of files in buckets."""
        self._scratch.close()


def _place_of(needs: Needs, node_id: str) -> Place:
    """What a worker on a machine may use of it."""
    own = (node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)
    resources: dict[str, float] = next(own, {})
    workers = max(1, needs.fit_into(resources))
    cores = max(1, int(resources.get("CPU", 1)) // workers)
    return Place(cores, min(1.0, needs.gpus) if needs.gpus else 1 / workers)


class Request(NamedTuple):
    """A message to an actor that is not answered yet; ``call`` is the number of a call to ``run``."""

    worker: str
    kind: Literal["load", "begin", "run"]
    call: int = 0


class RayCrew:
    """Workers as actors of Ray; see :class:`Crew`.

    Args:
        weights: what masks the photos; see :func:`load_model`. The machines must have the same.
        address: of the cluster; None for the one of ``RAY_ADDRESS`` or of ``ray start`` on this machine, or
            else a new one of this machine alone.
        actors: number of workers; None for as many as the machines have room for.
        gpus: for each worker; None for one if there are any.
        make: makes the worker of an actor.
    """

    name = "ray"

    def __init__(
        self,
        weights: str,
        address: str | None = None,
        actors: int | None = None,
        gpus: float | None = None,
        make: MakeWorker = make_worker,
    ) -> None:
        self.weights = absolute(weights) if Path(weights).exists() else weights
        self.address, self.actors, self.gpus, self.make = address, actors, gpus, make
        self._connected = self._in_buckets = False
        self._needs = Needs(1, 0)
        self._actors: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        self._requests: dict[Any, Request] = {}
        self._number = 0

    def open(self, job: Job, chosen: Choice | None) -> None:
        if job.options.device.startswith("cuda:"):
            raise UsageError(
                "--device cuda:N does not go with --engine ray, which gives each worker its GPU."
            )
        self._connect()
        device = job.options.device
        self._needs = self._choose_needs(chosen.device if chosen and device == "auto" else device)
        self._job, self._in_buckets = ray.put(job), job.remote is not None
        self._class = ray.remote(concurrency_groups={"control": 1})(Actor)

    def wanted(self) -> int:
        return self.actors or max(1, sum(map(self._needs.fit_into, _machines())))

    def describe_wanted(self) -> str:
        return self._needs.describe()

    def start(self) -> str:
        self._number += 1
        worker = f"worker {self._number}"
        options = {"num_cpus": self._needs.cpus, "num_gpus": self._needs.gpus, "max_restarts": 0}
        actor = self._class.options(**options).remote(self._job, self.weights, self._needs, self.make)
        self._actors[worker] = actor
        self._requests[actor.load.remote()] = Request(worker, "load")
        return worker

    def begin(self, worker: str, chosen: Choice | None) -> None:
        self._requests[self._actors[worker].begin.remote(chosen)] = Request(worker, "begin")

    def give(self, worker: str, call: int, tasks: Sequence[Task]) -> None:
        run = self._actors[worker].run.options(num_returns="streaming")
        self._requests[run.remote(tasks)] = Request(worker, "run", call)

    def events(self, seconds: float) -> list[Event]:
        references = list(self._requests)
        if not references:
            time.sleep(min(seconds, 0.1))
            return []
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        events: list[Event] = []
        for reference in ready:
            if reference in self._requests:  # its worker may have died in the meantime
                events += self._read(reference)
        return events

    def stop(self) -> None:
        for actor in self._actors.values():
            actor.stop.remote()

    def close(self) -> None:
        self._requests.clear()
        if ray.is_initialized():
            if self._in_buckets:
                tidied = [actor.tidy.remote() for actor in self._actors.values()]
                if tidied:  # a worker that does not answer is killed, and the next one removes its folder
                    ray.wait(tidied, num_returns=len(tidied), timeout=TIDY_SECONDS)
            for actor in self._actors.values():
                ray.kill(actor)
        self._actors.clear()
        if self._connected:
            self._connected = False
            ray.shutdown()
            ray._private.worker._worker_logs_enabled = True

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        _check_reachable(self.address or os.environ.get("RAY_ADDRESS", ""))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, OSError, RayError) as error:
            where = f"--address {self.address}" if self.address else "--engine ray"
            raise UsageError(
                f"{where}: no connection to a Ray cluster: {_first_line(error)}. {CONNECTION_ADVICE}"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():  # Ray would end the process at SIGTERM
                    signal.signal(number, handler)
        self._connected = True
        # Whatever log_to_driver says, Ray prints its own log to stdout when a machine is lost, beside --json.
        ray._private.worker._worker_logs_enabled = False

    def _choose_needs(self, device: str) -> Needs:
        """What each worker needs: a GPU, or if there are none, all CPUs of the smallest machine."""
        machines = _machines()
        gpus = self.gpus
        if gpus is None:
            found = any(machine.get("GPU", 0) >= 1 for machine in machines)
            gpus = 1.0 if device == "cuda" or (device == "auto" and found) else 0.0
        if gpus:
            needs = Needs(1, gpus)
            if len(machines) == 1 and not needs.fit_into(machines[0]) and self.address is None:
                raise UsageError(
                    f"A worker needs {needs.describe()}, which Ray does not find in this machine. Give"
                    " another --device or --gpus-per-actor, or the --address of a cluster."
                )
            return needs
        cpus = sorted({int(machine.get("CPU", 0)) for machine in machines} - {0}) or [1]
        if self.actors is None:
            return Needs(cpus[0], 0)
        for count in range(cpus[-1], 0, -1):
            if sum(Needs(count, 0).fit_into(machine) for machine in machines) >= self.actors:
                return Needs(count, 0)
        return Needs(1, 0)

    def _read(self, reference: Any) -> list[Event]:
        """The event of an answer that is there."""
        request = self._requests[reference]
        worker = request.worker
        try:
            if request.kind == "run":
                try:
                    answer = ray.get(next(reference))
                except StopIteration:
                    del self._requests[reference]
                    return [Ended(worker, request.call)]
            else:
                del self._requests[reference]
                answer = ray.get(reference)
        except ActorUnavailableError:
            self._requests.pop(reference, None)
            return [Unavailable(worker)]
        except RayError as error:
            return [*self._read_rest(reference, request), *self._bury(worker, error)]
        if isinstance(answer, CarvanaBatchError):
            return [Refused(worker, answer)]
        if isinstance(answer, Batch):
            return [Returned(worker, request.call, answer.results, answer.account, answer.unseen)]
        if isinstance(answer, Hello):
            return [Greeted(worker, answer)]
        self._nodes[worker] = answer
        return [Loaded(worker)]

    def _read_rest(self, failed: Any, request: Request) -> Iterator[Event]:
        """What a worker that has died returned of calls before the one whose error was read."""
        for reference, other in list(self._requests.items()):
            if reference is failed or (other.worker, other.kind) != (request.worker, "run"):
                continue
            with contextlib.suppress(RayError, StopIteration):
                while ray.wait([reference], timeout=0)[0]:
                    answer = ray.get(next(reference))
                    if isinstance(answer, Batch):
                        results = answer.results
                        yield Returned(other.worker, other.call, results, answer.account, answer.unseen)

    def _bury(self, worker: str, error: RayError) -> list[Event]:
        for reference in [each for each, request in self._requests.items() if request.worker == worker]:
            del self._requests[reference]
        ray.kill(self._actors.pop(worker))  # it may still live, if it was its work that raised the error
        node = self._nodes.pop(worker, None)
        node_lost = node is not None and not any(
            each["Alive"] for each in ray.nodes() if each["NodeID"] == node
        )
        return [Died(worker, "its machine was lost" if node_lost else _describe(error), node_lost)]


def _check_reachable(address: str) -> None:
    """Check that something listens at HOST:PORT, for which Ray itself would wait many minutes.

    Raises:
        UsageError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: Ray Client is not enough. Run the command on a machine of the cluster, or"
            " as a Ray job."
        )
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--address {address}: no connection to a Ray cluster ({error}). Give the address that `ray start"
            " --head` names."
        ) from error


def _machines() -> list[dict[str, float]]:
    """The resources of the machines that are there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _describe(error: RayError) -> str:
    """Why a worker died, in one line."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {_first_line(error.cause)}"
    text = str(error)
    if "creation task" in text:
        return text.strip().splitlines()[-1].strip()
    if isinstance(error, OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in text:
        return "Ray has killed it, because the memory of its machine was short"
    if "Worker exit type" in text:
        return "its process was killed or has crashed"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
