import os
import threading
import time
from pathlib import Path

import pytest

from carvana_batch.errors import UsageError
from carvana_batch.inputs.keys import split_id
from carvana_batch.inputs.masks import TRUTH_ADVICE, find_masks, find_photos
from carvana_batch.parallel import TASKS_PER_WORKER, map_in_order


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_ids_are_paths_without_suffix_and_mask(tmp_path):
    touch(
        tmp_path,
        "00087a6bd4dc_01_mask.gif",
        "0cdf5b5d0ce1_02.png",
        "a/b/c_mask.TIFF",
        "a/b.v2.tif",
        "mask.JPG",
        "_mask.jpeg",
        "my_masked.png",
        "_c.png",
        "a/_overlay/d.png",
        "_cars/e.png",
    )
    found = find_masks(tmp_path)
    assert found == {
        "00087a6bd4dc_01": tmp_path / "00087a6bd4dc_01_mask.gif",
        "0cdf5b5d0ce1_02": tmp_path / "0cdf5b5d0ce1_02.png",
        "_c": tmp_path / "_c.png",
        "_mask": tmp_path / "_mask.jpeg",
        "_cars/e": tmp_path / "_cars/e.png",
        "a/_overlay/d": tmp_path / "a/_overlay/d.png",
        "a/b.v2": tmp_path / "a/b.v2.tif",
        "a/b/c": tmp_path / "a/b/c_mask.TIFF",
        "mask": tmp_path / "mask.JPG",
        "my_masked": tmp_path / "my_masked.png",
    }
    assert list(found) == sorted(found)


def test_what_predict_writes_beside_the_masks_is_left_out(tmp_path):
    touch(
        tmp_path,
        "a.png",
        "report.csv",
        "run.json",
        "png",
        ".png",
        ".hidden.png",
        "._a.png",
        ".carvana-batch/a.png",
        "b/.hidden/a.png",
        "_prob/a.tif",
        "_overlay/a.jpg",
        "_panel/b/a.jpg",
        "_cutout/a.png",
    )
    assert list(find_masks(tmp_path)) == ["a"]


def test_a_relative_folder(tmp_path, monkeypatch):
    touch(tmp_path, "out/a.png", "out/b/a.png")
    monkeypatch.chdir(tmp_path / "out")
    assert find_masks(Path()) == {"a": Path("a.png"), "b/a": Path("b/a.png")}
    monkeypatch.chdir(tmp_path)
    assert find_masks(Path("out")) == {"a": Path("out/a.png"), "b/a": Path("out/b/a.png")}


@pytest.mark.parametrize("names", [("a.gif", "a.png"), ("a.png", "a_mask.png"), ("b/a.PNG", "b/a.png")])
def test_two_masks_of_one_id_are_refused_with_both_named(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(UsageError) as caught:
        find_masks(tmp_path)
    for name in names:
        assert str(tmp_path / name) in str(caught.value)


def test_masks_of_one_id_are_counted(tmp_path):
    touch(tmp_path, "a.png", "a_mask.png", "b.png", "b.gif", "c.png")
    with pytest.raises(UsageError, match=r"^Two masks have the id .* In all, 2 pairs clash like this\.$"):
        find_masks(tmp_path)
    with pytest.raises(UsageError, match=r"^Two photos have the id .* In all, 2 pairs clash like this\.$"):
        find_photos(tmp_path)


def test_two_forms_of_one_name_are_refused(tmp_path):
    touch(tmp_path / "in", "\u0160koda.png", "S\u030ckoda.png")
    if len(list((tmp_path / "in").iterdir())) == 1:
        pytest.skip("the disk takes both names for the same")
    with pytest.raises(UsageError, match="Two masks have the id"):
        find_masks(tmp_path / "in")
    with pytest.raises(UsageError, match="Two photos have the id"):
        find_photos(tmp_path / "in")


def test_no_masks(tmp_path):
    touch(tmp_path, "report.csv", "_overlay/a.png")
    with pytest.raises(UsageError, match=r"PNG, GIF, TIFF and JPEG.*`carvana-batch predict` writes .* `out`"):
        find_masks(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(UsageError, match=r"out does not exist.*`carvana-batch predict`"):
        find_masks(tmp_path / "out")
    touch(tmp_path, "file")
    with pytest.raises(UsageError, match="file is not a folder of masks"):
        find_masks(tmp_path / "file")


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_true_masks_that_are_missing_are_not_what_predict_writes(tmp_path, name):
    touch(tmp_path, "file", "empty/report.csv")
    with pytest.raises(UsageError, match=rf"{name}.*--gt takes the true masks") as caught:
        find_masks(tmp_path / name, advice=TRUTH_ADVICE)
    assert "predict" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "car", "view"),
    [
        ("00087a6bd4dc_01", "00087a6bd4dc", "01"),
        ("a_b/c_d_2", "a_b/c_d", "2"),
        ("a_b/c", "a_b/c", ""),
        ("c", "c", ""),
        ("_c", "_c", ""),
        ("a/_c", "a/_c", ""),
        ("c_", "c", ""),
    ],
)
def test_car_and_view(image, car, view):
    assert split_id(image) == (car, view)


