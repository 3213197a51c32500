import math
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from helpers import store, with_orientation, write_mask
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.scoring.compare import compare_masks
from carvana_batch.scoring.outline import compare_outlines
from carvana_batch.scoring.page.pictures import read_worst
from carvana_batch.scoring.scores import COLUMNS, MASK_COLUMNS, PIXEL_COUNT_COLUMNS
from carvana_batch.submission.write import write_rows, write_submission
from carvana_batch.values import Failure, PackedMask


@pytest.fixture
def folders(tmp_path):
    """Folders with two pairs that can be scored by hand, and one mask for each kind of problem."""
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


def pick(row, columns):
    return {column: getattr(row, column) for column in columns}


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_pairs_are_scored_and_the_rest_is_named(folders, workers):
    steps = []
    scores = compare_masks(*folders, workers=workers, on_progress=lambda *step: steps.append(step))
    perfect, half = scores.rows
    assert pick(perfect, PIXEL_COUNT_COLUMNS) == {
        **dict.fromkeys(["dice", "iou", "pixel_accuracy", "precision", "recall"], 1),
        **dict.fromkeys(["area_true", "area_predicted"], 1),
        "image": "a",
    }
    assert pick(half, PIXEL_COUNT_COLUMNS) == {
        "image": "b/half",
        "dice": 2 / 5,
        "iou": 1 / 4,
        "pixel_accuracy": 5 / 8,
        "precision": 1 / 2,
        "recall": 1 / 3,
        "area_true": 3,
        "area_predicted": 2,
    }
    assert scores.missing == ("only_true",)
    assert scores.extra == ("only_predicted",)
    size, torn = scores.unusable
    assert (size.id, size.stage) == ("size", "compare")
    assert size.reason.startswith(
        "The predicted mask is 2x1 pixels, the true one 1x2. Its sides are swapped: "
    )
    assert "give --images" in size.reason
    assert (torn.id, torn.stage) == ("torn", "read")
    assert "torn.png" in torn.reason
    assert not scores.complete
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_metrics_from_the_masks_alone(folders):
    scores = compare_masks(*folders)
    assert scores.columns == MASK_COLUMNS
    perfect, half = scores.rows
    assert (perfect.boundary_mean, perfect.boundary_p95, perfect.band_dice) == (0, 0, 1)
    assert (perfect.outline_pixels, perfect.outline_error) == (1, 0)
    # The outlines are in columns 0, 1 and 1, 2, 3: distances 1, 0 and 0, 1, 2.
    assert half.boundary_mean == pytest.approx(4 / 5)
    assert half.boundary_p95 == pytest.approx(1.8)
    assert half.band_dice == pytest.approx(2 / 5)
    assert (half.outline_pixels, half.outline_error) == (3, 1)
    # The mask is one row high, so all of it is thin and part of the lower outline.
    assert (half.thin_pixels, half.thin_recall) == (3, pytest.approx(1 / 3))
    assert (half.lower_pixels, half.lower_error) == (3, 1)
    assert (half.similar_pixels, half.similar_share, half.similar_error) == (None, None, None)


def draw_car(folder, photos, name="car_01"):
    """Draw a black car whose left half is in front of a black wall; the prediction lacks three columns."""
    true = np.zeros((80, 120), bool)
    true[20:60, 20:100] = True
    predicted = true.copy()
    predicted[:, 97:] = False
    photo = np.where(true, 0, 255).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    photo[:, :60] = 0
    write_mask(folder / "out" / f"{name}.png", predicted)
    write_mask(folder / "gt" / f"{name}_mask.gif", true)
    photos.mkdir(exist_ok=True)
    Image.fromarray(photo).save(photos / f"{name}.png")


def test_metrics_that_need_the_photo(tmp_path):
    draw_car(tmp_path, tmp_path / "in")
    scores = compare_masks(tmp_path / "out", tmp_path / "gt", photos=tmp_path / "in")
    assert scores.columns == COLUMNS
    assert scores.complete
    (row,) = scores.rows
    assert all(value is not None for name, value in pick(row, COLUMNS).items() if name != "thin_recall")
    assert row.outline_pixels == 2 * 80 + 2 * 38
    # The left edge, and the upper and lower ones up to where the 11x11 square reaches the white background.
    assert row.similar_pixels >= 38 + 2 * (60 - 20 - 5)
    assert row.similar_share == pytest.approx(row.similar_pixels / row.outline_pixels)
    assert row.similar_error == 0
    assert row.lower_error == pytest.approx(3 * 3 / 80, abs=0.1)
    assert row.outline_error == pytest.approx(3 * 40 / row.outline_pixels)
    without = compare_masks(tmp_path / "out", tmp_path / "gt").rows[0]
    assert pick(without, MASK_COLUMNS) == pick(row, MASK_COLUMNS)


