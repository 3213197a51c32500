"""How long a program waits for its first mask, relative to the import of torch.

    python scripts/bench_startup.py [--rounds 7] [--model auto]

Processes are started in turn: one imports torch; one imports carvana_batch, loads a model and masks a photo;
one is the command line with that photo. Of each, the shortest time counts, so that other work on the machine
matters less. The photo is drawn, and has the size of the competition's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from carvana_batch.demo import draw_photo

PHOTO = (1918, 1280)

IMPORT = """
import time; start = time.perf_counter()
import torch
torch_done = time.perf_counter()
print("[%f]" % (torch_done - start))
"""

FIRST_MASK = """
import sys, time; start = time.perf_counter()
import torch
torch_done = time.perf_counter()
from carvana_batch import Masker
imported = time.perf_counter()
masker = Masker(sys.argv[2])
loaded = time.perf_counter()
masker.mask(sys.argv[1])
first = time.perf_counter()
masker.mask(sys.argv[1])
second = time.perf_counter()
print([torch_done - start, imported - torch_done, loaded - imported, first - loaded, second - first])
"""

COMMAND = """
import sys, time; start = time.perf_counter()
from carvana_batch.commands import group
words = ["predict", sys.argv[1], sys.argv[3], "--model", sys.argv[2], "--overwrite", "--quiet"]
group(words, standalone_mode=False)
print("[%f]" % (time.perf_counter() - start))
"""

STEPS = ("import torch", "import Masker", "Masker()", "first mask", "second mask")


def measure(code: str, *arguments: str) -> list[float]:
    """The seconds that a fresh process prints."""
    output = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    seconds: list[float] = json.loads(output.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo, mask = Path(folder, "car.jpg"), Path(folder, "car.png")
        Image.fromarray(draw_photo(0, 5, PHOTO)[0]).save(photo)
        imports, masks, commands = [], [], []
        for _ in range(options.rounds + 1):  # the first one fills the caches of the disk
            imports.append(measure(IMPORT)[0])
            masks.append(measure(FIRST_MASK, str(photo), options.model))
            commands.append(measure(COMMAND, str(photo), options.model, str(mask))[0])
    torch_alone = min(imports[1:])
    until_first = min(sum(steps[:4]) for steps in masks[1:])
    print(f"import torch                   {torch_alone:.2f} s")
    for index, step in enumerate(STEPS):
        print(f"  {step:<28} {min(steps[index] for steps in masks[1:]):.2f} s")
    print(
        f"until the first mask           {until_first:.2f} s, {until_first / torch_alone:.2f} times as long"
    )
    command = min(commands[1:])
    print(f"carvana-batch predict, a photo {command:.2f} s, {command / torch_alone:.2f} times as long")


if __name__ == "__main__":
    main()
