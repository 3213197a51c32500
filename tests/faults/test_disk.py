"""Disks that are full or read-only: real ones, where the tests have the right to mount them."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import names_in, results_in, run_undisturbed, write_photo

from carvana_batch.masks.read import read_mask

PREDICT = ("predict", "images", "out", "--precision", "fp32")
PHOTOS = 60


@pytest.fixture
def many_photos(tmp_path, drawn):
    """A folder with sixty small photos in ``images``."""
    folder = tmp_path / "here"
    (folder / "images").mkdir(parents=True)
    for number in range(PHOTOS):
        shutil.copy2(drawn / "images" / f"car{number % 4}.jpg", folder / "images" / f"{number:02}.jpg")
    return folder


@pytest.fixture
def mount():
    """``mount(folder, options)`` mounts a disk in memory; a second call for a folder changes its options."""
    mounted = []

    def mount_memory(folder, options):
        remount = folder in mounted
        command = ["mount", "-t", "tmpfs", "-o", "remount," * remount + options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a disk")
        if not remount:
            mounted.append(folder)

    yield mount_memory
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_run_resumes_after_a_full_disk(zygote, many_photos, mount, workers, count_faults):
    expected = results_in(run_undisturbed(zygote, many_photos, *PREDICT))
    (many_photos / "out").mkdir()
    mount(many_photos / "out", "size=160k")
    finished = zygote.run(many_photos, *PREDICT, "--workers", workers)
    assert finished.code == 1
    assert re.fullmatch(
        r"Error: No space left for out/\S+\. Free some space and run the same command again\.\n",
        finished.stderr,
    )
    masks = list((many_photos / "out").glob("[!.]*.png"))
    assert 5 < len(masks) < PHOTOS
    assert all((read_mask(path).width, read_mask(path).height) == (96, 64) for path in masks)
    assert zygote.run(many_photos, *PREDICT, "--workers", workers).code == 1  # still full
    mount(many_photos / "out", "size=10m")
    finished = zygote.run(many_photos, *PREDICT, "--workers", workers)
    assert (finished.code, finished.stderr) == (0, "")
    assert results_in(many_photos / "out") == expected
    assert not [name for name in names_in(many_photos / "out") if name.endswith(".tmp")]
    count_faults("the disk is full", 2)


def test_read_only_disk_is_refused_before_loading_a_model(zygote, many_photos, mount, count_faults):
    (many_photos / "disk").mkdir()
    mount(many_photos / "disk", "size=1m")
    (many_photos / "disk" / "there").mkdir()
    mount(many_photos / "disk", "ro")
    for out in ("disk", "disk/out", "disk/there"):
        finished = zygote.run(many_photos, "predict", "images", out, "--model", "no such model")
        assert (finished.code, finished.stdout) == (2, "")
        assert re.fullmatch(
            rf"Error: Cannot write into {out}: .* not open to writing\. .*\n", finished.stderr
        )
    count_faults("the out folder is read-only or its parent is missing", 3)


def test_missing_parent_is_refused_before_loading_a_model(zygote, many_photos, count_faults):
    for out in ("no/out", "no/such/out"):
        finished = zygote.run(many_photos, "predict", "images", out, "--model", "no such model")
        assert (finished.code, finished.stdout) == (2, "")
        assert re.fullmatch(
            rf"Error: Cannot write into {out}: there is no folder {os.path.dirname(out)}\. .*\n",  # noqa: PTH120
            finished.stderr,
        )
    assert not (many_photos / "no").exists()
    count_faults("the out folder is read-only or its parent is missing", 2)


@pytest.mark.slow
def test_small_dev_shm_gives_one_warning_and_no_failure(zygote, tmp_path, count_faults):
    here = tmp_path / "here"
    for number in range(8):
        write_photo(here / "images" / f"{number}.jpg", seed=number, size=(300, 200))
    expected = results_in(run_undisturbed(zygote, here, *PREDICT))
    prepare = 'mount -t tmpfs -o size=150k tmpfs /dev/shm && exec "$@"'
    command = [sys.executable, "-m", "carvana_batch", *PREDICT, "--workers", "2"]
    unshare = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, prepare, "sh", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    process = subprocess.Popen(
        [*unshare, prepare, "sh", *command],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, printed
    assert printed.count("shared memory (/dev/shm) is full") == 1
    assert results_in(here / "out") == expected
    count_faults("/dev/shm is too small", 1)
