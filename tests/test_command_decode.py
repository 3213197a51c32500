import subprocess
import sys

import pytest
from click.testing import CliRunner
from helpers import names_below, write_mask

from carvana_batch.commands import group
from carvana_batch.errors import UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def test_round_trip(here):
    write_mask(here / "out" / "a_01.png", [[1, 0, 1]])
    write_mask(here / "out" / "b" / "c.png", [[0, 0, 0]])
    assert run("submit", "--size", "3x1", "-o", "one.csv").exit_code == 0
    result = run("decode", "one.csv", "masks", "--size", "3X1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "2 decoded (1 of them empty), 0 failed -> masks\n"
    assert run("submit", "masks", "--size", "3x1", "-o", "two.csv").exit_code == 0
    assert (here / "two.csv").read_bytes() == (here / "one.csv").read_bytes()
    assert run("score", "masks", "--gt", "out").exit_code == 0


def test_assumed_size_is_printed(here):
    (here / "s.csv").write_text("img,rle_mask\na.jpg,1918 1\n")
    result = run("decode", "s.csv", "out")
    assert (result.exit_code, result.stdout) == (0, "1 decoded, 0 failed -> out\n")
    assert result.stderr == "Assumed 1918x1280 pixels, the competition's size; --size changes it.\n"
    result = run("decode", "s.csv", "out", "--size", "1918x1280", "--overwrite", "--rle-order", "columns")
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_last_row_without_line_end_is_pointed_out(here):
    """A file that is cut between two runs looks like a complete one otherwise."""
    (here / "s.csv").write_text("img,rle_mask\na.jpg,1 1\nb.jpg,1 1 3 1\n")
    assert run("decode", "s.csv", "out", "--size", "3x2").stderr == ""
    whole = (here / "s.csv").read_text()
    (here / "s.csv").write_text(whole[: whole.index(" 3 1")])
    result = run("decode", "s.csv", "out", "--size", "3x2", "--overwrite")
    expected = "Warning: s.csv does not end with a line end: its last row, that of b.jpg, may be cut short."
    assert (result.exit_code, result.stderr.splitlines()) == (0, [expected])
    assert expected in run("score", "s.csv", "--gt", "out").stderr.splitlines()


def test_only_empty_rows_are_an_error(here):
    (here / "s.csv").write_text("img,rle_mask\na.jpg,\nb.jpg,\n")
    result = run("decode", "s.csv", "out", "--size", "3x2")
    assert (result.exit_code, result.stdout) == (3, "2 decoded (2 of them empty), 0 failed -> out\n")
    assert result.stderr == "Error: none of the 2 rows has a car: all are empty.\n"


def test_at_most_ten_bad_rows_are_named(here):
    rows = "".join(f"{number}.jpg,4 {number}\n" for number in range(14))
    (here / "s.csv").write_text(f"img,rle_mask\n{rows}[red]\x1b.jpg,1 1\n../x.jpg,1 1\n")
    result = run("decode", "s.csv", "out", "--size", "3x2")
    assert result.exit_code == 3
    assert result.stdout == "4 decoded, 12 failed -> out\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "failed: s.csv, line 2: 0.jpg: Pair 1 (4 0) has no length."
    assert lines[1] == "failed: s.csv, line 6: 4.jpg: Pair 1 (4 4) ends beyond the image of 3x2 = 6 pixels."
    assert len(lines) == 11
    assert lines[-1] == "failed: 2 more"
    (here / "s.csv").write_text("img,rle_mask\n[red]\x1b/.jpg,1 1\n")
    result = run("decode", "s.csv", "out", "--size", "3x2")
    assert (
        result.stderr == "failed: s.csv, line 2: [red]\\x1b/.jpg: the name has a part without characters.\n"
    )
    assert result.stdout == "0 decoded, 1 failed -> out\n"


def test_existing_masks_need_overwrite(here):
    (here / "s.csv").write_text("img,rle_mask\na.jpg,1 1\n")
    assert run("decode", "s.csv", "out", "--size", "2x1").exit_code == 0
    result = run("decode", "s.csv", "out", "--size", "2x1")
    assert isinstance(result.exception, UsageError)
    assert "--overwrite" in str(result.exception)
    options = ("--overwrite", "--mask-bits", "8", "--workers", "1")
    assert run("decode", "s.csv", "out", "--size", "2x1", *options).exit_code == 0


@pytest.mark.parametrize("size", ["any", "full", "1918", "0x5", ""])
@pytest.mark.usefixtures("here")
def test_invalid_sizes_are_refused(size):
    result = run("decode", "s.csv", "out", "--size", size)
    assert result.exit_code == 2
    assert "--size" in result.stderr


def test_output_to_a_pipe(here):
    (here / "s.csv").write_text("img,rle_mask\na.jpg,1 1\nb.jpg,9 9\n")
    command = [sys.executable, "-W", "error", "-m", "carvana_batch", "decode", "s.csv", "out", "--size=2x1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    assert result.stdout == "1 decoded, 1 failed -> out\n"
    assert result.stderr.splitlines() == [
        "failed: s.csv, line 3: b.jpg: Pair 1 (9 9) ends beyond the image of 2x1 = 2 pixels."
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: out holds masks of the same names.")
    assert names_below(here) == ["out", "s.csv"]