def test_unusable_photo_leaves_only_its_metrics_undefined(tmp_path):
    photos = tmp_path / "in"
    for name in ("bare_01", "good_01", "small_01", "torn_01"):
        draw_car(tmp_path, photos, name)
    (photos / "bare_01.png").unlink()
    Image.new("RGB", (60, 40)).save(photos / "small_01.png")
    (photos / "torn_01.png").write_bytes((photos / "torn_01.png").read_bytes()[:60])
    scores = compare_masks(tmp_path / "out", tmp_path / "gt", photos=photos)
    assert not scores.complete
    assert [row.similar_pixels is None for row in scores.rows] == [True, False, True, True]
    assert len({row.outline_error for row in scores.rows}) == 1
    bare, small, torn = scores.unseen
    assert bare == Failure("bare_01", "decode", "There is no photo of this name.")
    reason = f"{photos / 'small_01.png'} is 60x40 pixels, the masks 120x80."
    assert small == Failure("small_01", "decode", reason)
    assert torn.id == "torn_01"
    assert "torn_01.png" in torn.reason
    assert scores.averages["similar_error"].images == 1
    assert scores.averages["outline_error"].images == 4


@pytest.mark.parametrize("orientation", range(5, 9))
@pytest.mark.parametrize("upright_side", ["out", "gt", "both", "neither"])
def test_masks_of_sideways_photos_are_turned(tmp_path, orientation, upright_side):
    generator = np.random.default_rng(orientation)
    photo = Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8))
    predicted = np.zeros((40, 60), np.uint8)
    predicted[5:20, 10:35] = 255
    true = np.roll(predicted, (3, 2), (0, 1))
    for folder in ("in", "out", "gt", "upright_in", "upright_out", "upright_gt"):
        (tmp_path / folder).mkdir()
    for folder, mask in (("out", predicted), ("gt", true)):
        image = Image.fromarray(mask)
        image.save(tmp_path / f"upright_{folder}" / "a.png")
        stored = image if upright_side in {folder, "both"} else store(image, orientation)
        stored.save(tmp_path / folder / "a.png")
    photo.save(tmp_path / "upright_in" / "a.png")
    exif = with_orientation(photo, orientation).getexif()
    store(photo, orientation).save(tmp_path / "in" / "a.png", exif=exif)
    expected = compare_masks(
        tmp_path / "upright_out", tmp_path / "upright_gt", photos=tmp_path / "upright_in"
    ).rows[0]
    scores = compare_masks(tmp_path / "out", tmp_path / "gt", photos=tmp_path / "in")
    assert scores.complete
    assert (scores.turned, scores.unclear) == (int(upright_side in {"out", "gt"}), 0)
    for column in COLUMNS:  # also along the lower outline, which depends on where the ground is
        assert getattr(scores.rows[0], column) == pytest.approx(getattr(expected, column)), column
    masks = scores.read_masks("a")
    assert (masks[0].width, masks[0].height) == (masks[1].width, masks[1].height)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_it_is_said_where_sizes_do_not_tell_how_a_mask_lies(tmp_path, orientation):
    size = (8, 5) if orientation < 5 else (6, 6)
    photo = Image.new("RGB", size)
    for folder in ("in", "out", "gt"):
        (tmp_path / folder).mkdir()
        exif = with_orientation(photo, orientation).getexif() if folder == "in" else None
        photo.save(tmp_path / folder / "a.png", exif=exif)
    scores = compare_masks(tmp_path / "out", tmp_path / "gt", photos=tmp_path / "in")
    assert (scores.turned, scores.unclear, scores.complete) == (0, 1, True)


def test_swapped_sides_that_the_photo_does_not_explain(tmp_path):
    for folder in ("in", "out", "gt"):
        (tmp_path / folder).mkdir()
    for name, orientation in (("a", 1), ("b", 3), ("c", 6), ("d", 6)):
        photo = Image.new("RGB", (9, 4) if name == "c" else (8, 5))
        photo.save(tmp_path / "in" / f"{name}.png", exif=with_orientation(photo, orientation).getexif())
        write_mask(tmp_path / "out" / f"{name}.png", np.ones((5, 8)))
        write_mask(tmp_path / "gt" / f"{name}.png", np.ones((8, 5)))
    (tmp_path / "in" / "d.png").write_bytes(b"not a photo")
    scores = compare_masks(tmp_path / "out", tmp_path / "gt", photos=tmp_path / "in")
    assert [failure.id for failure in scores.unusable] == ["a", "b", "c", "d"]
    assert scores.unusable[0].reason == "The predicted mask is 8x5 pixels, the true one 5x8."
    assert "d.png is not an image" in scores.unusable[3].reason


