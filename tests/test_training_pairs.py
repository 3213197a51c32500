"""Photos and masks in every layout, and reports of every fault."""

from __future__ import annotations

import gzip
import re
import threading
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from helpers import store, wait_for, with_orientation
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.masks.fit import Fit
from carvana_batch.orientation import ORIENTATIONS, Layout
from carvana_batch.training.pairs import Pair, check_pairs, describe_orientations, find_pairs, load_pair

WIDTH, HEIGHT = 24, 16
IDS = ["a_01", "a_02", "b_01"]


def car_of(number: int) -> NDArray[np.bool_]:
    """Return a rectangle, a different one for each number."""
    car = np.zeros((HEIGHT, WIDTH), np.bool_)
    car[2 + number : 12, 3 : 18 + number] = True
    return car


def sizes_of(pairs: Sequence[Pair], workers: int | None = None) -> list[tuple[int, int]]:
    checked = check_pairs(pairs, workers=workers)
    assert all(found.has_car for found in checked)
    return [found.size for found in checked]


def runs_of(car: NDArray[np.bool_]) -> str:
    """Encode a mask as a run-length row, pixel by pixel."""
    runs: list[list[int]] = []
    for number, value in enumerate(car.ravel().tolist(), start=1):
        if value and runs and sum(runs[-1]) == number:
            runs[-1][1] += 1
        elif value:
            runs.append([number, 1])
    return " ".join(f"{start} {length}" for start, length in runs)


def write_photos(folder: Path, ids: Sequence[str] = IDS, suffix: str = ".jpg") -> None:
    generator = np.random.default_rng(1)
    for id in ids:
        path = folder / f"{id}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)


def write_masks(folder: Path, ids: Sequence[str] = IDS, suffix: str = "_mask.gif", **options: Any) -> None:
    for number, id in enumerate(ids):
        path = folder / f"{id}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(car_of(number).astype(np.uint8) * (1 if suffix.endswith("gif") else 255))
        if suffix.endswith("gif"):
            image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(path, **options)


