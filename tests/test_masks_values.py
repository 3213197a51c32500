"""How the values of a folder's masks are decided, and which files are then refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.png import encode_mask
from carvana_batch.masks.values import MOST_FILES, MaskPixels, decide
from carvana_batch.values import PackedMask

HEIGHT, WIDTH = 24, 40
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def car_of(number: int) -> NDArray[np.bool_]:
    return (COLUMNS - 12 - number) ** 2 + 2 * (ROWS - 11) ** 2 < 130


def save(path: Path, values: NDArray[np.integer]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)


def save_cars(folder: Path, background: int, car: int, dtype: type = np.uint8, count: int = 4) -> None:
    for number in range(count):
        save(folder / f"{number}.png", np.where(car_of(number), car, background).astype(dtype))


def open_folder(folder: Path, car: tuple[int, ...] = (), ignored: tuple[int, ...] = ()) -> MaskFolder:
    return MaskFolder(folder, find_masks(folder)).decide(car, ignored)


@pytest.mark.parametrize(
    ("background", "car", "dtype"),
    [
        (0, 1, np.uint8),
        (0, 2, np.uint8),
        (0, 100, np.uint8),
        (0, 255, np.uint8),
        (1, 2, np.uint8),
        (0, 255, np.uint16),
        (0, 65535, np.uint16),
    ],
)
def test_the_higher_of_two_values_is_car(tmp_path, background, car, dtype):
    save_cars(tmp_path / "in", background, car, dtype)
    save(tmp_path / "in" / "empty.png", np.full((HEIGHT, WIDTH), background, dtype))
    save(tmp_path / "in" / "whole.png", np.full((HEIGHT, WIDTH), car, dtype))
    folder = open_folder(tmp_path / "in")
    for number in range(4):
        np.testing.assert_array_equal(folder.read(str(number)).to_bool(), car_of(number))
    assert not folder.read("empty").to_bool().any()
    assert folder.read("whole").to_bool().all()


def test_the_folder_decides_about_a_file_with_few_ones(tmp_path):
    few = np.zeros((HEIGHT, WIDTH), np.uint8)
    few[3, 5:8] = 1
    save_cars(tmp_path / "white", 0, 255)
    save(tmp_path / "white" / "few.png", few)
    folder = open_folder(tmp_path / "white")
    with pytest.raises(ImageError, match=r"few\.png has the values 0 and 1, where 0 .* 255 is car: 3 pixels"):
        folder.read("few")
    np.testing.assert_array_equal(folder.read("2").to_bool(), car_of(2))
    save_cars(tmp_path / "ones", 0, 1)
    save(tmp_path / "ones" / "few.png", few)
    np.testing.assert_array_equal(open_folder(tmp_path / "ones").read("few").to_bool(), few == 1)


def test_the_majority_decides_wherever_the_exception_is(tmp_path):
    for position in ("0", "17", "39"):
        folder = tmp_path / position
        save_cars(folder, 0, 2, count=40)
        save(folder / f"{position}.png", np.where(car_of(0), 7, 0).astype(np.uint8))
        decided = open_folder(folder)
        with pytest.raises(ImageError, match="has the values 0 and 7, where 0 is background and 2 is car"):
            decided.read(position)
        np.testing.assert_array_equal(decided.read("5").to_bool(), car_of(5))


@pytest.mark.parametrize(("background", "car"), [(0, 2), (0, 100), (1, 2)])
def test_a_single_mask_of_0_and_1_does_not_decide_for_the_others(tmp_path, background, car):
    save_cars(tmp_path / "in", background, car)
    save(tmp_path / "in" / "empty.png", np.full((HEIGHT, WIDTH), background, np.uint8))
    save(tmp_path / "in" / "odd.png", car_of(0).astype(np.uint8))
    folder = open_folder(tmp_path / "in")
    for number in range(4):
        np.testing.assert_array_equal(folder.read(str(number)).to_bool(), car_of(number))
    assert not folder.read("empty").to_bool().any()
    with pytest.raises(ImageError, match=f"where {background} is background and {car} is car"):
        folder.read("odd")


def test_a_mixed_folder_without_majority_is_refused(tmp_path):
    for number in range(8):
        car = (1, 255)[number % 2]
        save(tmp_path / "in" / f"{number}.png", np.where(car_of(number), car, 0).astype(np.uint8))
    with pytest.raises(
        UsageError,
        match=r"mixed; .*, 4 have 0 and 1, 4 have 0 and 255\. .*give --car-value 1 --car-value 255\.$",
    ):
        open_folder(tmp_path / "in")
    folder = open_folder(tmp_path / "in", car=(1, 255))
    for number in range(8):
        np.testing.assert_array_equal(folder.read(str(number)).to_bool(), car_of(number))
    (tmp_path / "in" / "1.png").unlink()
    with pytest.raises(ImageError, match="has the values 0 and 255, where 0 is background and 1 is car"):
        open_folder(tmp_path / "in").read("3")


def test_one_bit_and_eight_bit_masks_of_one_folder(tmp_path):
    for name, car in (("ones", 1), ("white", 255)):
        save_cars(tmp_path / name, 0, car, count=2)
        Image.fromarray(car_of(7)).save(tmp_path / name / "bits.png")
        folder = open_folder(tmp_path / name)
        for image, number in (("0", 0), ("1", 1), ("bits", 7)):
            np.testing.assert_array_equal(folder.read(image).to_bool(), car_of(number))


def test_masks_of_one_value_decide_together(tmp_path):
    save(tmp_path / "in" / "a.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    save(tmp_path / "in" / "b.png", np.full((HEIGHT, WIDTH), 2, np.uint8))
    folder = open_folder(tmp_path / "in")
    assert not folder.read("a").to_bool().any()
    assert folder.read("b").to_bool().all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 255), "the values 0, 1 and 255"),
        ((0, 128, 255), "the values 0, 128 and 255"),
        (tuple(range(12)), r"12 values \(0, 1, 2, 3, 4, \.\.\., 11\)"),
        ((0, *range(1, 40), 255), r"41 values \(0, 1, 2, 3, 4, \.\.\., 255\)"),
    ],
)
def test_label_maps_are_refused_with_their_values(tmp_path, values, expected):
    stripes = np.array(values, np.uint8).repeat(6)
    save(tmp_path / "in" / "a.png", np.tile(stripes, (HEIGHT, 1)))
    with pytest.raises(UsageError, match=f"not clear which .* are car: they have {expected}.*--car-value N"):
        open_folder(tmp_path / "in")


def test_masks_of_a_single_unknown_value_are_refused(tmp_path):
    save(tmp_path / "in" / "a.png", np.full((HEIGHT, WIDTH), 3, np.uint8))
    with pytest.raises(UsageError, match="none has two values, and together they have the value 3 only"):
        open_folder(tmp_path / "in")
    save(tmp_path / "in" / "b.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    save(tmp_path / "in" / "c.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    with pytest.raises(UsageError, match=r"together they have the values 0, 3 and white\."):
        open_folder(tmp_path / "in")


def test_a_label_map_among_masks_is_named(tmp_path):
    save_cars(tmp_path / "in", 0, 255)
    labels = np.where(car_of(0), 255, 0).astype(np.uint8)
    labels[:4] = 90
    save(tmp_path / "in" / "odd.png", labels)
    folder = open_folder(tmp_path / "in")
    with pytest.raises(
        ImageError, match=r"has the values 0, 90 and 255, .*: 160 pixels are neither, such as 90"
    ):
        folder.read("odd")


def test_car_values_and_ignored_values_of_label_maps(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[4:12, 5:20], labels[12:16, 5:20], labels[:2], labels[-3:] = 7, 8, 15, 255
    save(tmp_path / "in" / "a.png", labels)
    mask = open_folder(tmp_path / "in", car=(7, 8), ignored=(255,)).read("a")
    np.testing.assert_array_equal(mask.to_bool(), (labels == 7) | (labels == 8))
    assert mask.ignored is not None
    np.testing.assert_array_equal(np.unpackbits(mask.ignored, axis=1, count=WIDTH), labels == 255)
    assert open_folder(tmp_path / "in", car=(15,)).read("a").ignored is None


def test_ignored_value_leaves_two_others(tmp_path):
    """Class 1 with a void border of 255: without --ignore-value, the border would be the car."""
    labels = np.where(car_of(3), 1, 0).astype(np.uint8)
    labels[:3] = 255
    save(tmp_path / "in" / "a.png", labels)
    folder = open_folder(tmp_path / "in", ignored=(255,))
    np.testing.assert_array_equal(folder.read("a").to_bool(), labels == 1)


def test_values_of_palette_images_are_their_indexes(tmp_path):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:9, 3:30], labels[12:15, 3:30] = 7, 15
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0] * 7 + [128, 128, 128] + [0, 0, 0] * 7 + [192, 128, 128])
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.png")
    np.testing.assert_array_equal(open_folder(tmp_path / "in", car=(7,)).read("a").to_bool(), labels == 7)
    with pytest.raises(UsageError, match=r"the values 0, 128 and \(192, 128, 128\)"):
        open_folder(tmp_path / "in")


def test_palettes_that_were_computed_differ_between_files(tmp_path):
    (tmp_path / "in").mkdir()
    for number, white in enumerate([252, 247, 246]):
        image = Image.fromarray(np.where(car_of(number), 0, 1).astype(np.uint8))
        image.putpalette([white] * 3 + [number] * 3)
        image.save(tmp_path / "in" / f"{number}.png")
    folder = open_folder(tmp_path / "in")
    assert folder.values.unusual == ""
    for number in range(3):
        np.testing.assert_array_equal(folder.read(str(number)).to_bool(), car_of(number))


def test_faint_soft_masks_in_a_soft_folder_are_background(tmp_path):
    ramp = np.clip(255 * (0.5 + (COLUMNS - 20) / 24), 0, 255).astype(np.uint8)
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", ramp)
    save(tmp_path / "in" / "faint.png", (COLUMNS * 2).astype(np.uint8))
    save(tmp_path / "in" / "labels.png", np.where(car_of(0), 1, 0).astype(np.uint8))
    folder = open_folder(tmp_path / "in")
    assert not folder.read("faint").to_bool().any()
    with pytest.raises(ImageError, match="has the values 0 and 1, where 0 is background and 255 is car"):
        folder.read("labels")


def test_unreadable_files_do_not_decide(tmp_path):
    save_cars(tmp_path / "in", 0, 2)
    for number in range(20):
        (tmp_path / "in" / f"0{number}.png").write_bytes(b"no image")
    folder = open_folder(tmp_path / "in")
    np.testing.assert_array_equal(folder.read("1").to_bool(), car_of(1))
    with pytest.raises(ImageError, match="not an image"):
        folder.read("05")


def test_unusual_values_are_described(tmp_path):
    for name, car, expected in (("two", 2, "0 is background, 2 is car"), ("one", 1, ""), ("white", 255, "")):
        save_cars(tmp_path / name, 0, car)
        assert open_folder(tmp_path / name).values.unusual == expected


@pytest.mark.parametrize("encode", ["png", "Pillow", "tif"])
def test_one_bit_masks_whoever_wrote_them(tmp_path, encode):
    """The ignored value 255 of the other files is not the white of a 1-bit file."""
    save_cars(tmp_path / "in", 0, 1)
    labels = np.where(car_of(0), 1, 0).astype(np.uint8)
    labels[:3] = 255
    save(tmp_path / "in" / "0.png", labels)
    if encode == "png":
        (tmp_path / "in" / "bits.png").write_bytes(encode_mask(PackedMask.from_bool(car_of(9))))
    else:
        path = tmp_path / "in" / ("bits.png" if encode == "Pillow" else "bits.tif")
        Image.fromarray(car_of(9)).save(path)
    mask = open_folder(tmp_path / "in", ignored=(255,)).read("bits")
    np.testing.assert_array_equal(mask.to_bool(), car_of(9))
    assert mask.ignored is None


def test_a_large_unknown_area_in_a_soft_mask(tmp_path):
    rows, columns = np.mgrid[:200, :300]
    soft = np.clip(255 * (0.5 + (60 - np.hypot(rows - 100, columns - 150)) / 8), 0, 255).astype(np.uint8)
    soft[40:160, 20:140] = 128
    save(tmp_path / "in" / "a.png", soft)
    mask = open_folder(tmp_path / "in", ignored=(128,)).read("a")
    known = soft != 128
    np.testing.assert_array_equal(mask.to_bool(), (soft > 127) & known)
    np.testing.assert_array_equal(mask.ignored_to_bool(), ~known)


def test_a_value_cannot_be_car_and_ignored(tmp_path):
    save_cars(tmp_path / "in", 0, 255)
    with pytest.raises(UsageError, match="The value 255 cannot be both car"):
        open_folder(tmp_path / "in", car=(1, 255), ignored=(255,))


def test_small_faint_soft_masks_in_a_soft_folder(tmp_path):
    ramp = np.clip(255 * (0.5 + (COLUMNS - 20) / 24), 0, 255).astype(np.uint8)
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", ramp)
    save(tmp_path / "in" / "faint.png", (COLUMNS % 10 * 9).astype(np.uint8))
    assert not open_folder(tmp_path / "in").read("faint").to_bool().any()


def test_no_more_files_are_examined_than_needed():
    empty = MaskPixels(np.zeros((2, 2), np.uint8), {0: 0}, 255)
    taken = []

    def files():
        for number in range(10**9):
            taken.append(number)
            yield empty

    assert not decide(files()).empty
    assert len(taken) == MOST_FILES
    assert decide([empty] * 3).empty
