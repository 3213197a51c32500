"""Whole runs on systems that lack what decoding processes need: it is said once, and no photo is blamed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import names_below, results_in, run_undisturbed, wait_for, write_pairs, write_photo

from carvana_batch.decode.worker_pool import SOCKET_FOLDER_PREFIX
from carvana_batch.network.checkpoints import load_model

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "2")

SIZES = ("--size", "64x32", "--batch", "2", "--val-fraction", "0.4", "--epochs", "2")
TRAIN = ("train", "data", "run", *SIZES, "--precision", "fp32", "--workers", "1")


@pytest.fixture(autouse=True)
def time_limit():
    """Kill the tests if one of them hangs."""
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def expected(zygote, tmp_path_factory):
    """What an undisturbed run makes of the photos of ``here``."""
    folder = tmp_path_factory.mktemp("expected") / "here"
    make_photos(folder)
    return results_in(run_undisturbed(zygote, folder, *PREDICT))


@pytest.fixture
def here():
    """A folder with six small photos, which every user can read and write, with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name) / "here"
        make_photos(folder)
        for path in (Path(name), folder):
            path.chmod(0o777)
        yield folder


def make_photos(folder):
    for number in range(6):
        write_photo(folder / "images" / f"{number}.jpg", seed=number, size=(150, 100))


def test_long_tmpdir_makes_no_difference(zygote, here, expected, count_faults):
    """The path of a socket has at most 107 bytes."""
    long = here.parent / ("x" * 90)
    long.mkdir()
    finished = zygote.run(here, *PREDICT, setup={"environment": {"TMPDIR": str(long)}}, tidy=True)
    assert (finished.code, finished.stderr) == (0, "")
    assert results_in(here / "out") == expected
    assert names_below(long) == []
    count_faults("the system lacks what decoding processes need", 1)


@pytest.mark.parametrize("limit", [6, 8, 10, 12, 14, 16, 18, 20, 28, 32])
def test_few_open_files_are_said_once(zygote, here, expected, count_faults, limit):
    finished = zygote.run(here, *PREDICT, setup={"limits": {"RLIMIT_NOFILE": limit}})
    if limit < 12 and finished.code:  # not even the main process can open a photo and write a mask
        assert finished.code in (1, 2)
        assert finished.stderr.startswith("Error: ")
        assert "files" in finished.stderr
        assert finished.stderr.count("\n") == 1
    else:
        assert finished.code == 0
        (warning,) = finished.stderr.splitlines()
        assert warning.startswith("Warning: too many files are open; allow more of them (ulimit -n)")
        assert results_in(here / "out") == expected
    count_faults("the system lacks what decoding processes need", 1)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 8, 12, 16])
def test_few_processes_are_said_once(here, expected, count_faults, limit):
    """Threads count as processes. Root is exempt; another user has no other ones."""
    process = run_command(here, as_user_with_processes(54300 + limit, limit))
    reason = "no more processes or threads may be started; allow more of them (ulimit -u"
    if process.returncode:
        assert limit < 4
        assert process.returncode == 1
        assert process.stderr.startswith(f"Error: {reason}")
        assert process.stderr.count("\n") == 1
    else:
        (warning,) = process.stderr.splitlines()
        assert warning.startswith(f"Warning: {reason}")
        assert results_in(here / "out") == expected
    count_faults("the system lacks what decoding processes need", 1)


