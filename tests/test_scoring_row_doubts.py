"""What score says about rows that are read with the wrong size or order of pixels."""

import numpy as np
import pytest
from helpers import store, with_orientation, write_mask
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.masks import rle
from carvana_batch.scoring.compare import compare_masks
from carvana_batch.submission.write import write_rows

ASSUMED = "Assumed 1918x1280 pixels, the competition's size; --size changes it."


def car(width, height, left=0.2):
    """A mask that is round below and flat above."""
    y, x = np.mgrid[:height, :width]
    return ((x / width - left - 0.3) ** 2 + (y / height - 0.5) ** 2 < 0.09) & (y > height / 3)


@pytest.fixture
def masks(tmp_path):
    """Five masks of 96x64 as files below ``gt``, and their values."""
    masks = {f"car_{number}": car(96, 64, number / 10) for number in range(5)}
    for name, mask in masks.items():
        write_mask(tmp_path / "gt" / f"{name}.png", mask)
    return masks


def write_all(path, masks):
    write_rows(path, [(name, rle.encode(mask)) for name, mask in masks.items()])
    return path


def test_right_rows_need_no_note(masks, tmp_path):
    rows = write_all(tmp_path / "rows.csv", masks)
    assert compare_masks(rows, tmp_path / "gt").notes == ()
    assert compare_masks(rows, rows, size=(96, 64)).notes == ()


@pytest.mark.parametrize("predicted", [True, False])
def test_rows_down_the_columns_are_named_with_both_dice(masks, tmp_path, predicted):
    rows = write_all(tmp_path / "rows.csv", {name: mask.T for name, mask in masks.items()})
    scores = compare_masks(*((rows, tmp_path / "gt") if predicted else (tmp_path / "gt", rows)))
    (note,) = scores.notes
    assert "rows.csv look column-major" in note
    assert f": {scores.summary.dice:.2f} as read, 1.00 column-major." in note
    assert "--size 96x64 --rle-order columns" in note
    assert scores.summary.dice < 0.8


def test_the_dice_tells_the_order_of_square_masks(tmp_path):
    mask = car(64, 64, left=0)
    write_mask(tmp_path / "gt" / "a.png", mask)
    rows = write_all(tmp_path / "rows.csv", {"a": mask.T})
    (note,) = compare_masks(rows, tmp_path / "gt").notes
    assert "1.00 column-major" in note


def test_rows_of_another_size_than_the_masks_are_named(masks, tmp_path):
    rows = write_all(tmp_path / "rows.csv", {name: car(60, 50) for name in masks})
    (note,) = compare_masks(rows, tmp_path / "gt").notes
    assert "rows.csv are read with the wrong size: in 5 of 5 of them" in note
    assert "60 pixels apart" in note


def test_the_assumed_size_is_told(tmp_path):
    rows = write_all(tmp_path / "rows.csv", {"a": car(1918, 1280)})
    assert compare_masks(rows, rows).notes == (ASSUMED,)


def test_the_way_to_masks_of_another_size_is_named_once(tmp_path):
    """Rows of half the size of the true masks."""
    rows = write_all(tmp_path / "rows.csv", {name: car(480, 320) for name in "abc"})
    for name in "abc":
        write_mask(tmp_path / "gt" / f"{name}.png", car(960, 640))
    scores = compare_masks(rows, tmp_path / "gt")
    assert len(scores.unusable) == 3
    assert all(failure.reason.endswith("are 480 pixels apart.") for failure in scores.unusable)
    (note,) = scores.notes
    first, second = (
        f"decode {rows} OUT --size 480x320`",
        f"decode {rows} OUT --size 960x640 --rle-order rows`",
    )
    assert 0 < note.index(first) < note.index(second)


def test_another_size_than_the_assumed_one_is_refused(tmp_path):
    rows = write_all(tmp_path / "rows.csv", {"a": car(960, 640)})
    with pytest.raises(UsageError, match=r"wrong size: in 1 of 1 .* by --size 960xHEIGHT"):
        compare_masks(rows, rows)
    large = tmp_path / "large.csv"
    write_rows(large, [("a", f"7 1 {1918 * 1280} 3")])
    for sides in [(large, rows), (rows, large)]:
        with pytest.raises(
            UsageError, match=r"row of a in .*large\.csv reaches pixel 2,455,042, .* by --size"
        ):
            compare_masks(*sides)


def test_photos_as_wide_as_the_assumed_height(tmp_path):
    rows = write_all(tmp_path / "rows.csv", {"a": car(1280, 720)})
    scores = compare_masks(rows, rows)
    assert scores.notes[0] == ASSUMED
    assert all("if photos are 1280 pixels wide, give --size 1280xHEIGHT" in note for note in scores.notes[1:])
    assert len(scores.notes) == 3


