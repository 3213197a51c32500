import csv
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from helpers import names_below, write_mask

from carvana_batch import scoring
from carvana_batch.commands import group
from carvana_batch.records import QualityGateError, UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """``out`` and ``gt`` with five pairs, whose Dice is 1, 0.8, 2/3, 0.5 and 0."""
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


def test_summary_worst_three_and_table(here):
    result = score("--gt", "gt")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    values = dict(line.strip("│ ").split("│") for line in result.stdout.splitlines() if line.startswith("│"))
    values = {name.strip(): value.strip() for name, value in values.items()}
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
    assert "Lowest Dice:\n  0.000000  e\n  0.500000  d\n  0.666667  c\n" in result.stdout
    assert result.stdout.endswith("Each image's scores: scores.csv\n")
    with (here / "scores.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a", "b", "c", "d", "e"]


def test_what_cannot_be_compared_is_named_and_exits_3(here):
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
        "Pairs that cannot be compared: 1\n"
        "  e: The predicted mask is 4x1 pixels, the true one 2x1.\n" in result.stdout
    )
    assert len((here / "s.csv").read_text().splitlines()) == 1 + 4


def test_one_json_object(here):
    write_mask(here / "gt" / "true.png", [[1]])
    write_mask(here / "gt" / "e_mask.gif", [[1, 0]])
    result = score("--gt", "gt", "--json")
    assert result.exit_code == 3
    content = json.loads(result.stdout)
    assert list(content) == ["summary", "worst", "missing", "extra", "unusable", "scores"]
    assert content["summary"]["images"] == 4
    assert content["summary"]["dice"] == pytest.approx((1 + 0.8 + 2 / 3 + 0.5) / 4)
    assert [row["image"] for row in content["worst"]] == ["d", "c", "b"]
    assert (content["missing"], content["extra"]) == (["true"], [])
    assert content["unusable"] == [
        {"image": "e", "reason": "The predicted mask is 4x1 pixels, the true one 2x1."}
    ]
    assert content["scores"] == "scores.csv"
    assert (here / "scores.csv").exists()


def test_nothing_could_be_scored(here):
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
def test_the_quality_gate_closes_after_everything_is_written(here, limit, is_met):
    result = score("--gt", "gt", "--fail-under", limit)
    assert "mean Dice" in result.stdout
    assert (here / "scores.csv").exists()
    if is_met:
        assert result.exit_code == 0
    else:
        assert isinstance(result.exception, QualityGateError)
        assert str(result.exception) == f"The mean Dice is 0.59333333, below --fail-under {limit}."


def test_a_gate_that_is_missed_outweighs_missing_masks(here):
    write_mask(here / "gt" / "true.png", [[1]])
    assert isinstance(score("--gt", "gt", "--fail-under", "1").exception, QualityGateError)
    assert score("--gt", "gt", "--fail-under", "0").exit_code == 3


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("limit", ["1.5", "-1", "x"])
def test_a_gate_outside_of_0_to_1_is_refused(limit):
    result = score("--gt", "gt", "--fail-under", limit)
    assert result.exit_code == 2
    assert "--fail-under" in result.stderr


def test_wrong_usage_is_told_before_a_mask_is_read(here, monkeypatch):
    monkeypatch.setattr(scoring, "read_mask", lambda _: pytest.fail("read a mask"))
    result = score()
    assert result.exit_code == 2
    assert "--gt" in result.stderr
    for arguments, message in [
        (["missing", "--gt", "gt"], "missing does not exist"),
        (["--gt", "missing"], "missing does not exist"),
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


def test_in_a_pipe(here):
    write_mask(here / "gt" / ("long" * 30 + ".png"), [[1]])
    command = [sys.executable, "-W", "error", "-m", "carvana_batch", "score", "--gt", "gt"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert (result.returncode, result.stderr) == (3, "")
    assert "mean Dice" in result.stdout
    assert "\x1b" not in result.stdout
    assert "  " + "long" * 30 + "\n" in result.stdout
    result = subprocess.run(
        [*command, "--fail-under=0.9", "--json"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 4
    assert json.loads(result.stdout)["summary"]["images"] == 5
    assert result.stderr == "Error: The mean Dice is 0.59333333, below --fail-under 0.9.\n"
