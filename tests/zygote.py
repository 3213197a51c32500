"""Forks processes of the command line that have imported everything already, as torch takes seconds.

Reads one JSON order a line. {"poll": id} answers the exit code of a process, negative for a signal, or null.
Any other starts a process and answers its id:

arguments, folder   of the command line, and where it runs
stdin, stdout, stderr   files; or tty, the name of a terminal that the process shall be alone on
fault     arguments of Faults: what goes wrong with its files
setup     environment: variables; limits: {"RLIMIT_NOFILE": 12}, for example
tidy      whether the interpreter is shut down at the end, for which torch takes longer than for a small run
"""

import json
import os
import resource
import sys
import tempfile

from faulty_files import Faults

import carvana_batch.run  # noqa: F401
from carvana_batch.commands import main
from carvana_batch.inference.planning import make_predictor
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import Options


def answer(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def set_up(environment=None, limits=None):
    os.environ.update(environment or {})
    tempfile.tempdir = None  # it remembers the temporary folder
    os.closerange(3, 256)
    for name, limit in (limits or {}).items():
        resource.setrlimit(getattr(resource, name), (limit, limit))


def become(order):
    os.setsid()
    if order.get("tty"):
        terminal = os.open(order["tty"], os.O_RDWR)  # the first one that a new session opens is its own
        files = [terminal, terminal, terminal]
    else:
        files = [os.open(order["stdin"], os.O_RDONLY)]
        files += [os.open(order[name], os.O_WRONLY | os.O_CREAT, 0o644) for name in ("stdout", "stderr")]
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        setattr(sys, name, os.fdopen(number, mode, closefd=False))
    os.chdir(order["folder"])
    sys.argv = ["carvana-batch", *order["arguments"]]
    if order.get("setup"):
        set_up(**order["setup"])
    if order.get("fault"):
        Faults(**order["fault"]).install()


make_predictor(load_model("segunet-s"), Options(precision="fp32"))  # imports what is imported late
while line := sys.stdin.readline():
    order = json.loads(line)
    if "poll" in order:
        child, status = os.waitpid(order["poll"], os.WNOHANG)
        answer(os.waitstatus_to_exitcode(status) if child else None)
        continue
    child = os.fork()
    if child == 0:
        become(order)
        try:
            main()
        except SystemExit as end:
            if not order["tidy"]:
                sys.stdout.flush()
                os._exit(int(end.code or 0))
            raise
    answer(child)