def test_unusable_rows_are_passed_over(masks, tmp_path):
    rows = {name: rle.encode(mask.T) for name, mask in masks.items()}
    rows["car_0"] = "1 2 " * 40
    rows["car_1"] = ""
    write_rows(tmp_path / "rows.csv", rows.items())
    (tmp_path / "gt" / "car_2.png").write_text("text")
    scores = compare_masks(tmp_path / "rows.csv", tmp_path / "gt")
    assert ["look column-major" in note for note in scores.notes] == [True]
    assert [failure.id for failure in scores.unusable] == ["car_0", "car_2"]


def write_sideways(folder, masks, sideways, orientation, upright_rows):
    """Photos, of which some are stored sideways, masks and rows.csv; either masks or rows are as stored."""
    rows = {}
    (folder / "in").mkdir()
    for name, mask in masks.items():
        own = orientation if name in sideways else 1
        photo = with_orientation(Image.new("RGB", mask.shape[::-1]), own)
        store(photo, own).save(folder / "in" / f"{name}.png", exif=photo.getexif())
        stored = np.asarray(store(Image.fromarray(mask), own))
        rows[name] = mask if upright_rows else stored
        write_mask(folder / "gt" / f"{name}.png", stored if upright_rows else mask)
    return write_all(folder / "rows.csv", rows)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("upright_rows", [True, False])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_rows_of_sideways_photos_are_turned(masks, tmp_path, orientation, upright_rows, count):
    sideways = list(masks)[:count]
    rows = write_sideways(tmp_path, masks, sideways, orientation, upright_rows)
    for sides in [(rows, tmp_path / "gt"), (tmp_path / "gt", rows)]:
        scores = compare_masks(*sides, photos=tmp_path / "in")
        assert scores.complete
        assert (scores.notes, scores.turned) == ((), count)
        assert [row.dice for row in scores.rows] == [1] * 5


@pytest.mark.parametrize("upright_rows", [True, False])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_rows_of_sideways_photos_without_the_photos(masks, tmp_path, upright_rows, count):
    sideways = list(masks)[:count]
    rows = write_sideways(tmp_path, masks, sideways, 6, upright_rows)
    scores = compare_masks(tmp_path / "gt", rows)
    assert [row.dice for row in scores.rows] == [1] * (5 - count)
    assert [failure.id for failure in scores.unusable] == sideways
    assert all("give --images" in failure.reason for failure in scores.unusable)
    assert all("--rle-order columns" in failure.reason for failure in scores.unusable)
    assert len(scores.notes) == (count > 1)
    assert all("lies on its side; give --images" in note for note in scores.notes)


def test_rows_of_both_sides_for_sideways_photos(masks, tmp_path):
    upright = write_all(tmp_path / "upright.csv", masks)
    rows = write_sideways(tmp_path, masks, ["car_1", "car_2"], 8, upright_rows=False)
    scores = compare_masks(rows, upright, size=(96, 64), photos=tmp_path / "in")
    assert [row.dice for row in scores.rows] == [1] * 5
    assert (scores.turned, scores.complete) == (2, True)
    without = compare_masks(rows, upright, size=(96, 64))
    assert [failure.id for failure in without.unusable] == ["car_1", "car_2"]


def test_rows_down_the_columns_of_upright_photos_with_images(masks, tmp_path):
    write_sideways(tmp_path, masks, [], 1, upright_rows=True)
    rows = write_all(tmp_path / "columns.csv", {name: mask.T for name, mask in masks.items()})
    (note,) = compare_masks(rows, tmp_path / "gt", photos=tmp_path / "in").notes
    assert "1.00 column-major" in note


def test_rows_down_the_columns_for_sideways_photos(masks, tmp_path):
    write_sideways(tmp_path, masks, list(masks), 6, upright_rows=False)
    rows = write_all(tmp_path / "columns.csv", {name: mask.T for name, mask in masks.items()})
    (note,) = compare_masks(rows, tmp_path / "gt", photos=tmp_path / "in").notes
    assert "1.00 column-major" in note


def test_single_rows_of_another_size_cannot_be_compared(masks, tmp_path):
    rows = write_all(tmp_path / "rows.csv", masks | {"car_2": car(60, 50)})
    scores = compare_masks(rows, tmp_path / "gt")
    (failure,) = scores.unusable
    assert failure.id == "car_2"
    assert "not of a mask of 96x64 pixels: the lines of its mask are 60 pixels apart" in failure.reason
    assert [row.dice for row in scores.rows] == [1] * 4