def test_photos_have_the_ids_of_their_masks(tmp_path):
    touch(tmp_path / "in", "b_01.jpg", "a/c_02.PNG", "d_mask.webp", "notes.txt", ".hidden.jpg")
    (tmp_path / "link.jpg").touch()
    (tmp_path / "in" / "e.jpg").symlink_to(tmp_path / "link.jpg")
    found = find_photos(tmp_path / "in")
    assert list(found) == ["a/c_02", "b_01", "d", "e"]
    assert found["d"] == tmp_path / "in" / "d_mask.webp"


def test_two_photos_of_one_id_are_refused_with_both_named(tmp_path):
    touch(tmp_path, "a.jpg", "a_mask.png")
    with pytest.raises(UsageError, match=r"id a: .*a\.jpg and .*a_mask\.png"):
        find_photos(tmp_path)
    with pytest.raises(UsageError, match="no file or folder"):
        find_photos(tmp_path / "missing")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "b/c.png")
    scandir = os.scandir

    def refuse(path):  # in place of chmod: the tests may run as root
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="b cannot be listed: Permission denied"):
        find_masks(tmp_path)


def test_names_that_are_not_text_are_kept(tmp_path):
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        Path(os.fsdecode(raw)).touch()
    except OSError:
        pytest.skip("this file system takes only names that are text")
    assert find_masks(tmp_path) == {"\udcff": tmp_path / "\udcff.png"}


def wait_for_threads(before):
    """Until there are no others than ``before``; threads end a moment after they were told to."""
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [None, 1, 2, 5])
@pytest.mark.parametrize("number", [0, 1, 3, 300])
def test_results_come_in_order(workers, number):
    def slow_at_first(value):
        time.sleep(0.002 if value < 10 else 0)
        return value * value

    assert list(map_in_order(slow_at_first, range(number), workers)) == [value**2 for value in range(number)]


def test_an_error_reaches_the_caller_and_no_thread_stays():
    def fail_late(value):
        if value == 20:
            raise ValueError("the twentieth")
        return value

    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="the twentieth"):
        list(map_in_order(fail_late, range(1000), 3))
    wait_for_threads(before)


@pytest.mark.filterwarnings("always")
def test_a_caller_that_stops_early_hears_nothing_of_it(recwarn):
    before = set(threading.enumerate())
    results = map_in_order(lambda _: time.sleep(0.001), range(1000), 2)
    next(results)
    time.sleep(0.05)  # more are done meanwhile
    results.close()
    wait_for_threads(before)
    assert not recwarn.list


def test_results_do_not_pile_up_before_a_slow_caller():
    done = []
    results = map_in_order(done.append, range(2000), 2)
    next(results)
    time.sleep(0.1)
    assert len(done) <= 2 * TASKS_PER_WORKER
    results.close()
