import csv
import gzip

import pytest
from click.testing import CliRunner

from carvana_batch import demo as drawing
from carvana_batch.commands import group
from carvana_batch.errors import UsageError
from carvana_batch.inputs.masks import find_masks


@pytest.fixture
def demo(model, tmp_path, monkeypatch):
    """``demo(...)`` runs the command in an empty folder, with photos of a tenth of the size."""
    assert model
    draw = drawing.draw_photo
    monkeypatch.setattr(drawing, "draw_photo", lambda seed, view: draw(seed, view, (192, 128)))
    submit = group.get_command(None, "submit")
    (size,) = (parameter for parameter in submit.params if parameter.name == "size")
    monkeypatch.setattr(size, "default", "192x128")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(group, ["demo", *arguments])


def test_all_of_it(demo, tmp_path):
    result = demo("--photos", "2")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "demo"
    keys = list(find_masks(folder / "out"))
    assert len(keys) == 2
    assert list(find_masks(folder / "masks")) == keys
    assert len(list((folder / "out" / "_overlay").iterdir())) == 2
    rows = gzip.decompress((folder / "submission.csv.gz").read_bytes()).decode().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["img", *(f"{key}.jpg" for key in keys)]
    with (folder / "scores.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == keys
    for line in (
        "$ carvana-batch predict demo/images demo/out --overwrite --save overlay",
        "$ carvana-batch submit demo/out -o demo/submission.csv.gz",
        "$ carvana-batch score demo/out --gt demo/masks -o demo/scores.csv --html demo/score.html",
        "$ carvana-batch review demo/out -o demo/review.html",
        "2 masked, 0 failed -> demo/out; none is doubtful",
    ):
        assert line in result.stdout.splitlines()
    *_, first, second, third, fourth, fifth, opening, review, score = result.stdout.splitlines()
    for line in (first, second, third, fourth, fifth, review, score):
        assert (tmp_path / line.split()[0]).exists()
    assert opening.startswith("Open in a browser, with `")
    assert [line.split()[0] for line in (review, score)] == ["demo/review.html", "demo/score.html"]
    for name in ("review", "score"):
        assert "data:image/jpeg" in (folder / f"{name}.html").read_text()


def test_again_with_other_cars(demo, tmp_path):
    assert demo("my", "--photos", "2").exit_code == 0
    first = list(find_masks(tmp_path / "my" / "out"))
    (tmp_path / "my" / "notes.txt").write_text("mine")
    assert demo("my", "--photos", "1", "--seed", "7").exit_code == 0
    second = list(find_masks(tmp_path / "my" / "out"))
    assert len(second) == 1
    assert second[0] not in first
    assert [path.stem for path in (tmp_path / "my" / "images").iterdir()] == second
    assert (tmp_path / "my" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["images/holiday.jpg", "masks/a_mask.gif", "notes.txt"])
def test_a_folder_with_files_of_somebody_else_is_refused(demo, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    result = demo("mine", "--photos", "1")
    assert isinstance(result.exception, UsageError)
    assert "mine holds files that are not a demo's" in str(result.exception)
    assert result.output == ""
    assert [entry for entry in (tmp_path / "mine").rglob("*") if entry.is_file()] == [path]


def test_an_empty_folder_and_one_that_cannot_be_made(demo, tmp_path):
    (tmp_path / "empty").mkdir()
    assert demo("empty", "--photos", "1").exit_code == 0
    (tmp_path / "file").write_text("mine")
    result = demo("file/demo", "--photos", "1")
    assert isinstance(result.exception, UsageError)
    assert "Cannot write into file/demo" in str(result.exception)
    assert demo("file").exit_code == 2
