"""scripts/gpu_check.py on a CPU: parts give results, and one that crashes or hangs costs no other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


def check(out: Path, *arguments: str) -> tuple[int, dict]:
    command = [sys.executable, str(SCRIPT), str(out), "--device", "cpu", "--quick", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stderr == ""
    results = json.loads((out / "results.json").read_text())
    text = (out / "results.txt").read_text()
    assert all(f"{part}: {result['status']}" in text for part, result in results.items())
    return ended.returncode, results


@pytest.mark.slow
def test_parts_that_crash_hang_or_fail_cost_no_other(tmp_path):
    faults = ["--fault", "company", "crash", "--fault", "waiting", "raise me", "--fault", "memory", "hang"]
    # The part that hangs takes all the time that is left, so nothing is left for the last one.
    parts = ["versions", "company", "waiting", "masks", "memory", "peers"]
    code, results = check(tmp_path / "out", "--only", *parts, *faults, "--minutes", "0.2")
    assert code == 1
    status = {part: result["status"] for part, result in results.items()}
    assert list(status) == parts
    assert status["versions"] == "done"
    assert results["versions"]["found"]["torch"]
    assert status["company"] == "failed with exit code -11"
    assert results["company"]["found"]["fp32"]["the same again"] == 0  # found before the crash
    assert status["waiting"] == "failed with exit code 1"
    assert "RuntimeError: raise me" in results["waiting"]["log"]
    assert status["masks"] == "done" or status["masks"].startswith("ended after its limit")
    assert status["memory"].startswith(("ended after its limit", "not run"))
    assert status["peers"] == "not run: no time was left"


@pytest.mark.long
@pytest.mark.slow
def test_masks_of_the_same_device_do_not_differ(tmp_path):
    code, results = check(tmp_path / "out", "--only", "masks", "profile", "training", "distributed")
    assert code == 0
    assert results["masks"]["found"]["fp32"]["most"] == 0
    assert results["masks"]["found"]["bf16"]["lowest"] > 0.95
    assert (tmp_path / "out" / "trace.json.gz").stat().st_size > 1000
    assert results["training"]["found"]["segunet-s, batches of 2"]["photos/s"] > 0
    alone, grouped = results["distributed"]["found"].values()
    assert alone == pytest.approx(grouped)
