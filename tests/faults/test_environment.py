"""Whole runs on systems that lack what decoding processes need: it is said once, and no photo is blamed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import names_below, results_in, run_undisturbed, wait_for, write_photo

from carvana_batch.decode.worker_pool import SOCKET_FOLDER_PREFIX

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "2")


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


def warnings_in(printed):
    return [line for line in printed.splitlines() if line.startswith("Warning: ")]


def test_long_tmpdir_makes_no_difference(zygote, here, expected, count_faults):
    """The path of a socket has at most 107 bytes."""
    long = here.parent / ("x" * 90)
    long.mkdir()
    finished = zygote.run(here, *PREDICT, setup={"environment": {"TMPDIR": str(long)}}, tidy=True)
    assert (finished.code, finished.stderr, warnings_in(finished.stdout)) == (0, "", [])
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
        assert (finished.code, finished.stderr) == (0, "")
        (warning,) = warnings_in(finished.stdout)
        assert warning.startswith("Warning: too many files are open; allow more of them (ulimit -n)")
        assert results_in(here / "out") == expected
    count_faults("the system lacks what decoding processes need", 1)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 8, 12, 16])
def test_few_processes_are_said_once(here, expected, count_faults, limit):
    """Threads count as processes. Root is exempt; another user has no other ones."""
    other_user = [f"--reuid={54300 + limit}", "--regid=54300", "--clear-groups"]
    read_all = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    become = ["prlimit", f"--nproc={limit}", "setpriv", *other_user, *read_all]
    if subprocess.run([*become, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to become another user")
    process = run_command(here, become)
    reason = "no more processes or threads may be started; allow more of them (ulimit -u"
    if process.returncode:
        assert limit < 4
        assert process.returncode == 1
        assert process.stderr.startswith(f"Error: {reason}")
        assert process.stderr.count("\n") == 1
    else:
        assert process.stderr == ""
        (warning,) = warnings_in(process.stdout)
        assert warning.startswith(f"Warning: {reason}")
        assert results_in(here / "out") == expected
    count_faults("the system lacks what decoding processes need", 1)


def run_command(here, prepare):
    """Run PREDICT by a command that runs its arguments."""
    return subprocess.run(
        [*prepare, sys.executable, "-m", "carvana_batch", *PREDICT],
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
    assert (process.returncode, process.stderr) == (0, "")
    (warning,) = warnings_in(process.stdout)
    assert warning.startswith(f"Warning: {REASONS[fault]}")
    assert results_in(here / "out") == expected
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
