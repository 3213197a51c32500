"""What several test modules need: small photos, runs of the command line, what lies in a folder."""

import codecs
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from carvana_batch.demo import draw_photo
from carvana_batch.files import TEMPORARY_PREFIX

TIMEOUT = 60


def write_photo(path, mask_path=None, seed=0, size=(96, 64)):
    """Draw a photo of ``size`` (width, height) and, if asked for, its true mask as the competition has it."""
    photo, mask = draw_photo(seed, 1 + 5 * seed % 16, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path)
    if mask_path is not None:
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        truth = Image.frombytes("P", size, mask.tobytes())
        truth.putpalette([0, 0, 0, 255, 255, 255])
        truth.save(mask_path)


STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera that is held in another way does to an upright picture, by EXIF orientation."""


def store(picture, orientation):
    """An upright Pillow image as a file with this EXIF orientation stores it."""
    return picture.transpose(STORED_AS[orientation]) if orientation in STORED_AS else picture


def with_orientation(picture, orientation):
    """A copy of a Pillow image with the tag, which is saved by ``save(..., exif=copy.getexif())``."""
    copy = picture.copy()
    copy.getexif()[0x0112] = orientation
    return copy


def results_in(out):
    """The files of an out folder that must not depend on how its run went: path below it -> bytes."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    kept = ((path.relative_to(out), path) for path in files)
    return {
        str(name): path.read_bytes()
        for name, path in kept
        if not any(part.startswith(".") for part in name.parts) and name.name != "run.json"
    }


def write_mask(path, rows):
    """A 1-bit mask of rows of 0 and 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8) * 255).convert("1").save(path)


def names_below(folder):
    """Every file and folder directly in ``folder``."""
    return sorted(path.name for path in folder.iterdir())


def names_in(folder):
    """Every file and folder below ``folder``, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@dataclass
class Finished:
    code: int
    stdout: str
    stderr: str


class Process:
    """A process of the command line, started by the zygote."""

    def __init__(self, zygote, pid, stdout, stderr):
        self.zygote, self.pid, self.stdout, self.stderr = zygote, pid, stdout, stderr
        self.code = None

    def poll(self):
        """The exit code, negative for a signal, or None."""
        if self.code is None:
            self.code = self.zygote.order({"poll": self.pid})
        return self.code

    def send(self, number):
        os.kill(self.pid, number)

    def send_to_all(self, number):
        """To its workers as well, as a terminal does, or a batch system."""
        os.killpg(self.pid, number)

    def stop_all(self):
        """Stop it and its workers, and wait for it: a thread in the kernel goes on for a moment."""
        self.send_to_all(signal.SIGSTOP)
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        threads = [file for process in family for file in Path(f"/proc/{process.pid}/task").glob("*/stat")]
        wait_for(lambda: all(file.read_text().rpartition(")")[2].split()[0] == "T" for file in threads))

    def wait(self):
        code = wait_for(self.poll, lambda code: code is not None)
        return Finished(code, self.stdout.read_text(), self.stderr.read_text())


class Zygote:
    def __init__(self, script):
        command = [sys.executable, "-W", "error", str(script)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "", "TERM": "xterm"}
        environment.pop("COLUMNS")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()

    def order(self, order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, folder, *arguments, stdin=os.devnull, tty=None, fault=None, setup=None, tidy=False):
        """Start ``carvana-batch ARGUMENTS`` in a folder; what it prints goes to files beside the folder.

        ``fault``: arguments of ``faulty_files.Faults``, the folder below this one; ``setup``: see zygote.py.
        """
        self._count += 1
        files = {name: Path(f"{folder}-{self._count}.{name}") for name in ("stdout", "stderr")}
        if fault:
            fault = fault | {"folder": str(Path(folder, fault["folder"]))}
        order = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "stdin": str(stdin),
            "tty": tty,
            "fault": fault,
            "setup": setup,
            "tidy": tidy,
            **{name: str(path) for name, path in files.items()},
        }
        return Process(self, self.order(order), **files)

    def run(self, folder, *arguments, **options):
        return self.start(folder, *arguments, **options).wait()


class Terminal:
    """A pseudo-terminal: what a process printed there, and keys to press."""

    def __init__(self, columns=80):
        self.keys, self.screen = os.openpty()
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.name = os.ttyname(self.screen)
        self._bytes = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.keys)
        os.close(self.screen)

    def press(self, key):
        os.write(self.keys, key)

    @property
    def printed(self):
        while select.select([self.keys], [], [], 0)[0]:
            self._bytes += os.read(self.keys, 65536)
        # A character of which not all bytes have come yet is left out.
        return codecs.getincrementaldecoder("utf-8")().decode(self._bytes)


def wait_for(ask, good=bool):
    """What ``ask`` returns as soon as it is ``good``."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        answer = ask()
        if good(answer):
            return answer
        time.sleep(0.01)
    raise TimeoutError(f"still {answer!r} after {TIMEOUT} s")


def write_pairs(folder, cars=3, views=2, size=(128, 64)):
    """images/<id>.jpg with a bright rectangle on a dark ground, and masks/<id>_mask.png."""
    generator = np.random.default_rng(5)
    width, height = size
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for car in range(cars):
        for view in range(views):
            mask = np.zeros((height, width), np.uint8)
            top, left = generator.integers(4, height // 2), generator.integers(4, width // 2)
            mask[top : top + height // 3, left : left + width // 3] = 1
            noise = generator.integers(0, 60, (height, width, 3), np.uint8)
            pixels = np.repeat(mask[:, :, None] * 150, 3, axis=2) + noise
            Image.fromarray(pixels).save(folder / "images" / f"car{car}_{view:02}.jpg", quality=95)
            Image.fromarray(mask).save(folder / "masks" / f"car{car}_{view:02}_mask.png")
    return folder


def is_colour(picture, colour):
    """(H, W) bool: which pixels have the colour."""
    return (np.asarray(picture) == colour).all(axis=2)


def leave_temporary_file(path):
    """What a process leaves that is killed while it writes a file there."""
    code = (
        "import os, pathlib, sys; from carvana_batch.files import atomic_writer\n"
        "with atomic_writer(pathlib.Path(sys.argv[1])): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)
    (left,) = (name for name in path.parent.iterdir() if name.name.startswith(TEMPORARY_PREFIX))
    return left


def run_undisturbed(zygote, folder, *arguments):
    """The out folder of a run that nothing disturbs, in a copy of ``folder``."""
    copy = folder.with_name("undisturbed")
    shutil.copytree(folder, copy)
    finished = zygote.run(copy, *arguments)
    assert finished.code == 0, finished
    return copy / "out"
