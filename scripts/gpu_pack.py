#!/usr/bin/env python
"""Pack photos, masks and Python packages for a machine that can fetch nothing itself.

    scripts/gpu_pack.py OUT data/train data/val --take val=60
    scripts/gpu_pack.py OUT --wheels

Writes OUT/part-1.tar, OUT/part-2.tar ... of at most --megabytes each. Photos are the original files, masks
PNG files of one bit; each folder keeps its name. `tar -xf part-1.tar -C TARGET` unpacks a part. With
--wheels, the packages that carvana-batch needs beside torch, numpy and scipy are put into OUT/wheels, for
64-bit Linux and the Python given. OUT should be a folder that git ignores, such as build/gpu. See
docs/gpu.md.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from carvana_batch.decode.photo import decode_image
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.masks.png import encode_mask
from carvana_batch.training.pairs import Pair, find_pairs

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

PACKAGES = (
    "click",
    "rich",
    "markdown-it-py",
    "mdurl",
    "Pygments",
    "pillow",
    "tifffile",
    "imagecodecs",
    "joblib",
    "safetensors",
    "psutil",
    "filelock",
    "tomli-w",
    "simplejpeg",
    "Jinja2",
    "MarkupSafe",
)
"""Those of setup.cfg and what they need, but for the largest, which a machine with a card has."""

PLATFORMS = (
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)

MEMBER_BYTES = 2 * tarfile.BLOCKSIZE
"""Of the header of a member, and for filling up its last block."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder")
    parser.add_argument("data", type=Path, metavar="DATA", nargs="*", help="folders as in train")
    parser.add_argument(
        "--take", action="append", default=[], metavar="NAME=N", help="only N photos of a folder"
    )
    parser.add_argument("--megabytes", type=float, default=60, help="most of a part  [default: 60]")
    parser.add_argument("--wheels", action="store_true", help="fetch Python packages")
    parser.add_argument("--python", default="3.12", help="for which Python  [default: 3.12]")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        limits = {name: int(number) for name, number in (text.split("=") for text in arguments.take)}
        members = (
            member
            for folder in arguments.data
            for pair in choose(find_pairs(folder), limits.get(folder.name))
            for member in pack(pair, folder.name)
        )
        if arguments.data:
            write_parts(members, arguments.out, int(arguments.megabytes * 1e6))
        if arguments.wheels:
            fetch_wheels(arguments.out / "wheels", arguments.python)
    except (CarvanaBatchError, ValueError, subprocess.CalledProcessError) as error:
        parser.error(str(error))


def choose(pairs: list[Pair], number: int | None) -> list[Pair]:
    """So many of the pairs, evenly over all of them."""
    return pairs if number is None else pairs[:: max(1, len(pairs) // number)][:number]


def pack(pair: Pair, folder: str) -> Iterator[tuple[str, bytes]]:
    """The name and content of a photo and its mask.

    Raises:
        UsageError: the mask has pixels that are neither car nor background.
        ImageError: one of them cannot be read.
    """
    mask = pair.read_mask(decode_image(pair.image).layout).mask
    if mask.ignored is not None:
        raise UsageError(f"{pair.mask}: ignored pixels do not fit into a mask of one bit")
    yield f"{folder}/images/{pair.id}{pair.image.suffix}", pair.image.read_bytes()
    yield f"{folder}/masks/{pair.id}_mask.png", encode_mask(mask)


def write_parts(members: Iterator[tuple[str, bytes]], out: Path, most: int) -> None:
    """Write tar files of at most so many bytes; a photo and its mask may be in different ones.

    Raises:
        UsageError: there are some already, or a photo is larger than that.
    """
    if list(out.glob("part-*.tar")):
        raise UsageError(f"{out} holds parts already; remove them, or choose another folder")
    number = 0
    for number, part in enumerate(divide(members, most - tarfile.RECORDSIZE), start=1):
        path = out / f"part-{number}.tar"
        with tarfile.open(path, "w") as file:
            for name, content in part:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        print(f"{path}: {len(part):,} files, {path.stat().st_size / 1e6:.1f} MB", flush=True)


def divide(members: Iterator[tuple[str, bytes]], most: int) -> Iterator[list[tuple[str, bytes]]]:
    """Divide members into parts of at most so many bytes."""
    part: list[tuple[str, bytes]] = []
    size = 0
    for name, content in members:
        needed = MEMBER_BYTES + len(content)
        if needed > most:
            raise UsageError(f"{name}: has {len(content):,} bytes, more than a part may have")
        if size + needed > most:
            yield part
            part, size = [], 0
        part.append((name, content))
        size += needed
    if part:
        yield part


def fetch_wheels(folder: Path, python: str) -> None:
    """Fetch the packages in the versions of constraints.txt."""
    versions = dict(re.findall(r"^([^=#\s]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    versions = {name.lower().replace("_", "-"): version for name, version in versions.items()}
    wanted = [f"{name}=={versions[name.lower()]}" for name in PACKAGES]
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python, *platforms, "--dest", str(folder)]
    subprocess.run([*command, *wanted], check=True)
    total = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
