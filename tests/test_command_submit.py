import gzip
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import names_below, write_mask

from carvana_batch.commands import group
from carvana_batch.records import ImageError, UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*arguments):
    return CliRunner().invoke(group, ["submit", *arguments])


def test_as_it_is_after_predict(here):
    write_mask(here / "out" / "a.png", np.ones((1280, 1918)))
    write_mask(here / "out" / "b.png", np.zeros((1280, 1918)))
    result = submit()
    assert result.exit_code == 0, result.output
    data = (here / "submission.csv.gz").read_bytes()
    assert gzip.decompress(data).decode() == "img,rle_mask\na.jpg,1 2455040\nb.jpg,\n"
    assert result.stdout.splitlines() == [
        "file         submission.csv.gz",
        "rows         2 (the competition asks for 100,064)",
        "empty masks  1",
        f"size         {len(data)} bytes",
        f"sha256       {hashlib.sha256(data).hexdigest()}",
        "",
        "To hand it in:",
        "  kaggle competitions submit -c carvana-image-masking-challenge"
        ' -f submission.csv.gz -m "carvana-batch"',
    ]
    assert result.stderr == ""


def test_another_folder_file_and_size(here):
    write_mask(here / "masks" / "a.png", [[1, 0]])
    result = submit("masks", "-o", "my file.csv", "--size", "2X1", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert (here / "my file.csv").read_text() == "img,rle_mask\na.jpg,1 1\n"
    assert "rows         1\n" in result.stdout
    assert "-f 'my file.csv' -m" in result.stdout


def test_any_size(here):
    write_mask(here / "out" / "a.png", [[1, 0]])
    write_mask(here / "out" / "b.png", [[1, 0, 1]])
    result = submit("--size", "any", "-o", "s.zip")
    assert result.exit_code == 0, result.output
    assert "rows         2\n" in result.stdout


@pytest.mark.parametrize("size", ["1918", "1918x", "0x5", "-1x5", "5x5x5", "axb", "", "1918 x 1280"])
@pytest.mark.usefixtures("here")
def test_a_size_that_is_none(size):
    result = submit("--size", size)
    assert result.exit_code == 2
    assert "--size" in result.stderr


def test_errors_are_those_of_the_program(here):
    result = submit()
    assert isinstance(result.exception, UsageError)
    assert "out does not exist" in str(result.exception)
    write_mask(here / "out" / "a.png", [[1, 0]])
    result = submit()
    assert isinstance(result.exception, ImageError)
    assert "--size" in str(result.exception)
    assert isinstance(submit("-o", "s.txt").exception, UsageError)
    assert names_below(here) == ["out"]


def test_names_are_printed_literally(here):
    write_mask(here / "out" / "a.png", [[1, 0]])
    result = submit("--size", "any", "-o", "[red]\x1b[31m.csv")
    assert result.exit_code == 0, result.output
    assert "[red]\\x1b[31m.csv" in result.stdout
    assert "\x1b" not in result.output


def test_in_a_pipe(here):
    write_mask(here / "out" / "a.png", [[1, 0]])
    command = [sys.executable, "-W", "error", "-m", "carvana_batch", "submit"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: out/a.png is 2x1 pixels, not 1918x1280.")
    assert names_below(here) == ["out"]
    result = subprocess.run([*command, "--size=2x1"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "rows         1\n" in result.stdout
    assert "\x1b" not in result.stdout
