"""Photos and masks through pipes, several photos as arguments, and lines that fit a terminal."""

import io
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import Terminal, names_below, wait_for, write_photo
from PIL import Image

from carvana_batch.commands import group, lines
from carvana_batch.errors import UsageError

FAST = ("--precision", "fp32", "--workers", "0")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with two photos in ``in``."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b")):
        write_photo(tmp_path / "in" / f"{name}.jpg", seed=number)
    return tmp_path


def predict(*arguments, **options):
    return CliRunner().invoke(group, ["predict", *FAST, *map(str, arguments)], **options)


@pytest.fixture
def mask(here):
    """The bytes of the mask of ``in/a.jpg``, as a run into a folder makes it."""
    assert predict("in", "expected", "--quiet").exit_code == 0
    return (here / "expected" / "a.png").read_bytes()


def test_a_mask_goes_to_the_standard_output_and_nothing_else(here, mask):
    before = names_below(here)
    result = predict("in/a.jpg", "-")
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes == mask
    assert "1 masked, 0 failed -> standard output\n" in result.stderr
    assert "csv" not in result.stderr  # no report is written
    assert names_below(here) == before


def test_a_photo_comes_from_the_standard_input(here, mask):
    photo = (here / "in" / "a.jpg").read_bytes()
    assert predict("-", "-", "--quiet", input=photo).stdout_bytes == mask
    assert predict("-", "car.png", input=photo).exit_code == 0
    assert (here / "car.png").read_bytes() == mask
    assert predict("-", "-", "--dry-run", input=photo).stdout == ""
    assert "to do" in predict("-", "-", "--dry-run", input=photo).stderr


def test_no_temporary_files_stay(here, mask, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert predict("-", "-", input=(here / "in" / "a.jpg").read_bytes()).stdout_bytes == mask
    assert predict("-", "-", input=b"none").exit_code == 3
    assert list(folder.iterdir()) == []


def test_a_photo_that_fails_prints_nothing_to_the_standard_output(here):
    result = predict("-", "-", input=b"no photo")
    assert (result.exit_code, result.stdout_bytes) == (3, b"")
    assert "failed: standard input (decode): is not an image" in result.stderr
    assert predict("-", "car.png", input=b"no photo").exit_code == 3
    assert not (here / "car.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in", "-"), "takes the mask of one photo"),
        (("in/a.jpg", "in/b.jpg", "-o", "-"), "takes the mask of one photo"),
        (("-", "out"), "OUT has to be the file of the mask"),
        (("-", "in"), "OUT has to be the file of the mask"),
        (("-", "out.jpg"), "name the mask out.png"),
        (("in/a.jpg", "-", "--save", "overlay"), "need a folder as OUT"),
        (("in/a.jpg", "-", "--json"), "Leave one out"),
        (("-", "-"), "The standard input is empty"),
        (("-", "-", "--pixel-limit", "1"), "more than 67,108,872 bytes"),
        (("in/a.jpg", "in/b.jpg", "out"), "Several photos need -o"),
        (("in", "in/b.jpg", "-o", "out"), "in is a folder"),
        (("in/a.jpg", "none.jpg", "-o", "out"), "There is no file or folder none.jpg"),
        (("-o", "out"), "Give IN and OUT"),
        (("in", "in/b.jpg", "-o", "out", "--files-from", "list"), "Give IN and OUT"),
    ],
)
def test_what_does_not_go_together_is_refused(here, arguments, message):
    data = b"\0" * (2**26 + 9) if "--pixel-limit" in arguments else b""
    result = predict(*arguments, input=data)
    assert isinstance(result.exception, UsageError), result.output
    assert message in str(result.exception)
    assert (names_below(here), names_below(here / "in")) == (["in"], ["a.jpg", "b.jpg"])


def test_several_photos(here):
    (here / "c.jpg").symlink_to("in/a.jpg")
    assert predict("in/b.jpg", "c.jpg", "in/a.jpg", "--out", "out").exit_code == 0
    masks = {path.name: path.read_bytes() for path in (here / "out").glob("*.png")}
    assert predict("in", "folder").exit_code == 0
    expected = {name: (here / "folder" / name).read_bytes() for name in ("a.png", "b.png")}
    assert masks == {**expected, "c.png": expected["a.png"]}
    assert "0 done already" not in predict("in/a.jpg", "in/b.jpg", "-o", "out", "--dry-run").output


def test_photos_of_the_same_name_are_refused(here):
    write_photo(here / "other" / "a.jpg")
    result = predict("in/a.jpg", "other/a.jpg", "-o", "out")
    assert isinstance(result.exception, UsageError)
    assert "in/a.jpg" in str(result.exception)
    assert "other/a.jpg" in str(result.exception)


