"""The console script: help, imports, and exit codes and messages of errors."""

import os
import pkgutil
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

import carvana_batch
from carvana_batch.commands import COMMANDS, group, main
from carvana_batch.errors import CarvanaBatchError

LONG_NAME = "x" * 300

MODULES = {module.name for module in pkgutil.walk_packages(carvana_batch.__path__, "carvana_batch.")}
MODULES.remove("carvana_batch.__main__")
MODULES.remove("carvana_batch.engines.ray")  # needs an extra; see test_engines_ray.py

TORCH_ROOMS = {"api", "run", "network", "inference", "training", "decode.loader", "decode.workers"}
TORCH_ROOMS |= {"decode.shared_memory", "decode.worker_pool", "engines.local", "drawing"}
TORCH_FREE = {
    name
    for name in MODULES
    if not any(f"{name}.".startswith(f"carvana_batch.{room}.") for room in TORCH_ROOMS)
} | {"carvana_batch.inference.tiles"}
"""Modules that must not import torch: the ground floor, and what help and usage errors need."""


def run_python(code, *arguments, **options):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["--version"]])
def test_help_does_not_import_heavy_packages(arguments):
    code = """
        import sys
        from carvana_batch.commands import main
        try:
            main()
        except SystemExit as end:
            heavy = ("torch", "joblib", "tifffile", "PIL", "imagecodecs", "safetensors", "psutil")
            sys.exit(end.code or [name for name in heavy if name in sys.modules] or 0)
    """
    result = run_python(code, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "carvana-batch" in result.stdout


def test_help_lists_the_commands_and_exit_codes():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "carvana_batch", "-h"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)
    assert "130 or 143 interrupted" in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", ["predict", "submit", "decode", "score", "train", "demo"])
def test_every_option_has_help(name):
    command = group.get_command(None, name)
    assert command.help
    assert [each.name for each in command.params if isinstance(each, click.Option) and not each.help] == []


def test_some_modules_do_not_import_torch():
    """Each is imported in a fork of an interpreter that has imported no torch and nothing of the package."""
    code = """
        import importlib, os, sys
        import click, numpy, PIL.Image, rich.progress, scipy.ndimage
        failed = []
        for name in sys.argv[1:]:
            child = os.fork()
            if child == 0:
                importlib.import_module(name)
                os._exit("torch" in sys.modules)
            if os.waitpid(child, 0)[1]:
                failed.append(name)
        sys.exit(" ".join(failed) or 0)
    """
    assert MODULES >= TORCH_FREE
    result = run_python(code, *sorted(TORCH_FREE))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_module_imports_in_a_fresh_interpreter():
    """Each is imported in a fork of an interpreter that has imported libraries but nothing of the package."""
    code = """
        import importlib, os, sys, torch, numpy
        import click, imagecodecs, jinja2, joblib, PIL.Image, psutil, rich.progress, safetensors.torch
        import scipy.ndimage, tifffile
        failed = []
        for name in sys.argv[1:]:
            child = os.fork()
            if child == 0:
                importlib.import_module(name)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                failed.append(name)
        sys.exit(" ".join(failed) or 0)
    """
    assert len(MODULES) > 30
    result = run_python(code, *sorted(MODULES))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def run_main(monkeypatch, *arguments):
    """Run ``carvana-batch ARGUMENTS``, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["carvana-batch", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0


def all_errors():
    """The base class of the package's errors, and all classes derived from it."""
    found = [CarvanaBatchError]
    for error in found:
        found.extend(error.__subclasses__())
    return found


def test_each_error_has_an_exit_code_and_prints_one_line(monkeypatch, capsys):
    expected = {
        "CarvanaBatchError": 1,
        "UsageError": 2,
        "ImageError": 1,
        "ModelError": 1,
        "OutOfSpaceError": 1,
        "QualityGateError": 4,
        "FolderInUseError": 11,
    }
    codes = {error.__name__: error.exit_code for error in all_errors()}
    assert codes.items() >= expected.items()
    for error in all_errors():

        def fail(*_arguments, error=error, **_options):
            raise error("what went wrong")

        monkeypatch.setattr("carvana_batch.commands.predict_input.find_images", fail)
        assert run_main(monkeypatch, "predict", "in", "out") == error.exit_code
        assert capsys.readouterr() == ("", "Error: what went wrong\n")


def test_usage_errors(monkeypatch, capsys):
    for arguments in (("predict", "--none"), ("none",), ("submit", "out", "more")):
        assert run_main(monkeypatch, *arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Usage: carvana-batch" in printed.err
    assert run_main(monkeypatch, "predict") == 2
    assert capsys.readouterr().err.startswith("Error: Give IN and OUT")


def test_ctrl_c_before_a_run_starts(monkeypatch, capsys):
    def interrupt(*_arguments, **_options):
        signal.raise_signal(signal.SIGINT)  # unlike os.kill, in this thread and at once

    monkeypatch.setattr("carvana_batch.commands.predict_input.find_images", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a job in the background
    assert run_main(monkeypatch, "predict", "in", "out") == 130
    signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "Interrupted."


def test_unexpected_exceptions_are_not_hidden(monkeypatch):
    def fail(*_arguments, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr("carvana_batch.commands.predict_input.find_images", fail)
    monkeypatch.setattr(sys, "argv", ["carvana-batch", "predict", "in", "out"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_exit_codes_of_commands(monkeypatch, zygote, drawn, tmp_path):
    assert run_main(monkeypatch, "--version") == 0
    (tmp_path / "bad.jpg").write_text("text")
    assert zygote.run(tmp_path, "predict", "bad.jpg", "out").code == 3
    quiet = zygote.run(tmp_path, "predict", drawn / "images", "out", "--quiet", "--workers", "3", tidy=True)
    assert (quiet.code, quiet.stdout, quiet.stderr) == (0, "", "")
    assert zygote.run(tmp_path, "predict", drawn / "images", "out", "--tta", "flip").code == 2


def test_names_that_the_output_cannot_encode(tmp_path):
    """The output is not UTF-8, and the dry run does not import torch."""
    name = os.fsdecode("日本".encode() + b"\xff")
    (tmp_path / f"{name}.jpg").touch()
    code = "from carvana_batch.commands import main; main()"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1:strict"}
    result = run_python(code, "predict", str(tmp_path), "out", "--dry-run", env=environment, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert r"out/\u65e5\u672c\udcff.png" in result.stdout


def test_a_closed_pipe_gives_no_stack_trace(tmp_path):
    (tmp_path / "a.jpg").touch()
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "carvana_batch",
        "predict",
        str(tmp_path),
        "out",
        "--dry-run",
    ]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", LONG_NAME, "out"],
        ["score", LONG_NAME, "--gt", "."],
        ["submit", LONG_NAME],
        ["models", "show", LONG_NAME],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_name_too_long_for_the_disk_gives_one_line(tmp_path, arguments):
    result = subprocess.run(
        [sys.executable, "-m", "carvana_batch", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode in (1, 2)
    assert re.fullmatch(r"Error: .*x{300}.*[Nn]ame too long.*\n", result.stderr), result.stderr


def test_the_launcher_of_a_checkout():
    launcher = Path(carvana_batch.__path__[0]).parent / "cli.py"
    result = subprocess.run(
        [sys.executable, launcher, "--version"], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == f"carvana-batch, version {carvana_batch.__version__}\n"
