"""Files of the user in the places of masks, extra files and tables: they stay, and are named."""

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import names_below
from PIL import Image

from carvana_batch.commands import group
from carvana_batch.masks.read import read_mask
from carvana_batch.output.writer import MaskWriter

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "0")
PROMISE = "a file of the user is in the place of an output"
SIZE = (96, 64)
"""Width and height of the photos that ``drawn`` draws."""


@pytest.fixture
def here(tmp_path, drawn, model, monkeypatch):
    """The current folder, with two small photos in ``images``, and one that is broken."""
    assert model  # loaded once, on one thread
    (tmp_path / "images").mkdir()
    for name in ("car0.jpg", "car1.jpg"):
        shutil.copy2(drawn / "images" / name, tmp_path / "images")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def carvana_batch(*arguments):
    return CliRunner().invoke(group, arguments)


def draw_mask(path, mode="L"):
    """Draw a mask by hand: a rectangle of 20 x 10 pixels."""
    levels = np.zeros(SIZE[::-1], np.uint8)
    levels[5:15, 10:30] = 255
    Image.fromarray(levels).convert(mode).save(path)
    return path.read_bytes()


def rows_of(path):
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_mask_drawn_for_a_failed_photo_stays(here, mode, count_faults):
    assert carvana_batch(*PREDICT).exit_code == 3
    mask = here / "out" / "broken.png"
    drawn = draw_mask(mask, mode)
    rows = (*PREDICT, "--rle", "rows.csv")
    for number in range(2):
        result = carvana_batch(*rows, *["--json"] * number)
        assert (result.exit_code, mask.read_bytes()) == (0, drawn)
    report = json.loads(result.stdout)
    assert (report["already_done"], report["failed"], report["left"], report["kept"]) == (2, 0, 0, ["broken"])
    assert "kept, because predict did not make it: broken.png." in result.stderr
    assert rows_of(here / "out" / "report.csv")["broken"]["status"] == "kept"

    submitted = carvana_batch("submit", "out", "-o", "all.csv", "--size", "96x64")
    assert submitted.exit_code == 0
    assert "masks in out that predict did not make: 1 (broken.png)" in submitted.stderr
    assert "failed" not in submitted.stderr
    assert (here / "all.csv").read_bytes() == (here / "rows.csv").read_bytes()
    shutil.copytree(here / "out", here / "gt", ignore=lambda *_: [".carvana-batch", "run.json", "report.csv"])
    scored = carvana_batch("score", "out", "--gt", "gt", "--json")
    assert json.loads(scored.stdout)["summary"]["dice"] == 1
    assert carvana_batch(*PREDICT, "--overwrite").exit_code == 0
    assert mask.read_bytes() == drawn  # there is no new one
    count_faults(PROMISE, 1)


def test_a_mask_that_is_drawn_over_stays(here, count_faults):
    (here / "images" / "broken.jpg").unlink()
    assert carvana_batch(*PREDICT).exit_code == 0
    mask = here / "out" / "car0.png"
    made, drawn = mask.read_bytes(), draw_mask(mask)
    result = carvana_batch(*PREDICT)
    assert (result.exit_code, mask.read_bytes()) == (0, drawn)
    assert "kept, because predict did not make it: car0.png" in result.stderr
    assert "0 masked, 1 done before, 0 failed, 1 kept -> out" in result.stdout
    result = carvana_batch(*PREDICT, "--overwrite")
    assert "Overwriting 2 of 2 masks in out, 1 of them not made by predict (out/car0.png)" in result.stdout
    assert mask.read_bytes() == made
    count_faults(PROMISE, 1)


def test_a_mask_stays_if_its_photo_breaks_or_goes(here, count_faults):
    assert carvana_batch(*PREDICT).exit_code == 3
    drawn = {name: draw_mask(here / "out" / name) for name in ("car0.png", "broken.png")}
    (here / "images" / "car0.jpg").write_bytes(b"")
    assert carvana_batch(*PREDICT).exit_code == 0
    assert {name: (here / "out" / name).read_bytes() for name in drawn} == drawn
    (here / "images" / "car0.jpg").unlink()
    (here / "images" / "broken.jpg").unlink()
    assert carvana_batch(*PREDICT, "--overwrite").exit_code == 0
    assert {name: (here / "out" / name).read_bytes() for name in drawn} == drawn
    count_faults(PROMISE, 4)


@pytest.mark.parametrize("kind", ["coloured", "text"])
def test_a_file_that_is_no_mask_stays(here, kind, count_faults):
    assert carvana_batch(*PREDICT).exit_code == 3
    logo = here / "out" / "logo.png"
    if kind == "text":
        logo.write_text("not an image")
    else:
        Image.merge("RGB", [Image.effect_noise(SIZE, 90) for _ in range(3)]).save(logo)
    content = logo.read_bytes()
    for name in ("broken.jpg", "car0.jpg"):
        shutil.copy(here / "images" / name, here / "images" / "logo.jpg")
        result = carvana_batch(*PREDICT)
        assert result.exit_code == 3
        assert logo.read_bytes() == content
        count_faults(PROMISE, 1)
    assert "out/logo.png is there already and was not made by predict, so it stays;" in result.stderr
    assert carvana_batch(*PREDICT, "--overwrite").exit_code == 3  # broken.jpg
    assert logo.read_bytes() != content


