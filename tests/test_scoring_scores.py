import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers import names_below

from carvana_batch.files import table_cell
from carvana_batch.scoring.scores import (
    AVERAGED_COLUMNS,
    COLUMNS,
    MASK_COLUMNS,
    MEANINGS,
    PIXEL_COUNT_COLUMNS,
    WEIGHTS,
    Average,
    Score,
    Scores,
    average,
    score_mask,
    summarise,
    write_scores,
)
from carvana_batch.values import Failure, PackedMask


def make_score(image, dice):
    return Score(image, dice, dice, dice, dice, dice, 1, 1)


def test_summary_weights_images_equally():
    """With two values, percentiles are interpolated linearly between 0.4 and 1."""
    rows = [Score("a", 1.0, 1.0, 1.0, 1.0, 1.0, 1, 1), Score("b/half", 0.4, 0.25, 0.625, 0.5, 1 / 3, 3, 2)]
    summary = summarise(rows)
    assert summary.images == 2
    assert summary.dice == pytest.approx(0.7)
    assert summary.iou == pytest.approx(0.625)
    assert summary.pixel_accuracy == pytest.approx(13 / 16)
    assert summary.precision == pytest.approx(0.75)
    assert summary.recall == pytest.approx(2 / 3)
    assert summary.dice_05 == pytest.approx(0.43)
    assert summary.dice_50 == pytest.approx(0.7)
    assert summary.dice_95 == pytest.approx(0.97)


def test_percentiles_of_many_images():
    scores = Scores(tuple(make_score(str(n), n / 100) for n in range(101)), (), (), ())
    assert scores.summary.dice_05 == pytest.approx(0.05)
    assert scores.summary.dice_50 == pytest.approx(0.50)
    assert scores.summary.dice_95 == pytest.approx(0.95)
    assert json.loads(json.dumps(asdict(scores.summary)))["images"] == 101
    assert scores.complete


def test_scores_print_as_their_mean():
    rows = (make_score("a", 0.5), make_score("b", 0.75))
    assert str(Scores(rows, (), (), ())) == "<Scores of 2 images, mean Dice 0.6250>"
    scores = Scores((), ("a", "b"), ("c",), (Failure("d", "read", "is damaged", "d.png"),))
    assert repr(scores) == "<Scores of 0 images, no mean Dice, 2 missing, 1 extra, 1 unusable>"


def test_worst_images_are_sorted_by_dice_then_name():
    scores = Scores((make_score("c", 0.5), make_score("a", 0.5), make_score("b", 0.1)), (), (), ())
    assert [row.image for row in scores.find_worst(2)] == ["b", "a"]
    assert [row.image for row in scores.find_worst(9)] == ["b", "a", "c"]


def test_no_summary_without_scored_images():
    assert Scores((), (), (), (Failure("a", "read", "torn"),)).summary is None


