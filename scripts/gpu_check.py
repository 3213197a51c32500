#!/usr/bin/env python
"""Check and measure everything that only a machine with a card can show, in at most six minutes.

    scripts/gpu_check.py OUT [PHOTOS]

Each part runs in a process of its own with a time limit, so one that fails or hangs costs no other. After
each part, OUT/results.json and OUT/results.txt hold what is known so far; OUT/trace.json.gz is for
chrome://tracing or Perfetto. PHOTOS is a folder of photos of one size; without it, some are drawn. See
docs/gpu.md.

--device cpu --quick runs all parts with tiny inputs, to try the script itself.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_parts

MINUTES = 6.0

LOG_TAIL = 3000
"""Characters of the output of a part that did not succeed which are kept."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder for the results")
    parser.add_argument("photos", type=Path, metavar="PHOTOS", nargs="?", help="a folder  [default: drawn]")
    parser.add_argument("--device", default="cuda", help="as in predict  [default: cuda]")
    parser.add_argument("--quick", action="store_true", help="use few and tiny photos")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"for all parts  [default: {MINUTES:g}]"
    )
    names = list(gpu_parts.PARTS)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names)
    )
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--fault", nargs=2, action="append", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    setup = gpu_parts.Setup(arguments.out, arguments.photos, arguments.device, arguments.quick)
    if arguments.part is not None:
        return run_part(setup, *arguments.part)
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        if setup.photos is None:
            setup = gpu_parts.draw(setup, Path(name) / "drawn")
        for part in arguments.only:
            fault = dict(arguments.fault).get(part, "")
            results[part] = start_part(setup, part, Path(name), deadline - time.monotonic(), fault)
            write_results(arguments.out, results)
            print(describe(part, results[part]), flush=True)
    return 0 if all(result["status"] == "done" for result in results.values()) else 1


def run_part(setup: gpu_parts.Setup, part: str, file: str) -> int:
    """Run a part in this process; what it has found is written after each of its results."""
    fault = os.environ.pop("GPU_CHECK_FAULT", "")
    found: dict[str, Any] = {}
    for key, value in gpu_parts.PARTS[part].run(setup):
        found[key] = value
        Path(file).write_text(json.dumps(found))
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "hang":
            signal.pause()
        elif fault:
            raise RuntimeError(fault)
    return 0


def start_part(setup: gpu_parts.Setup, part: str, folder: Path, seconds: float, fault: str) -> dict[str, Any]:
    """Run a part in a process of its own, for at most ``seconds`` and its own limit.

    Returns:
        ``status`` ("done", or what went wrong), ``seconds``, ``found``, and without success ``log``.
    """
    limit = min(gpu_parts.PARTS[part].seconds, seconds)
    if limit < 1:
        return {"status": "not run: no time was left", "seconds": 0.0, "found": {}}
    file, log, start = folder / f"{part}.json", folder / f"{part}.log", time.monotonic()
    command = [sys.executable, __file__, str(setup.out), str(setup.photos), "--device", setup.device]
    command += ["--part", part, str(file), *(["--quick"] if setup.quick else [])]
    environment = os.environ | {
        "GPU_CHECK_FAULT": fault,
        "PYTHONPATH": import_path(),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"ended after its limit of {limit:.0f} s"
        finally:
            end_group(process)
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):  # it has found nothing, or was ended while it wrote
        found = {}
    result = {"status": status, "seconds": round(time.monotonic() - start, 1), "found": found}
    if status != "done":
        result["log"] = log.read_text(errors="replace")[-LOG_TAIL:]
    return result


def import_path() -> str:
    """The package of this checkout comes first, whether or not it is installed."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a part and all that it has started."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_results(out: Path, results: dict[str, dict[str, Any]]) -> None:
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = "\n".join(describe(part, result) for part, result in results.items())
    (out / "results.txt").write_text(text + "\n")


def describe(part: str, result: dict[str, Any]) -> str:
    """A part as text: its title, a line for each thing that it found, and its output if it failed."""
    title = f"{part}: {result['status']}, {result['seconds']} s ({gpu_parts.PARTS[part].title})"
    lines = []
    for key, value in result["found"].items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], str) else [value]
        lines += [f"  {key}: {row}" for row in rows]
    log = [f"  | {line}" for line in result.get("log", "").splitlines()]
    return "\n".join([title, *lines, *log])


if __name__ == "__main__":
    sys.exit(main())
