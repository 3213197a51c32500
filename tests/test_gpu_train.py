"""scripts/gpu_train.py and gpu_pack.py on a CPU, with small photos."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import write_pairs
from PIL import Image

from carvana_batch.network.checkpoints import load_model

SCRIPTS = Path(__file__).parents[1] / "scripts"


def start(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


@pytest.mark.long
@pytest.mark.slow
def test_training_ends_in_time_with_weights(tmp_path):
    data, val = write_pairs(tmp_path / "data", cars=5), write_pairs(tmp_path / "val", cars=4)
    for path in [*val.glob("images/*"), *val.glob("masks/*")]:
        path.rename(path.with_name(f"other-{path.name}"))
    ended = start(
        "gpu_train.py",
        *(tmp_path / "out", data, "--val", val, "--val-photos", 4, "--minutes", 0.3, "--batch", 2),
        *("--device", "cpu", "--size", "128x64", "--precision", "fp32"),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    weights = load_model(tmp_path / "out" / "best.safetensors")
    notes = weights.notes
    assert json.loads(notes["val"])["photos"] == 4
    assert 0 < int(notes["step"].split()[0]) < 1000
    assert notes["init"].startswith("segunet-s")
    assert "minutes are over" in ended.stdout


@pytest.fixture
def gpu_train():
    spec = importlib.util.spec_from_file_location("gpu_train", SCRIPTS / "gpu_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_memory_and_compiling_that_fail_lead_to_another_try(tmp_path, gpu_train, monkeypatch):
    val, tries = write_pairs(tmp_path / "val"), []

    def train(_arguments, run, options, _seconds):
        batch, compiled = int(options[1]), "--compile" in options
        tries.append((batch, compiled))
        if batch > 2:
            return 1, "Error: Out of memory on cuda at step 1."
        if compiled:
            return 1, "BackendCompilerFailed"
        run.mkdir()
        (run / "best.safetensors").write_bytes(b"weights")
        return 0, ""

    monkeypatch.setattr(gpu_train, "train", train)
    arguments = [str(tmp_path / "out"), "data", "--val", str(val), "--batch", "8", "--compile"]
    monkeypatch.setattr(sys, "argv", ["gpu_train.py", *arguments])
    assert gpu_train.main() == 0
    assert tries == [(8, True), (4, True), (2, True), (2, False)]
    assert (tmp_path / "out" / "best.safetensors").read_bytes() == b"weights"


def test_only_weights_of_a_step_are_kept(tmp_path, gpu_train):
    run, target = tmp_path / "run", tmp_path / "best.safetensors"
    run.mkdir()
    (run / "log.jsonl").write_text("")
    (run / "last.safetensors").write_bytes(b"initial ones")
    assert not gpu_train.keep_weights(run, target)
    (run / "log.jsonl").write_text("{}\n")
    assert gpu_train.keep_weights(run, target)
    (run / "best.safetensors").write_bytes(b"best")
    assert gpu_train.keep_weights(run, target)
    assert target.read_bytes() == b"best"


def test_parts_hold_all_photos_and_masks(tmp_path):
    data = write_pairs(tmp_path / "train", cars=5)
    out = tmp_path / "out"
    ended = start("gpu_pack.py", out, data, "--take", "train=6", "--megabytes", "0.045")
    assert ended.returncode == 0, ended.stderr
    parts = sorted(out.iterdir())
    assert len(parts) > 1
    assert max(path.stat().st_size for path in parts) <= 45_000
    for path in parts:
        with tarfile.open(path) as file:
            file.extractall(tmp_path / "unpacked", filter="data")
    images = sorted((tmp_path / "unpacked" / "train" / "images").iterdir())
    assert len(images) == 6
    for image in images:
        assert image.read_bytes() == (data / "images" / image.name).read_bytes()
        packed = Image.open(tmp_path / "unpacked" / "train" / "masks" / f"{image.stem}_mask.png")
        assert packed.mode == "1"
        true = Image.open(data / "masks" / f"{image.stem}_mask.png")
        np.testing.assert_array_equal(np.asarray(packed), np.asarray(true) > 0)
    again = start("gpu_pack.py", out, data)
    assert again.returncode == 2
    assert "holds parts already" in again.stderr
