#!/usr/bin/env python
"""Train on a machine with a card, in at most eight minutes, whatever happens.

    scripts/gpu_train.py OUT DATA --val VAL
    scripts/gpu_train.py OUT DATA --val VAL --model segunet-m

Runs carvana-batch train with recipes/segunet-s-gpu.toml: photos and masks stay on the card, and the learning
rate falls until the time is up; then the averaged weights are measured on some photos of VAL and written as
OUT/best.safetensors. If memory does not suffice, the batch is halved; if compiling fails, it goes on without.
Should the time run out before the weights were measured, OUT/best.safetensors are the last ones that were
saved. Further options are those of train. See docs/gpu.md.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.training.pairs import find_pairs

ROOT = Path(__file__).parents[1]

RECIPE = ROOT / "recipes" / "segunet-s-gpu.toml"

MINUTES = 8.0

RESERVE, LEAST_RESERVE = 0.12, 8.0
"""Part of the time, and seconds, that are left for measuring the weights and drawing after the last step."""

GRACE_SECONDS = 20
"""How long training may take at most to save after SIGTERM."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder for runs and weights")
    parser.add_argument("data", type=Path, metavar="DATA", help="as in train")
    parser.add_argument("--val", type=Path, required=True, help="as in train")
    parser.add_argument("--val-photos", type=int, default=60, help="of VAL to measure on  [default: 60]")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"in all  [default: {MINUTES:g}]")
    parser.add_argument("--model", default="segunet-s", help="segunet-s goes on from its bundled weights")
    parser.add_argument("--batch", type=int, default=8, help="photos a step  [default: 8]")
    parser.add_argument("--compile", action="store_true", help="compile the network, if that pays in time")
    parser.add_argument("--device", default="cuda", help="as in train  [default: cuda]")
    arguments, more = parser.parse_known_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    try:
        arguments.out.mkdir(parents=True)
        copy_some(arguments.val, arguments.out / "val", arguments.val_photos)
        recipe = RECIPE.read_text(encoding="utf-8")
        if arguments.model != "segunet-s":  # there are no weights of others to begin with
            recipe = recipe.replace('init = "segunet-s"\n', "")
        (arguments.out / "recipe.toml").write_text(recipe, encoding="utf-8")
    except (CarvanaBatchError, FileExistsError) as error:
        parser.error(str(error))
    batch, compiled = arguments.batch, arguments.compile
    while True:
        run = arguments.out / f"{arguments.model}-{batch}{'-compiled' * compiled}"
        left = deadline - time.monotonic()
        options = ["--batch", str(batch), *(["--compile"] if compiled else []), *more]
        code, output = train(arguments, run, options, left)
        if keep_weights(run, arguments.out / "best.safetensors"):
            return 0
        if "Out of memory" in output and batch > 1:
            batch //= 2
        elif compiled and code > 0:
            compiled = False
        else:
            return code or 1


def copy_some(source: Path, target: Path, number: int) -> None:
    """Copy so many photos and masks, evenly over all cars."""
    pairs = find_pairs(source)
    step = max(1, len(pairs) // number)
    for name in ("images", "masks"):
        (target / name).mkdir(parents=True)
    for pair in pairs[::step][:number]:
        if pair.mask is None:
            raise CarvanaBatchError(f"{source}: masks as files are needed, not as run-length rows.")
        shutil.copy(pair.image, target / "images")
        shutil.copy(pair.mask, target / "masks")


def train(arguments: argparse.Namespace, run: Path, options: list[str], seconds: float) -> tuple[int, str]:
    """Train for at most so many seconds.

    Returns:
        The exit code, and what was said.
    """
    command = [sys.executable, "-m", "carvana_batch", "train", str(arguments.data), str(run)]
    command += ["--config", str(arguments.out / "recipe.toml"), "--model", arguments.model]
    command += ["--val", str(arguments.out / "val"), "--device", arguments.device]
    reserve = max(RESERVE * seconds, LEAST_RESERVE)
    command += ["--minutes", f"{max(0.01, (seconds - reserve) / 60):.3f}", *options]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    log = arguments.out / f"{run.name}.log"
    print(f"{run.name}: {seconds / 60:.1f} minutes are left", flush=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path}
        )
        grace = min(GRACE_SECONDS, reserve / 2)
        for number, patience in ((signal.SIGTERM, seconds - grace), (signal.SIGKILL, grace)):
            try:
                process.wait(max(0.5, patience))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        code = process.wait()
    said = log.read_text(errors="replace")
    print(said[-3000:], flush=True)
    return code, said


def keep_weights(run: Path, target: Path) -> bool:
    """Copy the best weights of a run, or else the last ones of at least one step; False without any."""
    for name in ("best", "last"):
        weights = run / f"{name}.safetensors"
        # The first ones that a run writes are those that it starts from.
        if weights.is_file() and (name == "best" or (run / "log.jsonl").stat().st_size):
            shutil.copy(weights, target)
            print(f"{target} holds the {name} weights of {run.name}", flush=True)
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