def test_photos_without_a_common_name_are_refused(tmp_path):
    draw_car(tmp_path, tmp_path / "in")
    draw_car(tmp_path / "other", tmp_path / "other_in", "b_02")
    with pytest.raises(UsageError, match=r"--images .*other_in \(such as b_02\).*such as car_01\)"):
        compare_masks(tmp_path / "out", tmp_path / "gt", photos=tmp_path / "other_in")
    with pytest.raises(UsageError, match=r"^--images: There is no file or folder"):
        compare_masks(tmp_path / "out", tmp_path / "gt", photos=tmp_path / "missing")


def test_rows_score_the_same_as_their_masks(tmp_path):
    draw_car(tmp_path, tmp_path / "in")
    draw_car(tmp_path, tmp_path / "in", "car_02")
    out, gt = tmp_path / "out", tmp_path / "gt"
    predicted, true = tmp_path / "predicted.csv.gz", tmp_path / "true.zip"
    write_submission(out, predicted, size=None)
    write_submission(gt, true, size=None)
    expected = compare_masks(out, gt)
    assert compare_masks(predicted, gt) == compare_masks(out, true) == expected
    assert compare_masks(predicted, true, size=(120, 80)) == expected
    for scores in (compare_masks(predicted, gt), compare_masks(predicted, true, size=(120, 80))):
        predicted_mask, true_mask = scores.read_masks("car_02")
        assert (predicted_mask.to_bool().sum(), true_mask.to_bool().sum()) == (77 * 40, 80 * 40)
    with pytest.raises(UsageError, match=r"--size is for two files.*gt have their own size"):
        compare_masks(predicted, gt, size=(120, 80))


def test_rows_default_to_the_competition_size(tmp_path):
    write_rows(tmp_path / "rows.csv", [("a_01", f"1 {1918 * 1280}"), ("b_01", "1918 2"), ("c_01", "5 1 3 1")])
    scores = compare_masks(tmp_path / "rows.csv", tmp_path / "rows.csv")
    assert [row.area_true for row in scores.rows] == [1918 * 1280, 2]
    (unusable,) = scores.unusable
    assert unusable.id == "c_01"
    assert "rows.csv" in unusable.reason
    assert "Pair 2 (3 1)" in unusable.reason
    small = compare_masks(tmp_path / "rows.csv", tmp_path / "rows.csv", size=(1918, 2))
    assert [row.image for row in small.rows] == ["b_01"]
    assert "1918x2 = 3836 pixels" in small.unusable[0].reason


def test_missing_and_extra_rows_are_named(tmp_path):
    write_rows(tmp_path / "ours.csv", [("a", "1 1"), ("only_ours", "1 1")])
    write_rows(tmp_path / "true.csv", [("only_true", "1 1"), ("a", "1 1")])
    scores = compare_masks(tmp_path / "ours.csv", tmp_path / "true.csv", size=(3, 3))
    assert (scores.missing, scores.extra) == (("only_true",), ("only_ours",))


def test_masks_without_a_common_name_are_refused(tmp_path):
    write_mask(tmp_path / "out" / "a.png", [[1]])
    write_mask(tmp_path / "gt" / "b.png", [[1]])
    with pytest.raises(UsageError, match=r"Nothing to compare.*such as a\).*such as b\)"):
        compare_masks(tmp_path / "out", tmp_path / "gt")
    (tmp_path / "none.csv").write_text("img,rle_mask\n")
    with pytest.raises(UsageError, match=r"none\.csv has a header and no rows"):
        compare_masks(tmp_path / "none.csv", tmp_path / "gt")