def table(ids: Sequence[str] = IDS) -> str:
    rows = [f"{id}.jpg,{runs_of(car_of(number))}\r\n" for number, id in enumerate(ids)]
    return "img,rle_mask\r\n" + "".join(rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three intact pairs, which tests damage."""
    write_photos(tmp_path / "data" / "images")
    write_masks(tmp_path / "data" / "masks")
    return tmp_path / "data"


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        find_pairs(folder)
    return str(caught.value)


def fault(folder: Path) -> str:
    """Return the line about the only damaged pair."""
    with pytest.raises(UsageError) as caught:
        check_pairs(find_pairs(folder))
    head, *lines = str(caught.value).split("\n")
    assert head.startswith("1 of 3 photos cannot be trained on")
    (line,) = lines
    return line


# ---- a pair


@pytest.mark.parametrize(
    ("id", "car", "view"),
    [
        ("00087a6bd4dc_01", "00087a6bd4dc", "01"),
        ("my_red_car_16", "my_red_car", "16"),
        ("lone", "lone", ""),
        ("a/b_01", "a/b", "01"),
        ("my_set/lone", "my_set/lone", ""),
        ("_01", "_01", ""),
        ("a/_01", "a/_01", ""),
        ("b_", "b", ""),
    ],
)
def test_car_and_view_come_from_the_name(id: str, car: str, view: str) -> None:
    pair = Pair(id, Path(f"{id}.jpg"), Path(f"{id}.gif"))
    assert (pair.car, pair.view) == (car, view)


def test_a_pair_has_one_mask() -> None:
    for mask, runs in [(None, None), (Path("a.gif"), "")]:
        with pytest.raises(ValueError, match="a_01"):
            Pair("a_01", Path("a.jpg"), mask, runs)
    assert "1 5" not in repr(Pair("a_01", Path("a.jpg"), None, "1 5"))


# ---- finding


@pytest.mark.parametrize("photos", ["images", "train"])
@pytest.mark.parametrize("masks", ["masks", "train_masks"])
@pytest.mark.parametrize("suffix", ["_mask.gif", ".png", "_mask.tif", ".jpg"])
def test_folders_of_masks(tmp_path: Path, photos: str, masks: str, suffix: str) -> None:
    write_photos(tmp_path / photos, suffix=".png")
    options: Any = {"quality": 95} if suffix == ".jpg" else {}
    write_masks(tmp_path / masks, suffix=suffix, **options)
    pairs = find_pairs(tmp_path)
    assert [pair.id for pair in pairs] == IDS
    assert sizes_of(pairs) == [(WIDTH, HEIGHT)] * len(IDS)
    for number, pair in enumerate(pairs):
        assert pair.image == tmp_path / photos / f"{pair.id}.png"
        assert pair.mask == tmp_path / masks / f"{pair.id}{suffix}"
        np.testing.assert_array_equal(pair.read_mask(Layout(WIDTH, HEIGHT)).mask.to_bool(), car_of(number))


@pytest.mark.parametrize(
    "name", ["masks.csv", "train_masks.csv", "train_masks.csv.gz", "masks.zip", "masks.csv.zip"]
)
def test_rows_of_masks(tmp_path: Path, name: str) -> None:
    write_photos(tmp_path / "train")
    data = table(list(reversed(IDS))).encode()
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("train_masks.csv", data)
    else:
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    pairs = find_pairs(tmp_path)
    assert [(pair.id, pair.mask) for pair in pairs] == [(id, None) for id in IDS]
    assert sizes_of(pairs, workers=1) == [(WIDTH, HEIGHT)] * len(IDS)
    for number, pair in enumerate(reversed(pairs)):
        np.testing.assert_array_equal(pair.read_mask(Layout(WIDTH, HEIGHT)).mask.to_bool(), car_of(number))


def test_subfolders_are_part_of_the_id(tmp_path: Path) -> None:
    ids = ["x/a_01", "x/a_02", "y/z/a_01"]
    write_photos(tmp_path / "images", ids)
    write_masks(tmp_path / "masks", ids)
    pairs = find_pairs(tmp_path)
    assert [(pair.id, pair.car) for pair in pairs] == [
        ("x/a_01", "x/a"),
        ("x/a_02", "x/a"),
        ("y/z/a_01", "y/z/a"),
    ]


def test_symbolic_links_to_photos_are_used(data: Path, tmp_path: Path) -> None:
    photo = data / "images" / "a_01.jpg"
    photo.rename(tmp_path / "elsewhere.jpg")
    photo.symlink_to(tmp_path / "elsewhere.jpg")
    assert [pair.id for pair in find_pairs(data)] == IDS


def test_every_unpaired_photo_and_mask_is_named(data: Path) -> None:
    (data / "images" / "a_02.jpg").unlink()
    (data / "masks" / "a_01_mask.gif").unlink()
    write_photos(data / "images", ["c\n_01"], ".tiff")
    head, *lines = refusal(data).split("\n")
    assert "photos without a mask 2 of 3, masks without a photo 1 of 2" in head
    assert lines == [
        "  images/a_01.jpg has no mask",
        "  masks/a_02_mask.gif has no photo",
        r"  images/c\n_01.tiff has no mask",
    ]


def test_unpaired_rows_are_named(tmp_path: Path) -> None:
    write_photos(tmp_path / "train", ["a_01", "c_01"])
    (tmp_path / "train_masks.csv").write_text(table())
    assert refusal(tmp_path).split("\n")[1:] == [
        "  train_masks.csv: the row of a_02 has no photo",
        "  train_masks.csv: the row of b_01 has no photo",
        "  train/c_01.jpg has no mask",
    ]


def test_a_long_list_is_not_shortened(data: Path) -> None:
    for number in range(25):
        (data / "images" / f"c_{number:02}.jpg").touch()
    lines = refusal(data).split("\n")
    assert lines[1:] == [f"  images/c_{number:02}.jpg has no mask" for number in range(25)]


def test_no_pairs_at_all(tmp_path: Path) -> None:
    write_photos(tmp_path / "images", ["a_01"])
    (tmp_path / "masks.csv").write_text("img,rle_mask\n")
    assert "photos without a mask 1 of 1, masks without a photo 0 of 0" in refusal(tmp_path)
    (tmp_path / "masks.csv").unlink()
    (tmp_path / "masks").mkdir()
    assert "no masks in" in refusal(tmp_path)
    (tmp_path / "images" / "a_01.jpg").unlink()
    assert re.search("[Nn]o photos in", refusal(tmp_path))


@pytest.mark.parametrize("photos", ["NFC", "NFD"])
@pytest.mark.parametrize("rows", [False, True])
def test_accents_may_be_encoded_differently(
    tmp_path: Path, photos: Literal["NFC", "NFD"], rows: bool
) -> None:
    id = unicodedata.normalize(photos, "Citro\u00ebn_01")
    other = unicodedata.normalize("NFD" if photos == "NFC" else "NFC", id)
    write_photos(tmp_path / "images", [id])
    if rows:
        (tmp_path / "masks.csv").write_text(table([other]), encoding="utf-8")
    else:
        write_masks(tmp_path / "masks", [other])
    (pair,) = find_pairs(tmp_path)
    assert (pair.id, pair.car) == (id, "Citro\u00ebn")
    np.testing.assert_array_equal(pair.read_mask(Layout(WIDTH, HEIGHT)).mask.to_bool(), car_of(0))


def test_two_photos_of_one_id_are_named(data: Path) -> None:
    write_photos(data / "images", ["a_01"], ".png")
    message = refusal(data)
    assert "the id a_01" in message
    assert "a_01.jpg" in message
    assert "a_01.png" in message


def test_the_message_says_what_was_looked_for(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'} does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(tmp_path / "file")
    assert "images/ or train/" in refusal(tmp_path)
    write_photos(tmp_path / "train")
    message = refusal(tmp_path)
    assert "masks/ or train_masks/" in message
    assert "masks.csv or train_masks.csv" in message


def test_two_folders_of_photos_are_refused(data: Path) -> None:
    write_photos(data / "train")
    assert "both images/ and train/" in refusal(data)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("masks/", "train_masks/"),
        ("masks/", "train_masks.csv"),
        ("masks.csv", "masks.csv.gz"),
        ("masks.zip", "train_masks.csv"),
    ],
)
def test_two_sources_of_masks_are_refused(tmp_path: Path, first: str, second: str) -> None:
    write_photos(tmp_path / "images")
    for name in [first, second]:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert f"has masks in {first} and {second}," in refusal(tmp_path)


def test_a_folder_of_masks_takes_precedence_over_rows(data: Path) -> None:
    (data / "masks.csv").write_text("not looked at")
    assert all(pair.mask for pair in find_pairs(data))


def test_a_parent_or_subfolder_is_suggested(data: Path) -> None:
    assert refusal(data / "images").endswith(f"Did you mean {data}?")
    data.rename(data.parent / "train")
    assert refusal(data.parent).endswith(f"Did you mean {data.parent / 'train'}?")


# ---- checking and loading


def test_a_truncated_photo_is_named(data: Path) -> None:
    photo = data / "images" / "a_02.jpg"
    photo.write_bytes(photo.read_bytes()[:-200])
    assert fault(data).startswith(f"  {photo} is cut short")


def test_a_photo_with_damaged_picture_data_is_named(data: Path) -> None:
    photo = data / "images" / "a_02.jpg"
    content = photo.read_bytes()
    middle = (content.index(b"\xff\xda") + len(content)) // 2
    photo.write_bytes(content[:middle] + b"\xff\xd9")
    with Image.open(photo) as image:
        image.load()  # fills the rest with grey
    assert fault(data).startswith(f"  {photo} is damaged: its picture data are corrupt")


def test_a_mask_with_grey_pixels_is_named(data: Path) -> None:
    values = car_of(0).astype(np.uint8) * 255
    values[5, 3:7] = 128
    (data / "masks" / "b_01_mask.gif").unlink()
    Image.fromarray(values).save(data / "masks" / "b_01.png")
    line = fault(data)
    assert line.startswith(f"  {data / 'masks' / 'b_01.png'} has the values 0, 128 and 255")
    assert line.endswith("4 pixels are neither, such as 128 at x 3, y 5")


def test_a_mask_of_another_size_is_named_with_both_sizes(data: Path) -> None:
    mask = data / "masks" / "a_01_mask.gif"
    Image.new("1", (HEIGHT, WIDTH)).save(mask)
    photo = data / "images" / "a_01.jpg"
    expected = f"{mask} is 16x24 pixels, but its photo {photo} is 24x16"
    assert fault(data).startswith("  " + expected)
    with pytest.raises(ImageError, match=re.escape(expected)):
        load_pair(find_pairs(data)[0], (12, 8))


def test_a_row_beyond_the_photo_is_named(tmp_path: Path) -> None:
    write_photos(tmp_path / "train")
    last = WIDTH * HEIGHT
    (tmp_path / "masks.csv").write_text(
        f"img,rle_mask\na_01.jpg,{last} 1\na_02.jpg,1 2 {last} 2\nb_01.jpg,\n"
    )
    line = fault(tmp_path)
    assert line.startswith("  The run-length row of a_02 cannot be used: Pair 2 ")
    assert "24x16" in line
    first, _, empty = find_pairs(tmp_path)
    assert np.flatnonzero(first.read_mask(Layout(WIDTH, HEIGHT)).mask.to_bool()).tolist() == [last - 1]
    assert not np.asarray(load_pair(empty, None)[1]).any()


def test_rows_that_do_not_fit_the_photos_are_refused(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :96]
    car = (x / 96 - 0.5) ** 2 + (y / 64 - 0.4) ** 2 < 0.1
    (tmp_path / "images").mkdir()
    Image.new("RGB", (96, 64)).save(tmp_path / "images" / "a_01.jpg")
    for rows, reason in [(car, ""), (car.T, "--rle-order columns"), (car[:, 20:], "76 pixels apart, which")]:
        (tmp_path / "masks.csv").write_text(f"img,rle_mask\na_01.jpg,{runs_of(rows)}\n")
        if reason:
            with pytest.raises(UsageError, match=f"do not fit the photos: in 1 of 1 .*{reason}"):
                check_pairs(find_pairs(tmp_path))
        else:
            assert [each.size for each in check_pairs(find_pairs(tmp_path))] == [(96, 64)]


def test_all_faults_are_counted_and_listed(tmp_path: Path) -> None:
    ids = [f"a_{number:02}" for number in range(30)]
    write_photos(tmp_path / "images", ids)
    write_masks(tmp_path / "masks", ids[:3])
    for id in ids[3:]:
        (tmp_path / "masks" / f"{id}.png").touch()
    steps: list[tuple[int, int]] = []
    with pytest.raises(UsageError) as caught:
        check_pairs(find_pairs(tmp_path), workers=2, on_progress=lambda *step: steps.append(step))
    head, *lines = str(caught.value).split("\n")
    assert head.startswith("27 of 30 photos cannot be trained on")
    assert [re.findall(r"a_(\d+)\.png is empty", line) for line in lines] == [
        [f"{number:02}"] for number in range(3, 30)
    ]
    assert steps == [(done, 30) for done in range(1, 31)]


def test_each_photo_has_its_size(data: Path) -> None:
    Image.new("RGB", (7, 5)).save(data / "images" / "b_01.jpg")
    Image.new("1", (7, 5)).save(data / "masks" / "b_01_mask.gif")
    checked = check_pairs(find_pairs(data))
    assert [found.size for found in checked] == [(24, 16), (24, 16), (7, 5)]
    assert [found.has_car for found in checked] == [True, True, False]


def test_a_mask_of_one_pixel_has_a_car(data: Path) -> None:
    for number, place in enumerate([(23, 15), (0, 0), None]):
        mask = Image.new("1", (24, 16))
        if place is not None:
            mask.putpixel(place, 1)
        mask.save(data / "masks" / f"{IDS[number]}_mask.gif")
    assert [found.has_car for found in check_pairs(find_pairs(data))] == [True, True, False]


def test_a_caller_who_stops_leaves_no_threads(data: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        check_pairs(find_pairs(data), workers=2, on_progress=stop)
    wait_for(lambda: threading.active_count() <= before)


def test_pairs_are_loaded_whole_or_area_averaged(data: Path) -> None:
    pair = find_pairs(data)[1]
    image, mask, known = load_pair(pair, None)
    assert known.size == mask.size
    assert known.getextrema() == (255, 255)
    assert (image.mode, mask.mode) == ("RGB", "L")
    with Image.open(pair.image) as photo:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(photo))
    np.testing.assert_array_equal(np.asarray(mask), car_of(1) * 255)
    small, soft, _ = load_pair(pair, (WIDTH // 4, HEIGHT // 2))
    assert small.size == soft.size == (6, 8)
    for whole, reduced in [(np.asarray(mask)[..., None], np.asarray(soft)[..., None]), (image, small)]:
        pixels = np.asarray(whole, np.float64).reshape(8, 2, 6, 4, -1)
        np.testing.assert_allclose(np.asarray(reduced), pixels.mean(axis=(1, 3)), atol=1)


def write_oriented(
    folder: Path, orientation: int, mask_is_upright: bool, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> NDArray[Any]:
    """Write a photo whose upright pixels are white where its mask is, and return these pixels."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    upright = np.zeros((size[1], size[0], 3), np.uint8)
    upright[1 : size[1] // 2, 2 : size[0] // 3] = 255
    picture = Image.fromarray(upright)
    exif = with_orientation(picture, orientation).getexif()
    store(picture, orientation).save(folder / "images" / "a_01.png", exif=exif)
    (picture if mask_is_upright else store(picture, orientation)).save(folder / "masks" / "a_01.png")
    return upright


@pytest.mark.parametrize(
    ("orientation", "mask_is_upright"),
    [*((orientation, True) for orientation in (1, 5, 6, 7, 8)), *((each, False) for each in ORIENTATIONS)],
)
def test_photos_and_masks_are_turned_upright(tmp_path: Path, orientation: int, mask_is_upright: bool) -> None:
    upright = write_oriented(tmp_path, orientation, mask_is_upright)
    pairs = find_pairs(tmp_path)
    (checked,) = check_pairs(pairs)
    assert (checked.size, checked.has_orientation) == ((WIDTH, HEIGHT), orientation > 1)
    if orientation >= 5:
        assert checked.fit == (Fit.TURNED if mask_is_upright else Fit.SAME)
    else:
        assert checked.fit == (Fit.UNCLEAR if orientation > 1 else Fit.SAME)
    image, mask, _ = load_pair(pairs[0], None)
    np.testing.assert_array_equal(np.asarray(image), upright)
    np.testing.assert_array_equal(np.asarray(mask), upright[..., 0])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_masks_of_square_photos_are_taken_as_stored(tmp_path: Path, orientation: int) -> None:
    upright = write_oriented(tmp_path, orientation, mask_is_upright=False, size=(20, 20))
    checked = check_pairs(find_pairs(tmp_path))
    assert checked[0].fit == Fit.UNCLEAR
    np.testing.assert_array_equal(np.asarray(load_pair(find_pairs(tmp_path)[0], None)[1]), upright[..., 0])
    assert describe_orientations(checked * 2) == (
        "Turned upright by their EXIF orientation: 2 photos; their masks: 2 taken as stored, which cannot be"
        " told from the size"
    )


def test_masks_are_counted_by_how_they_were_taken(tmp_path: Path) -> None:
    checked = []
    for number, (orientation, is_upright) in enumerate(
        [(1, True), (6, True), (8, True), (5, False), (3, False)]
    ):
        write_oriented(tmp_path / str(number), orientation, is_upright)
        checked += check_pairs(find_pairs(tmp_path / str(number)))
    assert describe_orientations(checked) == (
        "Turned upright by their EXIF orientation: 4 photos; their masks: 2 upright, 1 as stored, 1 taken as"
        " stored, which cannot be told from the size"
    )
    assert describe_orientations(checked[:1]) == ""


def test_swapped_sides_without_an_orientation_are_refused(tmp_path: Path) -> None:
    write_oriented(tmp_path, 1, True)
    Image.new("L", (HEIGHT, WIDTH)).save(tmp_path / "masks" / "a_01.png")
    with pytest.raises(UsageError, match=r"is 16x24 pixels, but its photo .* is 24x16"):
        check_pairs(find_pairs(tmp_path))


def test_rows_count_the_pixels_of_the_stored_photo(tmp_path: Path) -> None:
    upright = write_oriented(tmp_path, 6, False)
    stored = np.asarray(store(Image.fromarray(upright), 6))[..., 0] > 0
    (tmp_path / "masks" / "a_01.png").unlink()
    (tmp_path / "masks").rmdir()
    (tmp_path / "masks.csv").write_text(f"img,rle_mask\na_01.png,{runs_of(stored)}\n")
    np.testing.assert_array_equal(np.asarray(load_pair(find_pairs(tmp_path)[0], None)[1]), upright[..., 0])
    assert check_pairs(find_pairs(tmp_path))[0].fit == Fit.UNCLEAR


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("row_is_upright", [True, False])
def test_rows_of_sideways_photos_are_turned(tmp_path: Path, orientation: int, row_is_upright: bool) -> None:
    upright = write_oriented(tmp_path, orientation, True, size=(96, 64))
    stored = np.asarray(store(Image.fromarray(upright), orientation))
    car = (upright if row_is_upright else stored)[..., 0] > 0
    (tmp_path / "masks" / "a_01.png").unlink()
    (tmp_path / "masks").rmdir()
    (tmp_path / "masks.csv").write_text(f"img,rle_mask\na_01.png,{runs_of(car)}\n")
    np.testing.assert_array_equal(np.asarray(load_pair(find_pairs(tmp_path)[0], None)[1]), upright[..., 0])
    assert check_pairs(find_pairs(tmp_path))[0].fit == (Fit.TURNED if row_is_upright else Fit.SAME)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_single_row_of_another_size_is_named(tmp_path: Path, orientation: int) -> None:
    y, x = np.mgrid[:64, :96]
    car = (x / 96 - 0.5) ** 2 + (y / 64 - 0.4) ** 2 < 0.1
    rows = ["img,rle_mask"]
    for number in range(3):
        write_oriented(tmp_path / str(number), 1 if number else orientation, True, (96, 64))
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / str(number) / "images" / "a_01.png").rename(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number}.png,{runs_of(car if number else car[:, 20:])}")
    (tmp_path / "masks.csv").write_text("\n".join(rows) + "\n")
    assert fault(tmp_path).startswith(
        "  The run-length row of 0 is of a mask of another size: its lines are 76 pixels apart, but its"
    )


def write_ignored(folder: Path, unknown: NDArray[np.bool_]) -> None:
    """Write a photo whose mask is 0 and 1, and 255 where it is unknown."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    height, width = unknown.shape
    values = np.zeros(unknown.shape, np.uint8)
    values[: height // 2] = 1
    values[unknown] = 255
    Image.new("RGB", (width, height)).save(folder / "images" / "a_01.png")
    Image.fromarray(values).save(folder / "masks" / "a_01.png")


def test_ignored_pixels_of_a_pair_are_not_known(tmp_path: Path) -> None:
    unknown = np.zeros((HEIGHT, WIDTH), bool)
    unknown[5, 7] = True
    unknown[8:, 12:] = True
    write_ignored(tmp_path, unknown)
    (pair,) = find_pairs(tmp_path, ignored_values=(255,))
    _, mask, known = load_pair(pair, None)
    np.testing.assert_array_equal(np.asarray(known) == 255, ~unknown)
    np.testing.assert_array_equal(
        np.asarray(mask)[~unknown] == 255, (np.mgrid[:HEIGHT, :WIDTH][0] < 8)[~unknown]
    )
    reduced = np.asarray(load_pair(pair, (WIDTH // 4, HEIGHT // 4))[2])
    expected = ~unknown.reshape(HEIGHT // 4, 4, WIDTH // 4, 4).any(axis=(1, 3))
    np.testing.assert_array_equal(reduced == 255, expected)


def test_a_single_ignored_pixel_survives_any_reduction(tmp_path: Path) -> None:
    """It is 1 of 2,500, which 8 bits cannot express."""
    unknown = np.zeros((100, 150), bool)
    unknown[70, 20] = True
    write_ignored(tmp_path, unknown)
    known = load_pair(find_pairs(tmp_path, ignored_values=(255,))[0], (3, 2))[2]
    assert np.asarray(known).tolist() == [[255, 255, 255], [0, 255, 255]]
