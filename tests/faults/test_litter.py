"""What killed runs leave is removed by the next run, and only that."""

import os
import shutil

import pytest
from helpers import leave_temporary_file, names_below

from carvana_batch.files import TEMPORARY_PREFIX, temporary_prefix

PREDICT = ("predict", "photo.jpg", "mask.png", "--precision", "fp32", "--workers", "0", "--overwrite")


@pytest.mark.slow
def test_folder_of_a_killed_single_mask_goes_with_the_next(zygote, drawn, tmp_path, count_faults):
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy2(drawn / "images" / "car0.jpg", here / "photo.jpg")
    assert zygote.run(here, *PREDICT).code == 0
    expected = (here / "mask.png").read_bytes()
    left = 0
    for number in range(1, 200, 4):
        fault = {"folder": ".", "number": number, "how": "kill"}
        if zygote.run(here, *PREDICT, fault=fault).code == 0:
            break
        left += any(name.startswith(TEMPORARY_PREFIX) for name in names_below(here))
    assert left > 5
    assert zygote.run(here, *PREDICT).code == 0
    assert names_below(here) == ["mask.png", "photo.jpg"]
    assert (here / "mask.png").read_bytes() == expected
    count_faults("a killed run leaves temporary files", left)


def test_files_left_under_the_number_of_a_living_process(zygote, here, count_faults):
    """In containers, each run may have the number of the killed one; here, those of two other processes."""
    assert zygote.run(here, "predict", "images", "out", "--workers", "0").code == 0
    left = leave_temporary_file(here / "out" / "car0.png")
    number = left.name.removeprefix(temporary_prefix()).partition("-")[0]
    for process in (os.getpid(), 1):
        old = left.with_name(left.name.replace(f"-{number}-", f"-{process}-"))
        shutil.copy2(left, old)
        os.utime(old, (1e9, 1e9))  # long before any process of today has begun
    left.unlink()
    assert zygote.run(here, "predict", "images", "out", "--workers", "0").code == 0
    assert [name for name in names_below(here / "out") if name.endswith(".tmp")] == []
    count_faults("a killed run leaves temporary files", 2)
