"""What shells offer after Tab, which they ask of the command line itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from carvana_batch.commands import COMMANDS, completion, group
from carvana_batch.network import BUNDLED_WEIGHTS, NETWORKS
from carvana_batch.network.sources import PICKLED_SUFFIXES

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for name in ("runs/first/best.safetensors", "my.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complete(*words, shell="bash"):
    """(kind, value) of what is offered for the last of the words."""
    environment = {
        "_CARVANA_BATCH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["carvana-batch", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(group, prog_name="carvana-batch", env=environment)
    assert result.exit_code == 0, result.output
    return [tuple(line.split(",", 1)) for line in result.output.splitlines()]


def plain(*values):
    return [("plain", value) for value in values]


def test_names_of_models_are_those_there_are():
    offered = [value for _, value in complete("predict", "--model", "")]
    assert offered == ["auto", *sorted(BUNDLED_WEIGHTS), "my.safetensors"]
    assert tuple(NETWORKS) == completion.NETWORKS
    assert complete("train", "--model", "seg") == plain("segunet-s", "segunet-m", "segunet")
    assert complete("models", "export", "--network", "m") == plain("milesial")


def test_models_on_the_disk():
    assert complete("predict", "--model", "runs/") == plain("runs/first")
    assert complete("models", "show", "m") == plain("my.safetensors")
    assert complete("models", "export", "m") == plain("my.safetensors")
    for suffix in (*PICKLED_SUFFIXES, ".onnx", ".pt2"):
        Path(f"my-own{suffix}").touch()
        assert complete("predict", "--model", f"my-own{suffix}") == plain(f"my-own{suffix}")
        Path(f"my-own{suffix}").unlink()
    assert complete("train", "--init", "runs/f") == plain("runs/first")
    assert complete("predict", "--model", "ru") == [("file", "ru")]  # the shell goes on by itself
    assert complete("predict", "--model", "none/") == [("file", "none/")]


def test_devices(here, monkeypatch):
    for number in (0, 1):
        (here / f"nvidia{number}").touch()
    monkeypatch.setattr(completion, "GPU_DEVICES", str(here / "nvidia[0-9]*"))
    assert complete("predict", "--device", "cu") == plain("cuda", "cuda:0", "cuda:1")
    assert complete("train", "--device", "") == plain("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("pre",), plain("predict")),
        (("help", "mo"), plain("models")),
        (("help", "models", ""), plain("export", "list", "show")),
        (("predict", "--thr"), plain("--threshold")),
        (("predict", "--save", "pa"), plain("panel")),
        (("predict", "in"), [("file", "in")]),
        (("predict", "in", "out", "--background", "b"), [("file", "b")]),
        (("predict", "--files-from", "l"), [("file", "l")]),
        (("train", "--also", "o"), [("dir", "o")]),
        (("submit", "o"), [("file", "o")]),
    ],
)
def test_other_values(words, offered):
    assert complete(*words) == offered


def test_all_commands_are_offered():
    assert [value for _, value in complete("")] == list(COMMANDS)


def test_torch_is_not_imported():
    code = """
import sys
from carvana_batch.commands import main
try:
    main()
except SystemExit as end:
    sys.exit(end.code or [name for name in ("torch", "PIL", "scipy") if name in sys.modules] or 0)
"""
    environment = {"_CARVANA_BATCH_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    for words in ("predict --model s", "models show s", "train --model s", "predict --device c"):
        environment["COMP_WORDS"] = f"carvana-batch {words}"
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (result.returncode, result.stderr) == (0, ""), words
        assert result.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_takes_the_script_and_what_is_offered(here):
    program = here / "bin" / "carvana-batch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m carvana_batch "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(_CARVANA_BATCH_COMPLETE=bash_source carvana-batch)"
        COMP_WORDS=(carvana-batch predict --model segunet-s-) COMP_CWORD=3
        _carvana_batch_completion carvana-batch
        echo "${COMPREPLY[@]}"
    """
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    # Outside of an interactive shell, compopt has nothing to set.
    assert result.stdout == "segunet-s-anywhere\n", result.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_for_other_shells(shell):
    environment = {"_CARVANA_BATCH_COMPLETE": f"{shell}_source"}
    result = CliRunner().invoke(group, prog_name="carvana-batch", env=environment)
    assert f"_CARVANA_BATCH_COMPLETE={shell}_complete" in result.output
