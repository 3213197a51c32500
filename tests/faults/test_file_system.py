"""Runs in which one file-system call fails, for each of the calls."""

import itertools
import json
import shutil
import signal

import pytest
from helpers import names_in, results_in, run_undisturbed

from carvana_batch.masks.read import read_mask

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "0")
ALL_KINDS = (*PREDICT, "--save", "overlay", "--rle", "out/rows.csv")
SIZE = (96, 64)

FAULTS = {
    "kill": {"how": "kill"},
    "input/output error": {"how": "EIO"},
    "no space for this call": {"how": "ENOSPC"},
    "no space from this call on": {"how": "ENOSPC", "lasting": True},
    "no permission": {"how": "EACCES"},
}


def check_message(finished, how, number):
    """Check that a killed process printed nothing, and any other succeeded or printed one error message."""
    if how == "kill":
        assert (finished.code, finished.stderr) == (-signal.SIGKILL, ""), number
    elif finished.code != 0:
        assert finished.stderr.startswith("Error: "), (number, finished.stderr)
        assert finished.stderr.count("\n") == 1, (number, finished.stderr)
        assert finished.code in (1, 2), (number, finished)
        assert finished.code == 1 or how != "ENOSPC", (number, finished)
        assert ("No space left" in finished.stderr) == (how == "ENOSPC"), (number, finished.stderr)


def check_complete(out, expected, number):
    """Check that each file that has its final name is complete."""
    assert results_in(out).items() <= expected.items(), number
    for mask in out.rglob("[!.]*.png"):
        assert (read_mask(mask).width, read_mask(mask).height) == SIZE, number
    for name in (out / "run.json", out / ".carvana-batch" / "settings.json"):
        if name.exists():
            assert json.loads(name.read_text()), number


def fail_each_call(zygote, here, fault, first=1, step=1):
    """Run once for each of the calls ``first``, ``first + step`` ... with a fault in it, and then resume.

    Returns:
        The number of faults.
    """
    undisturbed = run_undisturbed(zygote, here, *ALL_KINDS)
    expected, names = results_in(undisturbed), names_in(undisturbed)
    assert {"car0.png", "_overlay/car1.jpg", "report.csv", "rows.csv"} <= expected.keys()
    marker = here / "fault-injected"
    for number in itertools.count(first, step):
        shutil.rmtree(here / "out", ignore_errors=True)
        marker.unlink(missing_ok=True)
        finished = zygote.run(
            here, *ALL_KINDS, fault={"folder": "out", "number": number, "marker": str(marker), **fault}
        )
        if not marker.exists():
            assert finished.code == 0, finished
            return (number - first) // step
        check_message(finished, fault["how"], number)
        check_complete(here / "out", expected, number)
        resumed = zygote.run(here, *ALL_KINDS)
        assert resumed.code == 0, (number, resumed)
        assert results_in(here / "out") == expected, number
        assert names_in(here / "out") == names, number
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize(("first", "fault"), list(enumerate(FAULTS.values(), start=1)), ids=FAULTS)
def test_run_recovers_from_a_fault_in_every_twentieth_call(zygote, here, fault, first, count_faults):
    faults = fail_each_call(zygote, here, fault, first, 20)
    assert faults > 5
    count_faults("a file-system call of predict fails", faults)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_run_recovers_from_a_fault_in_any_call(zygote, here, fault, count_faults):
    faults = fail_each_call(zygote, here, fault)
    assert faults > 50
    count_faults("a file-system call of predict fails", faults)


def fail_each_call_while_overwriting(zygote, here, first, step):
    """Like :func:`fail_each_call`, but kill runs with ``--overwrite``."""
    (here / "images" / "car1.jpg").unlink()
    expected = results_in(run_undisturbed(zygote, here, *PREDICT))
    assert zygote.run(here, *PREDICT, "--threshold", "0.1", "--save", "overlay").code == 0
    (here / "out" / "mine.png").write_bytes(b"not of a run")
    earlier = results_in(here / "out")
    shutil.copytree(here / "out", here / "earlier")
    expected["mine.png"] = b"not of a run"
    for number in itertools.count(first, step):
        shutil.rmtree(here / "out")
        shutil.copytree(here / "earlier", here / "out")
        killed = zygote.run(
            here, *PREDICT, "--overwrite", fault={"folder": "out", "number": number, "how": "kill"}
        )
        if killed.code == 0:
            assert results_in(here / "out") == expected
            return (number - first) // step
        assert results_in(here / "out").items() <= expected.items() | earlier.items(), number
        resumed = zygote.run(here, *PREDICT, "--overwrite")
        assert resumed.code == 0, (number, resumed)
        assert results_in(here / "out") == expected, number
    raise AssertionError


def fail_each_call_while_overwriting_one(zygote, here, first, step):
    """Kill runs that mask one of two photos again, which has changed; run the same command afterwards."""
    command = (*ALL_KINDS, "--overwrite", "--limit", "1")
    assert zygote.run(here, *ALL_KINDS).code == 0
    shutil.copytree(here / "out", here / "earlier")
    shutil.copy2(here / "images" / "car1.jpg", here / "images" / "car0.jpg")
    assert zygote.run(here, *command).code == 0
    expected, names = results_in(here / "out"), names_in(here / "out")
    earlier = results_in(here / "earlier")
    assert expected["car0.png"] == expected["car1.png"] == earlier["car1.png"] != earlier["car0.png"]
    journal = ".carvana-batch/journal-1-of-1.jsonl"
    kept_line = next(line for line in (here / "earlier" / journal).read_text().split("\n") if "car1" in line)
    for number in itertools.count(first, step):
        shutil.rmtree(here / "out")
        shutil.copytree(here / "earlier", here / "out")
        killed = zygote.run(here, *command, fault={"folder": "out", "number": number, "how": "kill"})
        if killed.code == 0:
            return (number - first) // step
        left = results_in(here / "out")
        assert left.items() <= expected.items() | earlier.items(), number
        assert left["car1.png"] == earlier["car1.png"], number
        assert kept_line in (here / "out" / journal).read_text().split("\n"), number
        again = zygote.run(here, *command)
        assert again.code == 0, (number, again)
        assert results_in(here / "out") == expected, number
        assert names_in(here / "out") == names, number
    raise AssertionError


@pytest.mark.slow
def test_overwriting_one_mask_recovers_from_every_twelfth_kill(zygote, here, count_faults):
    faults = fail_each_call_while_overwriting_one(zygote, here, 2, 12)
    assert faults > 3
    count_faults("a file-system call of predict --overwrite fails", faults)


@pytest.mark.long
@pytest.mark.slow
def test_overwriting_one_mask_recovers_from_any_kill(zygote, here, count_faults):
    faults = fail_each_call_while_overwriting_one(zygote, here, 1, 1)
    assert faults > 30
    count_faults("a file-system call of predict --overwrite fails", faults)


@pytest.mark.slow
def test_overwrite_recovers_from_a_kill_in_every_twelfth_call(zygote, here, count_faults):
    faults = fail_each_call_while_overwriting(zygote, here, 1, 12)
    assert faults > 3
    count_faults("a file-system call of predict --overwrite fails", faults)


@pytest.mark.long
@pytest.mark.slow
def test_overwrite_recovers_from_a_kill_in_any_call(zygote, here, count_faults):
    faults = fail_each_call_while_overwriting(zygote, here, 1, 1)
    assert faults > 30
    count_faults("a file-system call of predict --overwrite fails", faults)