def test_missing_folder_is_named_with_the_right_advice(tmp_path):
    write_mask(tmp_path / "out" / "a.png", [[1]])
    with pytest.raises(UsageError, match=r"missing does not exist.*`carvana-batch predict`"):
        compare_masks(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(UsageError, match=r"missing does not exist.*--gt") as caught:
        compare_masks(tmp_path / "out", tmp_path / "missing")
    assert "predict" not in str(caught.value)


def test_empty_masks_and_their_means(tmp_path):
    empty, square = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    square[5:25, 10:30] = True
    pairs = [("a", empty, empty), ("b", empty, square), ("c", square, empty), ("d", square, square)]
    for name, predicted, true in pairs:
        write_mask(tmp_path / "out" / f"{name}.png", predicted)
        write_mask(tmp_path / "gt" / f"{name}.png", true)
    scores = compare_masks(tmp_path / "out", tmp_path / "gt")
    assert [row.dice for row in scores.rows] == [1, 0, 0, 1]
    assert [row.boundary_mean for row in scores.rows] == [0, None, None, 0]
    assert [row.band_dice for row in scores.rows] == [1, 0, None, 1]
    assert [row.outline_error for row in scores.rows] == [None, pytest.approx(400 / 76), None, 0]
    averages = scores.averages
    assert (averages["boundary_mean"].value, averages["boundary_mean"].images) == (0, 2)
    assert (averages["band_dice"].value, averages["band_dice"].images) == (pytest.approx(2 / 3), 3)
    assert averages["thin_recall"].value is None


def test_masks_can_be_read_again(folders):
    scores = compare_masks(*folders)
    predicted, true = scores.read_masks("b/half")
    np.testing.assert_array_equal(predicted.to_bool(), [[1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(true.to_bool(), [[0, 1, 1, 1], [0, 0, 0, 0]])


def test_every_column_is_measured(tmp_path):
    """Guards against adding a field to Score without computing it."""
    draw_car(tmp_path, tmp_path / "in")
    (row,) = compare_masks(tmp_path / "out", tmp_path / "gt", photos=tmp_path / "in").rows
    assert [each.name for each in fields(row) if getattr(row, each.name) is None] == ["thin_recall"]


needs_photos = pytest.mark.skipif(
    "CARVANA_DATA" not in os.environ, reason="CARVANA_DATA names no folder with real photos"
)


@pytest.fixture
def real_masks(tmp_path):
    """Eight true masks, and an empty folder for predicted ones."""
    truth = Path(os.environ["CARVANA_DATA"]) / "val" / "masks"
    (tmp_path / "out").mkdir()
    return sorted(truth.glob("*.gif"))[::30], tmp_path / "out"


@needs_photos
@pytest.mark.real
def test_truth_scored_against_itself_as_files_and_rows(real_masks):
    paths, out = real_masks
    for path in paths:
        (out / path.name).symlink_to(path)
    for truth in (paths[0].parent, paths[0].parent.parent / "masks.csv"):
        scores = compare_masks(out, truth)
        assert [(row.dice, row.boundary_mean, row.outline_error) for row in scores.rows] == [(1, 0, 0)] * 8
        assert len(scores.missing) == len(list(paths[0].parent.glob("*.gif"))) - 8


@needs_photos
@pytest.mark.real
def test_shifted_real_masks(real_masks):
    paths, out = real_masks
    for path in paths:
        with Image.open(path) as image:
            mask = np.asarray(image) == 1
        Image.fromarray(np.roll(mask, 2, axis=1)).save(out / f"{path.stem.removesuffix('_mask')}.png")
    photos = paths[0].parent.parent / "images"
    for row in compare_masks(out, paths[0].parent, photos=photos).rows:
        assert 0.98 < row.dice < 1
        assert 0.5 < row.boundary_mean < 2
        assert row.boundary_p95 == pytest.approx(2)
        assert 0.5 < row.outline_error < 2
        assert 0 < row.similar_share < 1


@needs_photos
@pytest.mark.real
def test_real_outlines_match_a_distance_transform(real_masks):
    from scipy import ndimage

    for path in real_masks[0][:3]:
        with Image.open(path) as image:
            true = np.asarray(image) == 1
        predicted = ndimage.binary_opening(np.roll(true, (3, 5), axis=(0, 1)), iterations=4)
        one, other = (mask & ~ndimage.binary_erosion(mask) for mask in (predicted, true))
        to_other, to_one = (ndimage.distance_transform_edt(~outline) for outline in (other, one))
        distances = np.concatenate([to_other[one], to_one[other]])
        boundary = compare_outlines(PackedMask.from_bool(predicted), PackedMask.from_bool(true))
        assert boundary.mean == pytest.approx(distances.mean(), abs=1e-9)
        assert boundary.p95 == pytest.approx(np.percentile(distances, 95), abs=1e-9)
        band = to_other <= 5.5
        dice = 2 * (predicted & true & band).sum() / ((predicted & band).sum() + (true & band).sum())
        assert boundary.band_dice == pytest.approx(dice, abs=1e-9)
        assert math.isfinite(boundary.mean)


@pytest.mark.parametrize(("one", "other"), [("\u0160_01", "S\u030c_01"), ("S\u030c_01", "\u0160_01")])
def test_accents_may_be_encoded_differently(tmp_path, one, other):
    mask = [[0, 1, 1], [0, 0, 1]]
    write_mask(tmp_path / "out" / f"{one}.png", mask)
    write_mask(tmp_path / "gt" / f"{other}_mask.png", mask)
    write_rows(tmp_path / "gt.csv", [(other, "2 2 6 1")])
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "in" / f"{other}.png")
    for gt in ("gt", "gt.csv"):
        scores = compare_masks(tmp_path / "out", tmp_path / gt, photos=tmp_path / "in")
        assert [(row.image, row.dice) for row in scores.rows] == [(one, 1)]
        assert (scores.missing, scores.extra, scores.unseen) == ((), (), ())
        (worst,) = read_worst(scores, 1, tmp_path / "in")
        assert worst.photo.shape == (2, 3, 3)
