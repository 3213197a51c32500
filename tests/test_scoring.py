import csv
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import names_below, write_mask

from carvana_batch.records import UsageError
from carvana_batch.scoring import Score, Scores, Unusable, defuse_formula, score_folders, write_scores


@pytest.fixture
def folders(tmp_path):
    """Two pairs that can be scored by hand, and one of everything that goes wrong."""
    predicted, truth = tmp_path / "out", tmp_path / "gt"
    write_mask(predicted / "b" / "half.png", [[1, 1, 0, 0], [0, 0, 0, 0]])
    write_mask(truth / "b" / "half_mask.gif", [[0, 1, 1, 1], [0, 0, 0, 0]])
    write_mask(predicted / "a.png", [[1, 0, 0]])
    write_mask(truth / "a.png", [[1, 0, 0]])
    write_mask(predicted / "only_predicted.png", [[1]])
    write_mask(truth / "only_true.png", [[1]])
    write_mask(predicted / "size.png", [[1, 1]])
    write_mask(truth / "size.png", [[1], [1]])
    write_mask(predicted / "torn.png", [[1, 1]])
    write_mask(truth / "torn.png", [[1, 1]])
    torn = predicted / "torn.png"
    torn.write_bytes(torn.read_bytes()[:40])
    write_mask(predicted / "_overlay" / "a.png", [[1]])
    return predicted, truth


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_each_pair_and_what_cannot_be_paired(folders, workers):
    steps = []
    scores = score_folders(*folders, workers=workers, on_progress=lambda *step: steps.append(step))
    assert scores.rows == (
        Score("a", 1, 1, 1, 1, 1, 1, 1),
        Score(
            "b/half",
            dice=2 / 5,
            iou=1 / 4,
            pixel_accuracy=5 / 8,
            precision=1 / 2,
            recall=1 / 3,
            area_true=3,
            area_predicted=2,
        ),
    )
    assert scores.missing == ("only_true",)
    assert scores.extra == ("only_predicted",)
    size, torn = scores.unusable
    assert size == Unusable("size", "The predicted mask is 2x1 pixels, the true one 1x2.")
    assert torn.image == "torn"
    assert "torn.png" in torn.reason
    assert not scores.complete
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_means_are_over_what_was_scored(folders):
    summary = score_folders(*folders).summary
    assert summary.images == 2
    assert summary.dice == pytest.approx(0.7)
    assert summary.iou == pytest.approx(0.625)
    assert summary.pixel_accuracy == pytest.approx(13 / 16)
    assert summary.precision == pytest.approx(0.75)
    assert summary.recall == pytest.approx(2 / 3)
    # Two values: the quantiles lie on the line between 0.4 and 1.
    assert summary.dice_05 == pytest.approx(0.43)
    assert summary.dice_50 == pytest.approx(0.7)
    assert summary.dice_95 == pytest.approx(0.97)


def make_score(image, dice):
    return Score(image, dice, dice, dice, dice, dice, 1, 1)


def test_quantiles_of_many():
    scores = Scores(tuple(make_score(str(n), n / 100) for n in range(101)), (), (), ())
    assert scores.summary.dice_05 == pytest.approx(0.05)
    assert scores.summary.dice_50 == pytest.approx(0.50)
    assert scores.summary.dice_95 == pytest.approx(0.95)
    assert json.loads(json.dumps(asdict(scores.summary)))["images"] == 101
    assert scores.complete


def test_the_worst_come_first_and_equals_in_order_of_their_names():
    scores = Scores((make_score("c", 0.5), make_score("a", 0.5), make_score("b", 0.1)), (), (), ())
    assert [row.image for row in scores.find_worst(2)] == ["b", "a"]
    assert [row.image for row in scores.find_worst(9)] == ["b", "a", "c"]


def test_nothing_scored_has_no_mean():
    assert Scores((), (), (), (Unusable("a", "torn"),)).summary is None


def test_folders_without_a_common_name_are_refused(tmp_path):
    write_mask(tmp_path / "out" / "a.png", [[1]])
    write_mask(tmp_path / "gt" / "b.png", [[1]])
    with pytest.raises(UsageError, match=r"Nothing to compare.*such as a\).*such as b\)"):
        score_folders(tmp_path / "out", tmp_path / "gt")
    with pytest.raises(UsageError, match="missing does not exist"):
        score_folders(tmp_path / "out", tmp_path / "missing")


def test_the_table_says_what_was_scored(folders, tmp_path):
    scores = score_folders(*folders)
    write_scores(scores.rows, tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text() == (
        "image,dice,iou,pixel_accuracy,precision,recall,area_true,area_predicted\n"
        "a,1.00000000,1.00000000,1.00000000,1.00000000,1.00000000,1,1\n"
        "b/half,0.40000000,0.25000000,0.62500000,0.50000000,0.33333333,3,2\n"
    )
    assert names_below(tmp_path) == ["gt", "out", "scores.csv"]


def test_names_in_the_table_are_quoted_and_never_formulas(tmp_path):
    names = ["=cmd()", "+1", "-1", "@a", "a,b", "a\nb", "[red]", "a=b", "ä\udcff"]
    write_scores([make_score(name, 1.0) for name in names], tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        read = [row["image"] for row in csv.DictReader(file)]
    assert read == ["'=cmd()", "'+1", "'-1", "'@a", "a,b", "a\nb", "[red]", "a=b", "ä\udcff"]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@1", "\t=1", "\r=1"])
def test_formulas_are_defused(text):
    assert defuse_formula(text) == "'" + text


@pytest.mark.parametrize("text", ["", "a", "0=1", "'=1", " =1", "00087a6bd4dc_01"])
def test_other_text_is_left(text):
    assert defuse_formula(text) == text


@pytest.mark.real
def test_truth_against_itself(tmp_path):
    if "CARVANA_DATA" not in os.environ:
        pytest.skip("CARVANA_DATA names no folder with real photos")
    truth = Path(os.environ["CARVANA_DATA"]) / "val" / "masks"
    some = tmp_path / "out"
    some.mkdir()
    for path in sorted(truth.glob("*.gif"))[:8]:
        (some / path.name).symlink_to(path)
    scores = score_folders(some, truth)
    assert [row.dice for row in scores.rows] == [1.0] * 8
    assert len(scores.missing) == len(list(truth.glob("*.gif"))) - 8