def test_one_source_with_option(here):
    assert predict("in", "-o", "out").exit_code == 0
    assert predict("in/a.jpg", "-o", "car.png").exit_code == 0
    assert (here / "car.png").read_bytes() == (here / "out" / "a.png").read_bytes()
    (here / "list").write_text("in/b.jpg\n")
    assert predict("--files-from", "list", "-o", "listed").exit_code == 0
    assert (here / "listed" / "in" / "b.png").exists()


def test_a_second_photo_is_not_taken_for_the_place_of_a_mask(here):
    """``predict *.png`` with two photos, but without OUT."""
    for number in (0, 1):
        write_photo(here / f"{number}.png", seed=number)
    kept = (here / "1.png").read_bytes()
    for options in ((), ("--overwrite",)):
        result = predict("0.png", "1.png", *options)
        assert "if it is another photo" in str(result.exception).lower()
    assert (here / "1.png").read_bytes() == kept
    Image.fromarray(np.zeros((4, 4), bool)).save(here / "1.png")
    assert predict("0.png", "1.png", "--overwrite").exit_code == 0


def test_a_mask_is_not_printed_to_a_terminal(here, zygote):
    with Terminal() as terminal:
        process = zygote.start(here, "predict", "in/a.jpg", "-", *FAST, tty=terminal.name)
        wait_for(lambda: (terminal.printed, process.poll())[1], lambda code: code == 2)
        assert "would go to the terminal" in terminal.printed
    with Terminal() as terminal:
        process = zygote.start(here, "predict", "-", "car.png", *FAST, tty=terminal.name)
        wait_for(lambda: (terminal.printed, process.poll())[1], lambda code: code == 2)
        assert "the standard input is a terminal" in " ".join(terminal.printed.split())


def test_a_closed_pipe_ends_the_command_without_a_trace(here):
    program = [sys.executable, "-m", "carvana_batch", "predict", "in/a.jpg", "-", *FAST]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here)
    process.stdout.close()
    with process:
        printed = process.stderr.read()
    assert process.returncode == 141
    assert "1 masked, 0 failed" in printed
    assert "Traceback" not in printed


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_fit_a_terminal_and_stay_whole_elsewhere(monkeypatch):
    text = "word " * 25 + "a/path/that-is-long\n  " + "x " * 60
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert lines.fit(text) == text
    monkeypatch.setattr(sys, "stdout", FakeTerminal())
    first, second, third = lines.fit(text).split("\n")
    assert max(map(len, (first, second))) <= 80
    assert f"{first} {second}\n{third}" == text
    assert lines.fit("name   " + "word " * 20, indent="       ").split("\n")[1].startswith("       word")
    path = "/" + "y" * 100
    assert lines.fit(f"a {path} b") == f"a\n{path}\nb"


@pytest.mark.parametrize(
    "command", ["`carvana-batch predict - car.png < car.jpg`", "pip install 'carvana-batch[onnx]'"]
)
def test_no_command_is_broken_by_a_terminal(monkeypatch, command):
    monkeypatch.setattr(sys, "stdout", FakeTerminal())
    for before in range(1, 90):
        text = f"{'.' * before} needs this: {command} and no more of these words"
        broken = lines.fit(text)
        assert command in broken
        assert broken.replace("\n", " ") == text
        assert max(map(len, broken.split("\n"))) <= max(80, before)


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("predict", "in", "out", "--precision", "an unknown format"), {}),
        (("predict", "in", "out", "--workers", "-1"), {}),
        (("verify", "no-such-folder"), {"CARVANA_BATCH_VERIFY_THE_WORKERS_OF_THE_COMMAND": "1"}),
    ],
)
def test_errors_of_options_and_variables_fit_a_terminal(here, arguments, variables):
    with Terminal() as terminal:
        screen = os.open(terminal.name, os.O_WRONLY | os.O_NOCTTY)
        subprocess.run(
            [sys.executable, "-m", "carvana_batch", *arguments],
            stderr=screen,
            cwd=here,
            env={**os.environ, **variables},
        )
        os.close(screen)
        printed = terminal.printed.splitlines()
    assert any("Error" in line for line in printed)
    assert max(map(len, printed)) <= 80


def test_commands_can_be_copied_from_a_terminal(monkeypatch):
    command = [
        "carvana-batch",
        "predict",
        "my photos",
        *(f"--option-{number}" for number in range(20)),
        "y" * 90,
    ]
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert lines.command_line(command) == f"  {shlex.join(command)}"
    monkeypatch.setattr(sys, "stdout", FakeTerminal())
    printed = lines.command_line(command)
    assert max(len(line) for line in printed.split("\n")[:-1]) <= 80
    result = subprocess.run(["sh", "-c", f"printf '%s\\n' {printed}"], capture_output=True, text=True)
    assert result.stdout.splitlines() == command