def as_user_with_processes(user, limit):
    """A command that runs its arguments as another user, who may start few processes."""
    other_user = [f"--reuid={user}", "--regid=54300", "--clear-groups"]
    read_all = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    become = ["prlimit", f"--nproc={limit}", "setpriv", *other_user, *read_all]
    if subprocess.run([*become, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to become another user")
    return become


def run_command(here, prepare, arguments=PREDICT):
    """Run carvana-batch by a command that runs its arguments."""
    return subprocess.run(
        [*prepare, sys.executable, "-m", "carvana_batch", *arguments],
        cwd=here,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


MOUNTS = {
    "read-only /dev/shm": "mount -t tmpfs -o ro tmpfs /dev/shm",
    "no /dev/shm": """
        mkdir dev && mount -t tmpfs tmpfs dev
        for name in null zero random urandom; do touch dev/$name; mount --bind /dev/$name dev/$name; done
        mount --rbind dev /dev
    """,
    "all read-only but OUT": """
        mkdir out && mount --bind out out
        mount --bind / / && mount -o remount,bind,ro / && cd "$PWD"
    """,
}
REASONS = {
    "read-only /dev/shm": "shared memory (/dev/shm), in which processes wait for each other, cannot be used"
    " (Read-only file system)",
    "no /dev/shm": "shared memory (/dev/shm), in which processes wait for each other, cannot be used"
    " (No such file or directory)",
    "all read-only but OUT": "processes cannot make sockets in a temporary folder",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", MOUNTS)
def test_mounts_that_are_missing_or_read_only(here, expected, count_faults, fault):
    unshare = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    process = run_command(here, [*unshare, f'set -e; {MOUNTS[fault]}\nexec "$@"', "sh"])
    assert process.returncode == 0
    (warning,) = process.stderr.splitlines()
    assert warning.startswith(f"Warning: {REASONS[fault]}")
    assert results_in(here / "out") == expected
    count_faults("the system lacks what decoding processes need", 1)


@pytest.fixture
def pairs(here):
    """The folder ``here``, with pairs to train on in ``data``."""
    write_pairs(here / "data")
    return here


@pytest.fixture(scope="module")
def trained(zygote, tmp_path_factory):
    """Digest of the weights of a run of TRAIN that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    write_pairs(folder / "data")
    finished = zygote.run(folder, *TRAIN, "--workers", "0")
    assert (finished.code, finished.stderr) == (0, "")
    return load_model(folder / "run").digest


def test_training_leaves_no_sockets_and_says_nothing(zygote, pairs, trained, count_faults):
    long = pairs.parent / ("x" * 90)
    long.mkdir()
    for temporary in (pairs.parent, long):
        shutil.rmtree(pairs / "run", ignore_errors=True)
        setup = {"environment": {"TMPDIR": str(temporary)}}
        finished = zygote.run(pairs, *TRAIN, setup=setup, tidy=True)
        assert (finished.code, finished.stderr) == (0, "")
        assert load_model(pairs / "run").digest == trained
        assert socket_folders(temporary) == []
    count_faults("the system lacks what decoding processes need", 1)


@pytest.mark.parametrize("limit", [6, 8, 10, 12, 16, 20, 24])
def test_few_open_files_in_training(zygote, pairs, trained, count_faults, limit):
    finished = zygote.run(pairs, *TRAIN, setup={"limits": {"RLIMIT_NOFILE": limit}})
    if limit < 12 and finished.code:
        assert finished.code in (1, 2)
        assert finished.stderr.startswith("Error: ")
        assert re.search("(?i)too many (open )?files", finished.stderr)
        assert finished.stderr.count("\n") == 1
    else:
        assert finished.code == 0
        (warning,) = finished.stderr.splitlines()
        assert warning.startswith("Warning: too many files are open; allow more of them (ulimit -n)")
        assert load_model(pairs / "run").digest == trained
    count_faults("the system lacks what decoding processes need", 1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", MOUNTS)
def test_mounts_that_are_missing_or_read_only_in_training(pairs, trained, count_faults, fault):
    unshare = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    mounts = MOUNTS[fault].replace("out", "run")
    process = run_command(pairs, [*unshare, f'set -e; {mounts}\nexec "$@"', "sh"], TRAIN)
    if fault == "all read-only but OUT":  # torch makes no optimizer without a temporary folder
        reason = "There is no temporary folder that is open to writing. Set TMPDIR to one."
        assert (process.returncode, process.stderr) == (2, f"Error: {reason}\n")
    else:
        assert process.returncode == 0
        (warning,) = process.stderr.splitlines()
        assert warning.startswith(f"Warning: {REASONS[fault]}")
        assert load_model(pairs / "run").digest == trained
    count_faults("the system lacks what decoding processes need", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", [8, *(pytest.param(limit, marks=pytest.mark.long) for limit in (1, 2, 3, 4, 6))]
)
def test_few_processes_in_training(pairs, trained, count_faults, limit):
    become = as_user_with_processes(54400 + limit, limit)
    process = run_command(pairs, become, TRAIN)
    printed = "".join(
        line
        for line in process.stderr.splitlines(True)
        if "atplotlib" not in line  # of another user's home
    )
    reason = "no more processes or threads may be started; allow more of them (ulimit -u"
    if process.returncode:
        assert limit < 6
        assert process.returncode == 1
        assert printed.startswith(f"Error: {reason}")
        assert printed.count("\n") == 1
    else:
        (warning,) = printed.splitlines()
        assert warning.startswith(f"Warning: {reason}")
        assert load_model(pairs / "run").digest == trained
    count_faults("the system lacks what decoding processes need", 1)


@pytest.mark.slow
def test_full_shared_memory_in_training(pairs, trained, count_faults):
    unshare = ["unshare", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    process = run_command(pairs, [*unshare, f'set -e; {mount}\nexec "$@"', "sh"], TRAIN)
    assert process.returncode == 0
    (warning,) = process.stderr.splitlines()
    assert warning.startswith("Warning: shared memory (/dev/shm) is full")
    assert load_model(pairs / "run").digest == trained
    count_faults("the system lacks what decoding processes need", 1)


def socket_folders(folder):
    return [path for path in folder.iterdir() if path.name.startswith(SOCKET_FOLDER_PREFIX)]


def test_sockets_of_a_killed_run_go_with_the_next(zygote, here, count_faults):
    temporary = here.parent / "t"
    temporary.mkdir()
    setup = {"environment": {"TMPDIR": str(temporary)}}
    process = zygote.start(here, *PREDICT, setup=setup)
    wait_for(lambda: list((here / "out").glob("*.png")))
    process.send_to_all(signal.SIGKILL)
    process.wait()
    (left,) = socket_folders(temporary)
    assert any(path.is_socket() for path in left.rglob("listener-*"))
    wait_for(lambda: zygote.run(here, *PREDICT, "--overwrite", setup=setup, tidy=True).code == 0)
    assert names_below(temporary) == []
    count_faults("a killed run leaves temporary files", 1)
