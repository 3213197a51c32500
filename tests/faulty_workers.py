"""Workers of Ray in which things go wrong; they are imported by Ray's processes too."""

import ctypes
import os
import signal
import time
from pathlib import Path

from carvana_batch.engines.ray import make_worker

FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
}


class Faulty:
    """Makes workers that mask one photo after the other and write down each one that they begin.

    Args:
        log: a file with a line for each photo: key, process, identifier of Ray's node.
        faults: what happens before a photo is masked, by its key: one of ``FAULTS``, or "once " and one.
        seconds: to wait before each photo.
        start: what happens to a worker before it is made, if it is not one of the first ``sound`` ones.
        sound: see ``start``.
    """

    def __init__(self, log, faults=None, seconds=0.0, start="", sound=0):
        self.log, self.faults, self.seconds = Path(log), faults or {}, seconds
        self.start, self.sound = start, sound

    def __call__(self, job, weights, out, stop, place):
        starts = self.log.with_name("starts")
        with starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.start and len(starts.read_text().splitlines()) > self.sound:
            raise RuntimeError(self.start)
        return FaultyWorker(self, make_worker(job, weights, out, stop, place), stop)


class FaultyWorker:
    def __init__(self, faulty, worker, stop):
        self.faulty, self.worker, self.stop = faulty, worker, stop
        self.begin, self.account = worker.begin, worker.account

    def run(self, photos):
        import ray

        node = ray.get_runtime_context().get_node_id()
        for ref in photos:
            begun = self._begun().count(ref.key)
            with self.faulty.log.open("a") as file:
                file.write(f"{ref.key} {os.getpid()} {node}\n")
            once, fault = False, self.faulty.faults.get(ref.key, "")
            if fault.startswith("once "):
                once, fault = True, fault.removeprefix("once ")
            if fault and not (once and begun):
                FAULTS[fault]()
            time.sleep(self.faulty.seconds)
            yield from self.worker.run([ref])
            if self.stop.signal is not None:
                return

    def _begun(self):
        if not self.faulty.log.exists():
            return []
        return [line.split()[0] for line in self.faulty.log.read_text().splitlines()]