def test_csv_of_pixel_count_metrics(tmp_path):
    rows = [Score("a", 1.0, 1.0, 1.0, 1.0, 1.0, 1, 1), Score("b/half", 0.4, 0.25, 0.625, 0.5, 1 / 3, 3, 2)]
    write_scores(rows, tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text() == (
        "image,dice,iou,pixel_accuracy,precision,recall,area_true,area_predicted\n"
        "a,1.00000000,1.00000000,1.00000000,1.00000000,1.00000000,1,1\n"
        "b/half,0.40000000,0.25000000,0.62500000,0.50000000,0.33333333,3,2\n"
    )
    assert names_below(tmp_path) == ["scores.csv"]


def test_csv_leaves_undefined_values_empty(tmp_path):
    row = replace(make_score("a", 1.0), boundary_mean=2.5, thin_pixels=0, lower_pixels=7, lower_error=0.0)
    write_scores([row], tmp_path / "scores.csv", MASK_COLUMNS)
    with (tmp_path / "scores.csv").open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert tuple(read) == MASK_COLUMNS
    assert (read["boundary_mean"], read["boundary_p95"]) == ("2.50000000", "")
    assert (read["thin_pixels"], read["thin_recall"]) == ("0", "")
    assert (read["lower_pixels"], read["lower_error"]) == ("7", "0.00000000")
    write_scores([], tmp_path / "scores.csv", COLUMNS)
    assert (tmp_path / "scores.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_every_column_is_explained_and_averaged_or_a_weight():
    assert tuple(MEANINGS) == COLUMNS
    assert set(PIXEL_COUNT_COLUMNS) < set(MASK_COLUMNS) < set(COLUMNS)
    assert set(AVERAGED_COLUMNS) | set(WEIGHTS.values()) == set(COLUMNS) - set(PIXEL_COUNT_COLUMNS)


def test_csv_names_are_quoted_and_never_formulas(tmp_path):
    names = ["=cmd()", "+1", "-1", "@a", "a,b", "a\nb", "[red]", "a=b", "ä\udcff"]
    write_scores([make_score(name, 1.0) for name in names], tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        read = [row["image"] for row in csv.DictReader(file)]
    assert read == ["'=cmd()", "'+1", "'-1", "'@a", "a,b", r"a\x0ab", "[red]", "a=b", "ä\udcff"]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@1", "\uff1d1", "-x;y", "=1-1"])
def test_formulas_are_defused(text):
    assert table_cell(text) == "'" + text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a;=1", "a;'=1"),
        ("a;-1;b;@c;d", "a;'-1;b;'@c;d"),
        ("=1;=2", "'=1;'=2"),
        ("a\t=1", r"a\x09=1"),
        ("\t=1", r"\x09=1"),
        ("\r=1", r"\x0d=1"),
    ],
)
def test_formulas_after_other_delimiters_are_defused(text, expected):
    assert table_cell(text) == expected


@pytest.mark.parametrize("text", ["", "a", "0=1", "a,-1", "a-1;b=2", "'=1", " =1", "00087a6bd4dc_01"])
def test_other_text_is_unchanged(text):
    assert table_cell(text) == text


def test_averages_skip_undefined_values():
    rows = [
        replace(make_score("a", 1.0), boundary_mean=1.0, thin_pixels=10, thin_recall=0.5),
        replace(make_score("b", 1.0), boundary_mean=None, thin_pixels=0, thin_recall=None),
        replace(make_score("c", 1.0), boundary_mean=4.0, thin_pixels=90, thin_recall=1.0),
    ]
    averages = average(rows, ("image", "boundary_mean", "thin_recall", "similar_error"))
    assert averages == {
        "boundary_mean": Average(2.5, images=2),
        "thin_recall": Average(0.95, images=2, pixels=100),  # each pixel counts equally
        "similar_error": Average(None, images=0, pixels=0),
    }
    assert average(rows, PIXEL_COUNT_COLUMNS) == {}
    assert average([], ("boundary_mean",)) == {"boundary_mean": Average(None, 0)}


def test_averages_of_parts_are_ratios_of_sums():
    """30 wrong pixels along 10 pixels of the outline, and 10 along 90."""
    rows = [
        replace(make_score("a", 1.0), lower_pixels=10, lower_error=3.0),
        replace(make_score("b", 1.0), lower_pixels=90, lower_error=10 / 90),
    ]
    assert average(rows)["lower_error"].value == pytest.approx((30 + 10) / (10 + 90))


def make_scores(*images):
    rows = tuple(replace(make_score(image, n / 10), boundary_mean=1.0 * n) for n, image in enumerate(images))
    return Scores(rows, (), (), (), columns=MASK_COLUMNS)


def test_cars_and_views():
    scores = make_scores("a/x_01", "a/x_02", "y_01", "x_y_02")
    cars = {car.name: car for car in scores.cars}
    assert list(cars) == ["a/x", "x_y", "y"]
    assert [row.image for row in cars["a/x"].rows] == ["a/x_01", "a/x_02"]
    assert cars["a/x"].summary.dice == pytest.approx(0.05)
    assert cars["a/x"].averages["boundary_mean"] == Average(0.5, images=2)
    views = {view.name: view for view in scores.views}
    assert list(views) == ["01", "02"]
    assert views["02"].summary.dice == pytest.approx(0.2)
    assert [views[name].summary.images for name in views] == [2, 2]


def test_no_groups_if_each_has_a_single_image():
    scores = make_scores("IMG_1", "IMG_2", "IMG_3")
    assert scores.views == []
    assert [car.name for car in scores.cars] == ["IMG"]
    scores = make_scores("a", "b", "_c")
    assert (scores.cars, scores.views) == ([], [])
    assert make_scores().cars == []


def test_images_without_a_view_are_not_grouped_by_view():
    views = make_scores("a_01", "b_01", "c").views
    assert [(view.name, view.summary.images) for view in views] == [("01", 2)]


def test_scores_without_a_reader_cannot_read_masks():
    with pytest.raises(ValueError, match="do not know where their masks are"):
        make_scores("a_01").read_masks("a_01")


def test_missing_photo_makes_scores_incomplete():
    assert Scores((make_score("a", 1),), (), (), ()).complete
    assert not Scores(
        (make_score("a", 1),), (), (), (), unseen=(Failure("a", "decode", "no photo"),)
    ).complete


def test_score_of_two_masks():
    predicted, true = (
        PackedMask.from_bool(np.array(mask, bool)) for mask in ([[1, 1, 0, 0]], [[0, 1, 1, 1]])
    )
    assert score_mask("a", predicted, true) == Score("a", 2 / 5, 1 / 4, 1 / 4, 1 / 2, 1 / 3, 3, 2)
