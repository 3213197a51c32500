"""The command `carvana-batch train`: config file, resuming, signals, several processes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from helpers import Terminal, Zygote, wait_for, write_pairs
from PIL import Image

from carvana_batch.commands.train import command
from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.network.checkpoints import load_model
from carvana_batch.training.settings import PRESETS, AugmentationLimits, TrainingSettings, read_settings

RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = ["--size", "64x32", "--batch", "2", "--precision", "fp32", "--workers", "0", "--val-fraction", "0.4"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def test_every_default_is_in_the_help_text() -> None:
    context = click.Context(command)
    records = [parameter.get_help_record(context) for parameter in command.params]
    texts = {record[0].split()[0]: record[1] for record in records if record}
    for settings in (TrainingSettings(), AugmentationLimits()):
        for name, value in vars(settings).items():
            if name == "augmentation" or value is None or value == ():
                continue
            assert f"[default: {value}" in texts[f"--{name.replace('_', '-')}"]
    assert "[default: full]" in texts["--size"]


def test_a_run_prints_its_scores_and_the_next_command(tmp_path: Path, data: Path) -> None:
    result = invoke(data, tmp_path / "run", *SMALL, "--epochs", 2)
    assert result.exit_code == 0
    best = json.loads(load_model(tmp_path / "run").notes["val"])
    assert f"Dice                {best['dice']:.4f}" in result.output
    assert f"carvana-batch predict in/ out/ --model {tmp_path / 'run'}" in result.output
    assert best["photos"] == 2


def test_without_matplotlib_no_curves_are_named(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curves.png").write_bytes(b"of an earlier run")
    result = invoke(data, tmp_path / "run", *SMALL, "--epochs", 1)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert f"weights: {tmp_path / 'run' / 'best.safetensors'}; pictures: worst.jpg beside it" in lines
    (line,) = (line for line in lines if "curves" in line)
    assert re.fullmatch(
        r"no curves\.png was drawn: .* matplotlib: pip install 'carvana-batch\[train\]'", line
    )


def test_with_matplotlib_the_curves_are_named(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'train'")
    lines = invoke(data, tmp_path / "run", *SMALL, "--epochs", 1).output.splitlines()
    weights = tmp_path / "run" / "best.safetensors"
    assert f"weights: {weights}; pictures: worst.jpg, curves.png beside it" in lines
    assert (tmp_path / "run" / "curves.png").exists()


def test_masks_without_any_car_are_a_usage_error(tmp_path: Path, data: Path, zygote: Zygote) -> None:
    for path in (data / "masks").iterdir():
        Image.new("1", (128, 64)).save(path)
    for options in ((), ("--dry-run",)):
        finished = zygote.run(tmp_path, "train", data, "run", *SMALL, *options)
        assert finished.code == 2
        assert finished.stderr.startswith("Error: No mask to train on shows a car")
        assert not (tmp_path / "run").exists()


def test_options_take_precedence_over_the_config_file(tmp_path: Path, data: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('size = "64x32"\nbatch = 2\nepochs = 1\nlr = 0.5\nval-fraction = 0.4\nshift = 0.0\n')
    result = invoke(data, tmp_path / "run", "--config", config, "--lr", 0.001, "--workers", 0)
    assert result.exit_code == 0
    kept = (tmp_path / "run" / "config.toml").read_text()
    for line in ('size = "64x32"', "epochs = 1.0", "lr = 0.001", "shift = 0.0", 'model = "segunet-s"'):
        assert line in kept.splitlines()
    again = invoke(data, tmp_path / "again", "--config", tmp_path / "run" / "config.toml", "--workers", 0)
    assert again.exit_code == 0
    assert (tmp_path / "again" / "config.toml").read_text() == kept
    assert log_of(tmp_path / "again") == log_of(tmp_path / "run")


def limits_of(run: Path) -> dict[str, Any]:
    values = read_settings(run / "config.toml")
    return {name: value for name, value in values.items() if name in vars(AugmentationLimits())}


@pytest.mark.parametrize(
    ("file", "arguments", "preset", "other"),
    [
        ("", [], "studio", {}),
        ("", ["--augment", "photos"], "photos", {}),
        ("", ["--augment", "photos", "--noise", "3"], "photos", {"noise": 3.0}),
        ('augment = "photos"\nblur = 1.5\n', [], "photos", {"blur": 1.5}),
        ('augment = "photos"\nblur = 1.5\n', ["--blur", "2"], "photos", {"blur": 2.0}),
        ("blur = 1.5\nshift = 0.3\n", [], "studio", {"blur": 1.5, "shift": 0.3}),
        ("blur = 1.5\nshift = 0.3\n", ["--augment", "photos", "--jpeg", "0"], "photos", {"jpeg": 0.0}),
        ('augment = "photos"\n', ["--augment", "studio"], "studio", {}),
    ],
)
def test_a_preset_sets_limits_that_nothing_else_sets(
    tmp_path: Path, data: Path, file: str, arguments: list[str], preset: str, other: dict[str, float]
) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text(file + "epochs = 0.1\n")
    run = tmp_path / "run"
    assert invoke(data, run, *SMALL, "--config", config, *arguments).exit_code == 0
    assert limits_of(run) == vars(PRESETS[preset]) | other
    assert read_settings(run / "config.toml")["epochs"] == 0.1


def test_a_run_with_the_strongest_augmentation_resumes(tmp_path: Path, data: Path) -> None:
    write_pairs(tmp_path / "backgrounds")
    options = [*SMALL, "--epochs", 1, "--augment", "photos", "--backgrounds", tmp_path / "backgrounds/images"]
    assert invoke(data, tmp_path / "run", *options).exit_code == 0
    assert invoke(data, tmp_path / "run", *options, "--resume").exit_code == 0
    assert invoke(data, tmp_path / "run", "--resume", "--workers", 0).exit_code == 0


def test_a_run_of_an_older_version_resumes(tmp_path: Path, data: Path) -> None:
    """Its config.toml has no value for the newer settings."""
    assert invoke(data, tmp_path / "run", *SMALL, "--epochs", 1).exit_code == 0
    config = tmp_path / "run" / "config.toml"
    newer = ("noise", "jpeg", "zoom-out", "degrade-share", "background-share")
    lines = config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(newer)]
    assert len(kept) == len(lines) - len(newer)
    config.write_text("".join(kept))
    assert invoke(data, tmp_path / "run", "--resume", "--workers", 0).exit_code == 0
    with pytest.raises(UsageError, match=r"noise: 0\.0 before, 5\.0 now"):
        invoke(data, tmp_path / "run", "--resume", "--workers", 0, "--noise", 5)


def test_a_run_among_the_backgrounds_is_refused(tmp_path: Path, data: Path) -> None:
    folder = write_pairs(tmp_path / "backgrounds") / "images"
    with pytest.raises(UsageError, match="lies among the photos of --backgrounds"):
        invoke(data, folder / "run", *SMALL, "--backgrounds", folder)
    assert not (folder / "run").exists()


def test_a_folder_of_backgrounds_without_photos_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="--backgrounds: No photos"):
        invoke(data, tmp_path / "run", *SMALL, "--backgrounds", tmp_path / "empty")


@pytest.mark.parametrize(
    "line",
    [
        "batch = 3.5",
        'augment = "street"',
        'loss = "mse"',
        "crop-share = 2",
        'size = "big"',
        "also = 3",
        "size = [240, 160]",
        "lr = nan",
        "epochs = inf",
        "[lr]",
        "epochs = true",
        'model = "vgg"',
    ],
)
def test_invalid_config_values_are_refused(tmp_path: Path, data: Path, line: str) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text(line + "\n")
    with pytest.raises(UsageError, match="recipe.toml: " + re.findall("[a-z-]+", line)[0]):
        invoke(data, tmp_path / "run", "--config", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--resume"], "holds no run"),
        (["--resume", "--dry-run"], "Leave one out"),
        (["--val", "x", "--val-cars", "y"], "Leave one out"),
        (["--init", "nothing"], "no model 'nothing'"),
        (["--device", "cuda:9"], "--device cuda:9"),
    ],
)
def test_unusable_options_are_refused(tmp_path: Path, data: Path, arguments: list[str], reason: str) -> None:
    with pytest.raises((CarvanaBatchError, click.UsageError), match=reason):
        invoke(data, tmp_path / "run", *SMALL, *arguments)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_an_interrupted_run_prints_how_to_resume(tmp_path: Path, data: Path, zygote: Zygote) -> None:
    arguments = ["train", data, "run", *SMALL, "--epochs", "3"]
    (tmp_path / "whole").mkdir()
    assert zygote.run(tmp_path / "whole", *arguments).code == 0

    (tmp_path / "broken").mkdir()
    log = tmp_path / "broken" / "run" / "log.jsonl"
    with Terminal() as terminal:
        process = zygote.start(tmp_path / "broken", *arguments, tty=terminal.name)
        wait_for(lambda: terminal.printed and log.exists() and log.read_text())
        terminal.press(b"\x03")
        wait_for(lambda: (terminal.printed, process.poll())[1], lambda code: code == 130)
        printed = terminal.printed
    assert printed.count("Stopping") == 1
    same = shlex.join(["carvana-batch", *map(str, arguments), "--resume"])
    assert f"To go on:\n  {same}" in printed.replace("\r\n", "\n").replace(" \\\n      ", " ")
    assert "Traceback" not in printed
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l") >= 0

    finished = zygote.run(tmp_path / "broken", "train", data, "run", "--resume", "--workers", "0")
    assert finished.code == 0, finished.stderr
    assert log_of(tmp_path / "broken" / "run") == log_of(tmp_path / "whole" / "run")


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path, data: Path, zygote: Zygote) -> None:
    arguments = ["train", data, "run", *SMALL, "--epochs", "4"]
    (tmp_path / "whole").mkdir()
    assert zygote.run(tmp_path / "whole", *arguments).code == 0
    (tmp_path / "broken").mkdir()
    process = zygote.start(tmp_path / "broken", *arguments)
    wait_for((tmp_path / "broken" / "run" / "checkpoint.pt").exists)
    process.send(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    finished = zygote.run(tmp_path / "broken", "train", data, "run", "--resume", "--workers", "0")
    assert finished.code == 0, finished.stderr
    assert log_of(tmp_path / "broken" / "run") == log_of(tmp_path / "whole" / "run")
    digests = {load_model(tmp_path / name / "run").digest for name in ("whole", "broken")}
    assert len(digests) == 1


@pytest.mark.slow
def test_a_run_killed_in_a_file_system_call_resumes(tmp_path: Path, data: Path, zygote: Zygote) -> None:
    """Only every 250th call, because all of them would take many minutes."""
    arguments = ["train", data, "run", *SMALL, "--epochs", "1"]
    (tmp_path / "whole").mkdir()
    assert zygote.run(tmp_path / "whole", *arguments).code == 0
    here = tmp_path / "broken"
    for number in itertools.count(1, 250):
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        killed = zygote.run(here, *arguments, fault={"folder": ".", "number": number, "how": "kill"})
        if killed.code == 0:
            break
        assert killed.code == -signal.SIGKILL
        resume = ["--resume"] if (here / "run" / "checkpoint.pt").exists() else []
        finished = zygote.run(here, *arguments, *resume)
        assert finished.code == 0, (number, finished.stderr)
        assert log_of(here / "run") == log_of(tmp_path / "whole" / "run"), number
        assert not list((here / "run").glob(".carvana-batch-*")), number
    assert number > 300


@pytest.mark.slow
def test_two_processes_train_like_two_passes(tmp_path: Path, data: Path) -> None:
    """With gloo on a CPU. Passes and processes divide a step alike; batch norm sees each part separately."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*SMALL, "--epochs", "4", "--warm-up", "0", "--lr", "1e-3", "--batch", "4"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "carvana_batch", "train", data, two, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("best validation") == 1
    assert "2 processes" in finished.stdout
    invoke(data, one, *options, "--accumulate", "2")
    losses = [[line["loss"] for line in log_of(run) if "loss" in line] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert max(losses[0]) > 1.05 * min(losses[0])


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_are_settings(recipe: Path, tmp_path: Path) -> None:
    """Without photos, a valid recipe fails only when they are looked for."""
    with pytest.raises(UsageError, match="nowhere"):
        invoke(tmp_path / "nowhere", tmp_path / "run", "--config", recipe)
