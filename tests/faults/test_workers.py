"""Whole runs in which worker processes die or hang while they decode a photo."""

import multiprocessing
import os
import shutil
import signal
import time

import pytest
from helpers import results_in

from carvana_batch.decode import loader
from carvana_batch.inputs.find import find_images
from carvana_batch.options import Options
from carvana_batch.run import run

FAULTS = {"dies": lambda: os.kill(os.getpid(), signal.SIGSEGV), "hangs": lambda: time.sleep(1000)}


@pytest.mark.parametrize("fault", FAULTS)
def test_photos_that_kill_a_worker_fail_and_others_are_masked(
    model, drawn, tmp_path, monkeypatch, fault, count_faults
):
    for number in range(12):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy2(drawn / "images" / f"car{number % 4}.jpg", tmp_path / "in" / f"{number:02}.jpg")
    refs = find_images(tmp_path / "in").refs
    options = Options(precision="fp32", workers=2, decode_timeout=0.5)
    assert run(refs, tmp_path / "undisturbed", model, options).exit_code == 0
    decode_image = loader.decode_image

    def read_or_die(path, **options):
        if path.stem in ("04", "05", "11"):
            FAULTS[fault]()
        return decode_image(path, **options)

    monkeypatch.setattr(loader, "decode_image", read_or_die)
    signal.alarm(100)
    report = run(refs, tmp_path / "out", model, options)
    signal.alarm(0)
    assert (report.exit_code, report.done) == (3, 9)
    assert [(entry.key, entry.stage) for entry in report.failures] == [
        ("04", "decode"),
        ("05", "decode"),
        ("11", "decode"),
    ]
    reasons = {"dies": "the process that decoded it died", "hangs": "was not decoded within 0.5 seconds"}
    assert all(entry.reason.startswith(reasons[fault]) for entry in report.failures)
    assert multiprocessing.active_children() == []
    monkeypatch.undo()
    report = run(refs, tmp_path / "out", model, options)
    assert (report.exit_code, report.already_done, report.done) == (0, 9, 3)
    assert results_in(tmp_path / "out") == results_in(tmp_path / "undisturbed")
    count_faults("a process that decodes dies or hangs over a photo", 3)
