import gzip
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import names_below, write_mask
from PIL import Image

from carvana_batch.commands import group
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.options import Choice
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry
from carvana_batch.values import Failure, ImageRef


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*arguments):
    return CliRunner().invoke(group, ["submit", *arguments])


def test_default_options_after_predict(here):
    write_mask(here / "out" / "a.png", np.ones((1280, 1918)))
    write_mask(here / "out" / "b.png", np.zeros((1280, 1918)))
    result = submit()
    assert result.exit_code == 0, result.output
    data = (here / "submission.csv.gz").read_bytes()
    assert gzip.decompress(data).decode() == "img,rle_mask\na.jpg,1 2455040\nb.jpg,\n"
    assert result.stdout.splitlines() == [
        "file         submission.csv.gz",
        "rows         2",
        "empty masks  1 (b.jpg)",
        f"size         {len(data)} bytes",
        f"sha256       {hashlib.sha256(data).hexdigest()}",
        "",
        "The competition would not accept this file:",
        "  it wants names such as 0cdf5b5d0ce1_01.jpg; 2 of 2 differ, such as a.jpg",
        "  it wants 100,064 rows; the file has 2",
    ]
    assert result.stderr == ""


def test_another_folder_file_and_size(here):
    write_mask(here / "masks" / "a.png", [[1, 0]])
    result = submit("masks", "-o", "my file.csv", "--size", "2X1", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert (here / "my file.csv").read_text() == "img,rle_mask\na.jpg,1 1\n"
    assert "rows         1\n" in result.stdout
    assert "  it wants masks of 1918x1280; --size is 2x1\n" in result.stdout


def test_any_size(here):
    write_mask(here / "out" / "a.png", [[1, 0]])
    write_mask(here / "out" / "b.png", [[1, 0, 1]])
    result = submit("--size", "any", "-o", "s.zip")
    assert result.exit_code == 0, result.output
    assert "rows         2\n" in result.stdout


def test_many_empty_masks_are_counted_and_five_named(here):
    for number in range(7):
        write_mask(here / "out" / f"{number}.png", [[0]])
    result = submit("--size", "any")
    assert "empty masks  7 (0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, ...)\n" in result.stdout


def test_inverted_masks_are_pointed_out(here):
    for number in range(3):
        write_mask(here / "out" / f"{number}.png", [[1, 1, 1], [1, 0, 1]])
    warning = "in 3 of 3 of the masks in out, the car covers all four corners, as if black were car"
    assert warning in submit("--size", "any").stderr
    for corner in range(3):  # each lacks another one
        rows = np.ones((2, 3), int)
        rows[corner // 2, corner % 2 * 2] = 0
        write_mask(here / "out" / f"{corner}.png", rows.tolist())
    assert "corners" not in submit("--size", "any").stderr


def test_sample(here):
    write_mask(here / "out" / "a.png", [[1, 0]])
    write_mask(here / "out" / "b.png", [[0, 1]])
    (here / "sample.csv").write_text("img,rle_mask\nb.jpg,1 1\na.jpg,1 1\n")
    result = submit("--size", "2x1", "--sample", "sample.csv", "-o", "s.csv")
    assert result.exit_code == 0, result.output
    assert (here / "s.csv").read_text() == "img,rle_mask\nb.jpg,2 1\na.jpg,1 1\n"
    assert "rows         2 (those of sample.csv)\n" in result.stdout
    (here / "out" / "b.png").unlink()
    result = submit("--size", "2x1", "--sample", "sample.csv", "-o", "none.csv")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).splitlines()[1:] == ["Ids without a mask: 1", "  b.jpg"]
    assert names_below(here) == ["out", "s.csv", "sample.csv"]


def test_unfinished_run_is_accepted_with_a_warning(here):
    out = here / "out"
    with OutFolder(out, {}, (1, 2), overwrite=False) as folder:
        folder.start(Choice("cpu", "fp32", batch=1, most_pixels=4096))
        write_mask(out / "a.png", [[1, 0]])
        folder.commit(Entry("a", "in/a.jpg", 1, 1))
        folder.commit_failure(Failure.of(ImageRef("b", here / "b.jpg"), "decode", "is empty"))
        result = submit("--size", "any")
        assert result.exit_code == 0, result.output
        assert result.stderr.splitlines() == [
            "Warning: a run of predict is at work in out. Masks so far: 1; shards begun: 1 of 2.",
            "Warning: photos that failed and have no mask in out: 1.",
        ]
    (out / "report.csv").touch()
    result = submit("--size", "any")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[1].endswith("in out: 1; out/report.csv names them.")
    assert result.stderr.splitlines()[0] == (
        "Warning: out is not finished. Masks so far: 1; shards begun: 1 of 2. The same predict command, run"
        " again, does the rest."
    )


@pytest.mark.parametrize("size", ["1918", "1918x", "0x5", "-1x5", "5x5x5", "axb", "", "1918 x 1280"])
@pytest.mark.usefixtures("here")
def test_invalid_sizes_are_refused(size):
    result = submit("--size", size)
    assert result.exit_code == 2
    assert "--size" in result.stderr


def test_deleted_masks_are_warned_about(here):
    with OutFolder(here / "out", {}, (1, 1), overwrite=False) as out:
        out.start(Choice("cpu", "fp32", batch=1, most_pixels=4096))
        for name in "abc":
            write_mask(here / "out" / f"{name}.png", [[1, 0]])
            out.commit(Entry(name, f"in/{name}.jpg", 1, 1, mask_bytes=1))
    assert "less than predict made" not in submit("--size", "any").stderr
    (here / "out" / "b.png").unlink()
    result = submit("--size", "any")
    assert result.exit_code == 0
    assert "Warning: out has 1 masks less than predict made. The same predict command" in result.stderr


def test_damaged_masks_of_predict_can_be_made_again(here):
    advice = "the same predict command with --verify makes them again."
    write_mask(here / "out" / "a.png", [[1, 0]])
    (here / "out" / "a.png").write_bytes((here / "out" / "a.png").read_bytes()[:50])
    assert advice not in str(submit("--size", "any").exception)  # nobody knows who made it
    (here / "out" / "a.png").unlink()
    with OutFolder(here / "out", {}, (1, 1), overwrite=False) as out:
        out.start(Choice("cpu", "fp32", batch=1, most_pixels=4096))
        write_mask(here / "out" / "a.png", [[1, 0]])
        out.commit(Entry("a", "in/a.jpg", 1, 1, mask_bytes=1))
    assert advice not in str(submit().exception)  # it only has another size
    (here / "out" / "a.png").write_bytes((here / "out" / "a.png").read_bytes()[:50])
    result = submit("--size", "any")
    assert result.exception.exit_code == 1
    assert str(result.exception).endswith(advice)


def test_errors_are_exceptions_of_the_package(here):
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


def test_output_to_a_pipe(here):
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


def test_label_maps_need_a_car_value(here):
    (here / "out").mkdir()
    Image.fromarray(np.array([[0, 7, 7, 15]], np.uint8)).save(here / "out" / "a.png")
    result = submit("--size", "any", "-o", "s.csv")
    assert isinstance(result.exception, UsageError)
    assert "the values 0, 7 and 15" in str(result.exception)
    assert not (here / "s.csv").exists()
    assert submit("--size", "any", "-o", "s.csv", "--car-value", "7").exit_code == 0
    assert (here / "s.csv").read_text() == "img,rle_mask\na.jpg,2 2\n"


def test_masks_without_any_car_are_an_error(here):
    for name in ("a", "b"):
        write_mask(here / "out" / f"{name}.png", [[0, 0]])
    result = submit("--size", "any", "-o", "s.csv")
    assert result.exit_code == 3
    assert result.stderr == "Error: none of the masks in out has a car.\n"
    assert "To hand it in" not in result.stdout
    assert (here / "s.csv").read_text() == "img,rle_mask\na.jpg,\nb.jpg,\n"


def test_only_what_the_competition_accepts_is_to_be_handed_in(here, monkeypatch):
    """Two photos stand for all 100,064."""
    monkeypatch.setattr("carvana_batch.commands.submit.COMPETITION_ROWS", 2)
    for name in ("0cdf5b5d0ce1_01", "0cdf5b5d0ce1_16"):
        write_mask(here / "out" / f"{name}.png", np.ones((1280, 1918)))
    command = (
        "kaggle competitions submit -c carvana-image-masking-challenge -f 'my file.csv' -m carvana-batch"
    )
    result = submit("-o", "my file.csv")
    assert result.stdout.splitlines()[-2:] == ["To hand it in:", f"  {command}"]
    written = json.loads(submit("-o", "my file.csv", "--json").stdout)
    assert (written["hand_in"], written["competition_lacks"]) == (command, [])

    (here / "out" / "0cdf5b5d0ce1_16.png").rename(here / "out" / "0cdf5b5d0ce1_1.png")
    written = json.loads(submit("-o", "my file.csv", "--json").stdout)
    assert written["hand_in"] is None
    assert written["competition_lacks"] == [
        "it wants names such as 0cdf5b5d0ce1_01.jpg; 1 of 2 differ, such as 0cdf5b5d0ce1_1.jpg"
    ]


def test_as_json(here):
    write_mask(here / "out" / "a.png", [[1, 0]])
    write_mask(here / "out" / "b.png", [[0, 0]])
    result = submit("--size", "any", "-o", "s.csv", "--json")
    data = (here / "s.csv").read_bytes()
    assert json.loads(result.stdout) == {
        "file": "s.csv",
        "rows": 2,
        "empty": 1,
        "first_empty": ["b.jpg"],
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "doubt": None,
        "competition_lacks": [
            "it wants masks of 1918x1280; --size is any",
            "it wants names such as 0cdf5b5d0ce1_01.jpg; 2 of 2 differ, such as a.jpg",
            "it wants 100,064 rows; the file has 2",
        ],
        "hand_in": None,
    }
    (here / "out" / "a.png").unlink()
    result = submit("--size", "any", "-o", "s.csv", "--json")
    assert (result.exit_code, json.loads(result.stdout)["hand_in"]) == (3, None)