def test_an_extra_file_of_the_user_stays(here, count_faults):
    command = (*PREDICT, "--save", "overlay")
    assert carvana_batch(*command).exit_code == 3
    shutil.copy(here / "images" / "car0.jpg", here / "images" / "new.jpg")
    mine = here / "out" / "_overlay" / "new.jpg"
    mine.write_bytes(b"mine")
    result = carvana_batch(*command)
    assert result.exit_code == 3
    assert "out/_overlay/new.jpg is there already and was not made by predict" in result.stderr
    assert (mine.read_bytes(), (here / "out" / "new.png").exists()) == (b"mine", False)
    count_faults(PROMISE, 1)


def test_links_in_the_places_of_masks_stay(here, count_faults):
    assert carvana_batch(*PREDICT).exit_code == 3
    victim = here / "victim.txt"
    victim.write_text("mine")
    for name, target in (("a", victim), ("b", here / "nothing")):
        shutil.copy(here / "images" / "car0.jpg", here / "images" / f"{name}.jpg")
        (here / "out" / f"{name}.png").symlink_to(target)
        count_faults(PROMISE, 1)
    result = carvana_batch(*PREDICT)
    assert result.exit_code == 3
    assert result.stderr.count("was not made by predict, so it stays") == 2
    assert victim.read_text() == "mine"
    assert not (here / "nothing").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_in_place_of_one_mask_stays(here, monkeypatch, links, count_faults):
    write = MaskWriter.write
    mask = here / "mask.png"

    def write_and_interfere(writer, prediction):
        mask.write_bytes(b"mine")
        return write(writer, prediction)

    def refuse(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(MaskWriter, "write", write_and_interfere)
    if not links:
        monkeypatch.setattr("os.link", refuse)
    command = ("predict", "images/car0.jpg", "mask.png", "--precision", "fp32", "--workers", "0")
    result = carvana_batch(*command)
    assert "mask.png has appeared during the run, and stays as it is." in str(result.exception)
    assert mask.read_bytes() == b"mine"
    assert names_below(here) == ["images", "mask.png"]
    assert carvana_batch(*command, "--overwrite").exit_code == 0
    assert read_mask(mask).rows.any()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    mask.unlink()
    assert carvana_batch(*command).exit_code == 0
    assert read_mask(mask).rows.any()
    count_faults(PROMISE, 1)


def test_tables_replace_neither_the_report_nor_other_tables(here, count_faults):
    (here / "mine.csv").write_text("name,price\na,1\n")
    for rle_file, problem in (
        ("out/report.csv", "is the report of the run"),
        ("mine.csv", "is there already, and has no run-length rows"),
    ):
        result = carvana_batch(*PREDICT, "--rle", rle_file)
        assert str(result.exception) == f"--rle {rle_file} {problem}: it would be lost. Name another file."
        assert result.exception.exit_code == 2
        count_faults(PROMISE, 1)
    assert not (here / "out").exists()
    for _ in range(2):  # its own table is replaced
        assert carvana_batch(*PREDICT, "--rle", "rows.csv").exit_code == 3
    size = f"{SIZE[0]}x{SIZE[1]}"
    for command, problem in (
        (("submit", "out", "--size", size), "no run-length rows"),
        (("score", "out", "--gt", "out"), "no scores"),
    ):
        result = carvana_batch(*command, "-o", "mine.csv")
        assert str(result.exception) == (
            f"-o mine.csv is there already, and has {problem}: it would be lost. Name another file."
        )
        assert result.exception.exit_code == 2
        count_faults(PROMISE, 1)
        for _ in range(2):
            assert carvana_batch(*command, "-o", f"{command[0]}.csv").exit_code == 0
    assert (here / "mine.csv").read_text() == "name,price\na,1\n"


def test_two_shards_do_not_write_the_same_rows(here, count_faults):
    (here / "images" / "broken.jpg").unlink()
    command = (*PREDICT, "--rle", "rows.csv")
    assert carvana_batch(*command, "--shard", "1/2").exit_code == 0
    rows = (here / "rows.csv").read_bytes()
    result = carvana_batch(*command, "--shard", "2/2")
    assert result.exception.exit_code == 2
    assert "rows.csv is already the file of shard 1/2, whose rows would be lost." in str(result.exception)
    assert (here / "rows.csv").read_bytes() == rows
    for number in (2, 1):
        assert carvana_batch(*PREDICT, "--rle", f"rows-{number}.csv", "--shard", f"{number}/2").exit_code == 0
    count_faults(PROMISE, 1)
