import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import names_below, store, with_orientation, write_mask
from PIL import Image

from carvana_batch.commands import group
from carvana_batch.errors import QualityGateError, UsageError
from carvana_batch.masks import folder as mask_folder
from carvana_batch.orientation import ORIENTATIONS
from carvana_batch.scoring.scores import COLUMNS, MASK_COLUMNS


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Folders ``out`` and ``gt`` with five pairs, whose Dice is 1, 0.8, 2/3, 0.5 and 0."""
    monkeypatch.chdir(tmp_path)
    for name, predicted, true in [
        ("a", [[1, 0, 0, 0]], [[1, 0, 0, 0]]),
        ("b", [[1, 1, 0, 0]], [[1, 1, 1, 0]]),
        ("c", [[1, 0, 0, 0]], [[1, 1, 0, 0]]),
        ("d", [[1, 1, 0, 0]], [[0, 1, 1, 0]]),
        ("e", [[1, 0, 0, 0]], [[0, 1, 0, 0]]),
    ]:
        write_mask(tmp_path / "out" / f"{name}.png", predicted)
        write_mask(tmp_path / "gt" / f"{name}_mask.gif", true)
    return tmp_path


def score(*arguments):
    return CliRunner().invoke(group, ["score", *arguments])


def read_table(path="scores.csv"):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def paragraphs(text):
    """Split what a command printed into paragraphs, each a list of its lines."""
    return [paragraph.splitlines() for paragraph in text.split("\n\n")]


@pytest.mark.usefixtures("here")
def test_summary_worst_five_and_table():
    result = score("--gt", "gt")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    first, summary, _distances, _errors, worst, last = paragraphs(result.stdout)
    assert first == ["Masks scored: 5", "Empty on both sides, counted as 1: 0"]
    values = {line[:34].strip(): line[34:].strip() for line in summary}
    assert values == {
        "mean Dice": f"{(1 + 0.8 + 2 / 3 + 0.5) / 5:.6f}",
        "mean IoU": f"{(1 + 2 / 3 + 1 / 2 + 1 / 3) / 5:.6f}",
        "mean pixel accuracy": "0.700000",
        "mean precision": "0.700000",
        "mean recall": f"{(1 + 2 / 3 + 1 / 2 + 1 / 2) / 5:.6f}",
        "Dice at 5 %": "0.100000",
        "Dice at 50 %": "0.666667",
        "Dice at 95 %": "0.960000",
    }
    assert worst == [
        "Lowest Dice",
        "  0.000000  e",
        "  0.500000  d",
        "  0.666667  c",
        "  0.800000  b",
        "  1.000000  a",
    ]
    assert last == ["Each image's scores: scores.csv"]
    rows = read_table()
    assert [row["image"] for row in rows] == ["a", "b", "c", "d", "e"]
    assert tuple(rows[0]) == MASK_COLUMNS


def draw(folder, name, shift=0, antenna=False):
    """Draw a dark car in front of a light wall on a dark floor; its mask is shifted by ``shift`` columns."""
    true = np.zeros((60, 90), bool)
    true[20:50, 20:70] = True
    true[2:20, 40:43] = antenna
    photo = np.where(true, 40, 220).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    photo[40:] = 42
    write_mask(folder / "out" / f"{name}.png", np.roll(true, shift, axis=1))
    write_mask(folder / "gt" / f"{name}.png", true)
    (folder / "in").mkdir(exist_ok=True)
    Image.fromarray(photo).save(folder / "in" / f"{name}.png")


@pytest.fixture
def cars(tmp_path, monkeypatch):
    """Two views each of seven cars, with masks shifted by 0 to 6 columns and an antenna on the last car."""
    monkeypatch.chdir(tmp_path)
    for number in range(7):
        for view in ("01", "02"):
            draw(tmp_path, f"car{number}_{view}", number, antenna=number == 6)
    return tmp_path


@pytest.mark.usefixtures("cars")
def test_outlines_views_and_cars():
    result = score("--gt", "gt", "--images", "in")
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    _, _, distances, errors, views, by_car, worst, _ = paragraphs(result.stdout)
    rows = {row["image"]: row for row in read_table()}
    assert tuple(rows["car0_01"]) == COLUMNS
    mean = np.mean([float(row["boundary_mean"]) for row in rows.values()])
    assert distances[0] == f"{'distance between outlines':<34}{mean:>5.2f} px"
    assert [line[:34].strip() for line in distances[1:]] == [
        "95th percentile",
        "Dice within 5 px of the outline",
    ]

    def weighted_mean(name, part):
        total = sum(float(row[name]) * int(row[part]) for row in rows.values() if row[name])
        return total / sum(int(row[part]) for row in rows.values())

    outline = sum(int(row["outline_pixels"]) for row in rows.values())
    lower = sum(int(row["lower_pixels"]) for row in rows.values()) / outline
    similar = sum(int(row["similar_pixels"]) for row in rows.values()) / outline
    thin = sum(int(row["thin_pixels"]) for row in rows.values())
    assert errors == [
        f"{'error along the true outline':<34}{weighted_mean('outline_error', 'outline_pixels'):>5.2f} px",
        f"{'  lower outline':<34}{weighted_mean('lower_error', 'lower_pixels'):>5.2f} px"
        f"  ({lower:.0%} of it)",
        f"{'  similar colours':<34}{weighted_mean('similar_error', 'similar_pixels'):>5.2f} px"
        f"  ({similar:.0%} of it)",
        f"{'recall of thin structures':<34}{weighted_mean('thin_recall', 'thin_pixels'):>8.4f}"
        f"  ({thin} px, in 2 of 14 images)",
    ]
    assert 0.3 < lower < 0.5
    assert 0.3 < similar < 0.7
    assert thin == 2 * 3 * 16
    assert views[0] == "By view"
    assert [line.split()[-1] for line in views[1:]] == ["view", "01", "02"]
    dice = np.mean([float(row["dice"]) for name, row in rows.items() if name.endswith("01")])
    assert views[2].split()[:2] == ["7", f"{dice:.4f}"]
    assert by_car[0] == "The 5 of 7 cars with the lowest Dice (--json has all)"
    assert [line.split()[-1] for line in by_car[2:]] == ["car6", "car5", "car4", "car3", "car2"]
    assert by_car[2].split()[:2] == ["2", f"{float(rows['car6_01']['dice']):.4f}"]
    assert worst[1] == f"  {float(rows['car6_01']['dice']):.6f}  car6_01"


def test_only_the_worst_of_many_views_are_printed(cars):
    for number in range(25):
        for car in "xy":
            draw(cars, f"{car}_{number}", shift=number % 13)
    stdout = score("--gt", "gt").stdout
    (views,) = (lines for lines in paragraphs(stdout) if "views" in lines[0])
    assert views[0] == "The 20 of 27 views with the lowest Dice (--json has all)"
    assert len(views) == 2 + 20
    assert "12" in views[2].split()


def test_unusable_photos_are_named_with_exit_code_3(cars):
    for number in range(3, 7):
        (cars / "in" / f"car{number}_01.png").unlink()
        Image.new("RGB", (9, 9)).save(cars / "in" / f"car{number}_02.png")
    result = score("--gt", "gt", "--images", "in")
    assert result.exit_code == 3
    expected = "Not everything was compared: 8 without a usable photo. So the exit code is 3.\n"
    assert result.stderr.endswith(expected)
    (unseen,) = (lines for lines in paragraphs(result.stdout) if lines[0].startswith("Photos"))
    assert unseen[0] == "Photos that cannot be used: 8"
    assert unseen[1] == "  car3_01: There is no photo of this name."
    assert unseen[2].startswith("  car3_02: ")
    assert unseen[-1] == "  ... and 3 more"
    seen = [row for row in read_table() if row["similar_pixels"]]
    share = sum(int(row["similar_pixels"]) for row in seen) / sum(int(row["outline_pixels"]) for row in seen)
    assert re.search(rf"similar colours .* px  \({share:.0%} of it, in 6 of 14 images\)\n", result.stdout)
    content = json.loads(score("--gt", "gt", "--images", "in", "--json").stdout)
    assert [each["image"] for each in content["unseen"]][:2] == ["car3_01", "car3_02"]
    assert content["summary"]["defined_for"]["similar_error"] == 6


@pytest.mark.parametrize(
    "sides", [("predicted.csv", "gt"), ("out", "true.csv.gz"), ("predicted.csv", "true.csv.gz")]
)
def test_run_length_rows(cars, sides):
    CliRunner().invoke(
        group, ["submit", "out", "-o", "predicted.csv", "--size", "90x60"], catch_exceptions=False
    )
    CliRunner().invoke(
        group, ["submit", "gt", "-o", "true.csv.gz", "--size", "90x60"], catch_exceptions=False
    )
    expected = score("--gt", "gt").stdout
    table = (cars / "scores.csv").read_bytes()
    predicted, truth = sides
    both_rows = predicted.endswith(".csv") and truth.endswith(".gz")
    result = score(predicted, "--gt", truth, *(["--size", "90x60"] if both_rows else []))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == expected
    assert (cars / "scores.csv").read_bytes() == table
    if not both_rows:
        result = score(predicted, "--gt", truth, "--size", "90x60")
        assert isinstance(result.exception, UsageError)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("size", ["0x3", "3", "3x", "axb", "any"])
def test_invalid_sizes_are_refused(size):
    result = score("--gt", "gt", "--size", size)
    assert result.exit_code == 2
    assert "--size" in result.stderr


def test_invalid_row_is_named_with_the_bad_pair(cars):
    (cars / "rows.csv").write_text("img,rle_mask\ncar0_01.jpg,1 2 2 2\ncar0_02.jpg,1 2\n")
    result = score("rows.csv", "--gt", "gt")
    assert result.exit_code == 3
    assert result.stdout.startswith("Masks scored: 1\n")
    assert "\nMasks that cannot be compared: 1\n  car0_01: The run-length row of car0_01 in" in result.stdout
    assert "Pair 2 (2 2) overlaps" in result.stdout


def test_unscored_masks_are_named_with_exit_code_3(here):
    for number in range(7):
        write_mask(here / "gt" / f"true{number}.png", [[1]])
    write_mask(here / "out" / "predicted.png", [[1]])
    write_mask(here / "gt" / "e_mask.gif", [[1, 0]])
    result = score("--gt", "gt", "-o", "s.csv")
    assert result.exit_code == 3
    assert result.stdout.startswith("Masks scored: 4\n")
    first_five = "".join(f"  true{number}\n" for number in range(5))
    assert f"True masks without a predicted one: 7\n{first_five}  ... and 2 more\n" in result.stdout
    assert "Predicted masks without a true one: 1\n  predicted\n" in result.stdout
    assert (
        "Masks that cannot be compared: 1\n"
        "  e: The predicted mask is 4x1 pixels, the true one 2x1. Give both in the size of the photo.\n"
        in result.stdout
    )
    assert len((here / "s.csv").read_text().splitlines()) == 1 + 4


@pytest.mark.usefixtures("here")
def test_notes_are_on_stderr_and_in_json():
    Path("rows.csv").write_text("img,rle_mask\na.jpg,1 1\n")
    note = "Assumed 1918x1280 pixels, the competition's size; --size changes it."
    result = score("rows.csv", "--gt", "rows.csv", "--json")
    assert (result.exit_code, result.stderr) == (0, note + "\n")
    assert json.loads(result.stdout)["notes"] == [note]
    assert json.loads(score("--gt", "gt", "--json").stdout)["notes"] == []


def test_json_output(here):
    write_mask(here / "gt" / "true.png", [[1]])
    write_mask(here / "gt" / "e_mask.gif", [[1, 0]])
    result = score("--gt", "gt", "--json")
    assert result.exit_code == 3
    content = json.loads(result.stdout)
    assert list(content) == [
        *("summary", "empty_on_both_sides", "views", "cars", "worst"),
        *("missing", "extra", "unusable", "unseen"),
        *("notes", "turned", "unclear_orientation", "scores", "page"),
    ]
    assert content["summary"]["images"] == 4
    assert content["summary"]["dice"] == pytest.approx((1 + 0.8 + 2 / 3 + 0.5) / 4)
    assert content["summary"]["boundary_mean"] >= 0
    assert content["summary"]["defined_for"]["boundary_mean"] == 4
    assert (content["views"], content["cars"]) == ([], [])
    assert [row["image"] for row in content["worst"]] == ["d", "c", "b", "a"]
    assert (content["missing"], content["extra"]) == (["true"], [])
    assert content["unusable"] == [
        {
            "image": "e",
            "reason": "The predicted mask is 4x1 pixels, the true one 2x1. Give both in the size of the"
            " photo.",
        }
    ]
    assert content["scores"] == "scores.csv"
    assert (here / "scores.csv").exists()


def test_orientations_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    upright = Image.new("L", (30, 20))
    upright.paste(255, (3, 4, 20, 12))
    for folder in ("in", "out", "gt"):
        Path(folder).mkdir()
    for orientation in ORIENTATIONS:
        exif = with_orientation(upright, orientation).getexif()
        store(upright, orientation).save(f"in/{orientation}.png", exif=exif)
        store(upright, orientation).save(f"out/{orientation}.png")
        upright.save(f"gt/{orientation}.png")
    result = score("--gt", "gt", "--images", "in", "--html", "page.html")
    assert result.exit_code == 0, result.output
    assert paragraphs(result.stdout)[-2] == [
        "Pairs of an upright mask and one as the photo is stored, turned alike by its EXIF orientation: 4",
        "Photos whose EXIF orientation keeps their size: 3; their masks were compared as they are, because it"
        " cannot be told whether one is upright and the other as stored",
    ]
    assert "turned by it, the mean Dice of these would be 1.000 instead of 0." in result.stderr
    content = json.loads(score("--gt", "gt", "--images", "in", "--json").stdout)
    assert (content["turned"], content["unclear_orientation"]) == (4, 3)
    assert "turned by it" not in score("--gt", "out", "out", "--images", "in").stderr
    assert "EXIF" not in score("--gt", "out", "out").stdout
    failed = score("--gt", "gt")
    assert failed.exit_code == 3
    assert failed.stdout.count("Its sides are swapped: probably one is upright") == 4


@pytest.mark.usefixtures("cars")
def test_json_has_every_car_and_view():
    content = json.loads(score("--gt", "gt", "--json").stdout)
    assert [car["car"] for car in content["cars"]] == [f"car{number}" for number in range(7)]
    assert [view["view"] for view in content["views"]] == ["01", "02"]
    rows = read_table()
    for kind, part in (("cars", 0), ("views", 1)):
        for entry in content[kind]:
            members = [row for row in rows if row["image"].split("_")[part] == entry[kind[:-1]]]
            assert entry["images"] == len(members)
            assert entry["dice"] == pytest.approx(np.mean([float(row["dice"]) for row in members]), abs=1e-8)
            assert entry["boundary_mean"] == pytest.approx(
                np.mean([float(row["boundary_mean"]) for row in members]), abs=1e-8
            )
    assert content["cars"][0]["thin_recall"] is None
    assert content["cars"][0]["defined_for"]["thin_recall"] == 0
    assert set(content["worst"][0]) == set(MASK_COLUMNS)


def test_no_mask_could_be_scored(here):
    write_mask(here / "one" / "a.png", [[1, 0]])
    result = score("one", "--gt", "out", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["summary"] is None
    result = score("one", "--gt", "out")
    assert result.exit_code == 3
    assert result.stdout.startswith("No mask could be scored.\n")
    result = score("one", "--gt", "out", "--fail-under", "0")
    assert isinstance(result.exception, QualityGateError)


@pytest.mark.parametrize(("limit", "is_met"), [("0", True), ("0.59", True), ("0.6", False), ("nan", False)])
def test_quality_gate_fails_after_writing_everything(here, limit, is_met):
    result = score("--gt", "gt", "--fail-under", limit)
    assert "mean Dice" in result.stdout
    assert (here / "scores.csv").exists()
    if is_met:
        assert result.exit_code == 0
    else:
        assert isinstance(result.exception, QualityGateError)
        assert str(result.exception) == f"The mean Dice is 0.59333333, below --fail-under {limit}."


def test_failed_quality_gate_outweighs_missing_masks(here):
    write_mask(here / "gt" / "true.png", [[1]])
    assert isinstance(score("--gt", "gt", "--fail-under", "1").exception, QualityGateError)
    assert score("--gt", "gt", "--fail-under", "0").exit_code == 3


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("limit", ["1.5", "-1", "x"])
def test_quality_gate_outside_0_to_1_is_refused(limit):
    result = score("--gt", "gt", "--fail-under", limit)
    assert result.exit_code == 2
    assert "--fail-under" in result.stderr


def test_wrong_usage_is_refused_before_reading_masks(here, monkeypatch):
    monkeypatch.setattr(mask_folder, "read_mask", lambda *_: pytest.fail("read a mask"))
    monkeypatch.setattr(mask_folder, "read_mask_pixels", lambda *_: pytest.fail("read a mask"))
    result = score()
    assert result.exit_code == 2
    assert "--gt" in result.stderr
    for arguments, message in [
        (["missing", "--gt", "gt"], "missing does not exist"),
        (["--gt", "missing"], "missing does not exist. --gt takes the true masks"),
        (["--gt", "missing.csv"], "Cannot read missing.csv"),
        (["--gt", "gt", "--images", "missing"], "--images: There is no file or folder missing"),
        (["--gt", "gt", "--size", "3x1"], "--size is for two files"),
        (["--gt", "gt", "-o", "missing/s.csv"], "there is no folder missing"),
        (["--gt", "gt", "-o", "gt/a_mask.gif"], "ends in .csv"),
    ]:
        result = score(*arguments)
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)
    assert names_below(here) == ["gt", "out"]


def test_names_are_printed_literally_and_on_one_line(here):
    names = ["[red]x", "a\nb", "\x1b[31mred", "x" * 120]
    for name in names:
        write_mask(here / "gt" / f"{name}.png", [[0, 1]])
        write_mask(here / "out" / f"{name}.png", [[1, 0]])
    write_mask(here / "gt" / "[blue]\n.png", [[1]])
    result = score("--gt", "gt")
    assert "  0.000000  [red]x\n" in result.stdout
    assert "  0.000000  \\x1b[31mred\n" in result.stdout
    assert "  0.000000  a\\nb\n" in result.stdout
    assert "  [blue]\\n\n" in result.stdout
    assert "\x1b" not in result.output


def test_output_to_a_pipe(here):
    write_mask(here / "gt" / ("long" * 30 + ".png"), [[1]])
    command = [sys.executable, "-W", "error", "-m", "carvana_batch", "score", "--gt", "gt"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    expected = "Not everything was compared: 1 missing. So the exit code is 3.\n"
    assert (result.returncode, result.stderr) == (3, expected)
    assert "mean Dice" in result.stdout
    assert "\x1b" not in result.stdout
    assert "  " + "long" * 30 + "\n" in result.stdout
    result = subprocess.run(
        [*command, "--fail-under=0.9", "--json"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 4
    assert json.loads(result.stdout)["summary"]["images"] == 5
    assert result.stderr == "Error: The mean Dice is 0.59333333, below --fail-under 0.9.\n"


def test_page_is_written_with_the_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mask(tmp_path / "out" / "car_01.png", [[1, 0], [0, 1]])
    write_mask(tmp_path / "gt" / "car_01_mask.png", [[1, 1], [0, 1]])
    result = CliRunner().invoke(group, ["score", "--gt", "gt", "--html", "report.html"])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert "car_01" in page
    assert "0.8" in page
    refused = CliRunner().invoke(group, ["score", "--gt", "gt", "--html", "report.txt"])
    assert isinstance(refused.exception, UsageError)
    assert not (tmp_path / "report.txt").exists()


@pytest.mark.usefixtures("here")
def test_the_path_of_the_page_is_printed_last():
    result = score("--gt", "gt", "--html", "page.html")
    assert result.stdout.splitlines()[-1] == "Page: page.html"
    assert json.loads(score("--gt", "gt", "--html", "page.html", "--json").stdout)["page"] == "page.html"
    assert json.loads(score("--gt", "gt", "--json").stdout)["page"] is None


def test_photos_of_the_page_are_found_by_the_run(here):
    (here / "in").mkdir()
    for name in "abcde":
        Image.new("RGB", (4, 1), "red").save(here / "in" / f"{name}.png")
    assert score("--gt", "gt", "--html", "page.html", "--images", "in").exit_code == 0
    expected, columns = (here / "page.html").read_text(), list(read_table()[0])
    assert "similar_error" in columns
    (here / "out" / "run.json").write_text(json.dumps({"images": str(here / "in")}))
    result = score("--gt", "gt", "--html", "page.html")
    assert result.exit_code == 0
    page = (here / "page.html").read_text()
    assert page.count("data:image/jpeg") == expected.count("data:image/jpeg") == 10
    # What is measured does not depend on whether the photos happen to be there.
    assert list(read_table()[0]) == list(MASK_COLUMNS)
    for path in (here / "in").iterdir():
        path.unlink()
    assert score("--gt", "gt", "--html", "page.html").exit_code == 0
    assert (here / "page.html").read_text().count("data:image/jpeg") == 5


def test_each_row_opens_its_picture(here):
    result = score("--gt", "gt", "--html", "page.html", "--pictures", "all pictures")
    assert result.exit_code == 0
    assert names_below(here / "all pictures") == [f"0000{number}.html" for number in range(1, 6)]
    data = json.loads(re.search(r'id="data">(.*?)</script>', (here / "page.html").read_text())[1])
    links = {row[0]: link for row, link in zip(data["rows"], data["links"], strict=True)}
    # By increasing Dice.
    assert links == {
        name: f"all%20pictures/0000{number}.html" for number, name in enumerate("edcba", start=1)
    }
    first, second = ((here / "all pictures" / f"0000{number}.html").read_text() for number in (1, 2))
    assert "<h1><bdi>e</bdi></h1>" in first
    assert 'href="../page.html#images"' in first
    assert 'id="picture-before"' not in first
    assert 'id="picture-before" href="00001.html"' in second
    assert 'id="picture-after" href="00003.html"' in second
    assert score("--gt", "gt", "--html", "page.html", "--pictures", "all pictures").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pictures", "new"), "Give --html as well"),
        (("--html", "page.html", "--pictures", "gt"), "--pictures gt holds other files"),
        (("--html", "page.html", "--pictures", "none/new"), "no folder none"),
    ],
)
def test_pictures_that_cannot_be_written(here, arguments, message):
    result = score("--gt", "gt", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not (here / "scores.csv").exists()


@pytest.mark.parametrize("name", ["pred.csv", "gt.csv", "link.csv"])
def test_scores_never_overwrite_their_inputs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for source in ("pred.csv", "gt.csv"):
        (tmp_path / source).write_text("img,rle_mask\na_01.jpg,1 2\n")
    (tmp_path / "link.csv").symlink_to("gt.csv")
    arguments = ["score", "pred.csv", "--gt", "gt.csv", "--size", "4x4", "-o", name]
    result = CliRunner().invoke(group, arguments)
    assert isinstance(result.exception, UsageError)
    assert (tmp_path / name).read_text() == "img,rle_mask\na_01.jpg,1 2\n"


def test_rows_named_like_mask_files_are_paired(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("img,rle_mask\ncar_01_mask.jpg,1 1 4 1\n")
    write_mask(tmp_path / "gt" / "car_01_mask.png", [[1, 0], [0, 1]])
    result = CliRunner().invoke(group, ["score", "rows.csv", "--gt", "gt"])
    assert result.exit_code == 0, result.output
    assert "1.000000" in result.output


def test_pairs_empty_on_both_sides_are_counted(here):
    for name in ("f", "g"):
        write_mask(here / "out" / f"{name}.png", [[0, 0, 0, 0]])
        write_mask(here / "gt" / f"{name}.png", [[0, 0, 0, 0]])
    result = score("--gt", "gt")
    assert result.exit_code == 0, result.output
    without = (1 + 0.8 + 2 / 3 + 0.5) / 5
    assert f"Empty on both sides, counted as 1: 2; mean Dice without them: {without:.6f}\n" in result.stdout
    assert json.loads(score("--gt", "gt", "--json").stdout)["empty_on_both_sides"] == 2


@pytest.mark.parametrize("sides", [{"out": "predicted"}, {"gt": "true"}, {"out": "predicted", "gt": "true"}])
def test_a_side_without_any_car_is_an_error(here, sides):
    """Values that are not read as car must not pass for a perfect score."""
    for side in sides:
        for path in (here / side).iterdir():
            write_mask(path.with_suffix(".png"), [[0, 0, 0, 0]])
            if path.suffix != ".png":
                path.unlink()
    result = score("--gt", "gt", "--fail-under", "0.99")
    assert result.exit_code == 3
    for word in sides.values():
        assert f"Error: none of the 5 {word} masks that were compared has a car" in result.stderr
    assert ("--car-value" in result.stderr) == ("gt" in sides)


def test_rows_without_any_car_are_an_error_of_the_rows(here):
    (here / "rows.csv").write_text("img,rle_mask\n" + "".join(f"{name}.jpg,\n" for name in "abcde"))
    for arguments, word in [(("rows.csv", "--gt", "gt"), "predicted"), (("--gt", "rows.csv"), "true")]:
        result = score(*arguments)
        assert result.exit_code == 3
        assert (
            f"Error: none of the 5 {word} masks that were compared has a car: their rows in rows.csv are"
            " empty.\n"
        ) in result.stderr
        assert "--car-value" not in result.stderr
    assert (here / "scores.csv").exists()


def save_values(path, rows):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8)).save(path)


def test_masks_of_0_and_2_are_scored_and_said(here):
    for side in ("out", "gt"):
        for path in (here / side).iterdir():
            with Image.open(path) as image:
                values = np.where(np.asarray(image.convert("1")), np.uint8(2), np.uint8(0))
            path.unlink()
            save_values(path.with_suffix(".png"), values)
    result = score("--gt", "gt")
    assert result.exit_code == 0, result.output
    assert f"{(1 + 0.8 + 2 / 3 + 0.5) / 5:.6f}" in result.stdout
    assert result.stderr.splitlines() == [
        "In the predicted masks, 0 is background, 2 is car.",
        "In the true masks, 0 is background, 2 is car.",
    ]


def test_label_maps_need_a_car_value(here):
    for name in "abcde":
        (here / "gt" / f"{name}_mask.gif").unlink()
        save_values(here / "gt" / f"{name}.png", [[7, 7, 15, 255]])
    with pytest.raises(
        UsageError, match=r"masks in gt are car: they have the values 7, 15 and 255.*--car-value"
    ):
        CliRunner().invoke(group, ["score", "--gt", "gt"], catch_exceptions=False, standalone_mode=False)
    result = score("--gt", "gt", "--car-value", "7", "--ignore-value", "255")
    assert result.exit_code == 0, result.output
    rows = {row["image"]: row for row in read_table()}
    assert [float(rows[name]["dice"]) for name in "ab"] == [pytest.approx(2 / 3), 1]
    assert float(rows["a"]["pixel_accuracy"]) == pytest.approx(2 / 3)  # of three known pixels
    assert score("--gt", "gt", "--car-value", "7-15").exit_code == 0
    assert [int(row["area_true"]) for row in read_table()] == [3] * 5
    with pytest.raises(UsageError, match=r"has a pixel of --car-value 8\. They have the values 7, 15"):
        CliRunner().invoke(
            group, ["score", "--gt", "gt", "--car-value", "8"], catch_exceptions=False, standalone_mode=False
        )
    for wrong in ("x", "9-7", "70000", "-1"):
        assert score("--gt", "gt", "--car-value", wrong).exit_code == 2


def test_values_are_not_for_rows(here):
    (here / "gt.csv").write_text("img,rle_mask\na.jpg,1 1\n")
    result = score("--gt", "gt.csv", "--car-value", "1")
    assert isinstance(result.exception, UsageError)
    assert "--gt gt.csv has run-length rows" in str(result.exception)


def test_a_table_without_rows_is_refused(here):
    (here / "pred.csv").write_text("img,rle_mask\n")
    assert str(score("pred.csv", "--gt", "gt").exception) == "pred.csv has a header and no rows."


def draw_cars(here, *, inverted, corner=True):
    """Draw the masks of both sides again, of cars that touch no edge; ``corner`` is that of inverted ones."""
    for number, name in enumerate("abcde"):
        true = np.zeros((8, 12), bool)
        true[2:6, 1 + number : 6 + number] = True
        predicted = ~true if inverted else true
        predicted[0, 0] = inverted and corner
        write_mask(here / "out" / f"{name}.png", predicted)
        write_mask(here / "gt" / f"{name}_mask.gif", true)


def test_inverted_masks_are_pointed_out(here):
    doubt = "of the {} masks, the car covers all four corners, as if black were car"
    draw_cars(here, inverted=True)
    stderr = score("--gt", "gt").stderr
    assert doubt.format("predicted") in stderr
    assert doubt.format("true") not in stderr
    stderr = score("out", "--gt", "out").stderr
    assert doubt.format("predicted") in stderr
    assert doubt.format("true") in stderr
    draw_cars(here, inverted=False)
    assert "Warning" not in score("--gt", "gt").stderr


def test_masks_that_are_wrong_nearly_everywhere_are_pointed_out(here):
    draw_cars(here, inverted=True, corner=False)
    result = score("--gt", "gt")
    assert "Warning: nearly all pixels are wrong. The masks of one side seem to be inverted" in result.stderr


def test_masks_without_common_pixels_are_pointed_out(here):
    """A legal value that is not the car's: background in the last column."""
    for path in (here / "gt").iterdir():
        path.unlink()
        Image.fromarray(np.array([[3, 7, 3, 90]], np.uint8)).save(path.with_suffix(".png"))
    result = score("--gt", "gt", "--car-value", "90")
    assert "Warning: the mean Dice is 0.000, although the masks of both sides have cars" in result.stderr
    assert "--car-value" in result.stderr
    assert "Warning" not in score("--gt", "gt", "--car-value", "7").stderr
