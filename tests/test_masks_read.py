"""Masks of every format and value convention, compared with the pixels that the test chose as car."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from carvana_batch.decode.photo import read_image
from carvana_batch.errors import ImageError
from carvana_batch.masks.folder import decide_values
from carvana_batch.masks.read import read_mask
from carvana_batch.values import PackedMask

HEIGHT, WIDTH = 23, 37
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([X * 6, Y * 10, X * Y % 256], axis=-1).astype(np.uint8)
GREY = (X * 6 + Y).astype(np.uint8)
CAR = (X - 18) ** 2 + 2 * (Y - 11) ** 2 < 150
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"gif": {"optimize": False}}


def grey_to_rgb(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([values] * 3, axis=-1)


def read(path: Path) -> PackedMask:
    """Read a mask as the only one of its folder."""
    return read_mask(path, decide_values(path.parent, [path]))


def reason(path: Path) -> str:
    """Return why a mask is refused, and check that the message is one line and begins with the path."""
    with pytest.raises(ImageError) as caught:
        read_mask(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path} ")
    return message.removeprefix(f"{path} ")


def assert_mask(path: Path, expected: NDArray[np.bool_]) -> None:
    mask = read(path)
    assert isinstance(mask, PackedMask)
    assert mask.rows.flags.writeable
    np.testing.assert_array_equal(mask.rows, np.packbits(expected, axis=1))
    assert mask.width == expected.shape[1]


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 20), seed=st.integers(0, 1000))
def test_one_bit_masks_round_trip_at_any_width(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, seed: int
) -> None:
    car = np.random.default_rng(seed).random((height, width)) < 0.5
    path = tmp_path_factory.getbasetemp() / "round-trip"
    for image_format in ["PNG", "TIFF", "BMP", "GIF"]:
        Image.fromarray(car).save(path, image_format)
        assert_mask(path, car)


def palette_image(indexes: NDArray[np.integer[Any]], *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indexes.astype(np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    return image


BLACK, WHITE, DARK_RED = (0, 0, 0), (255, 255, 255), (128, 0, 0)


@pytest.mark.parametrize(
    ("indexes", "colours", "expected"),
    [
        (CAR, (BLACK, WHITE), CAR),  # the ground truth of Carvana
        (CAR, (BLACK, DARK_RED), CAR),  # labels of classes
        (CAR, (BLACK, (1, 1, 1)), CAR),
        (CAR, (BLACK, BLACK), CAR),
        (~CAR, (WHITE, BLACK), CAR),  # tools that optimise palettes may put white first
        (~CAR, ((252,) * 3, (3,) * 3), CAR),  # and after JPEG it is not quite white
        (~CAR * 3, (DARK_RED, BLACK, BLACK, (0, 0, 60)), CAR),
        (CAR * 2, (BLACK, BLACK, BLACK), CAR),  # a palette that says nothing
        (CAR * 5, (BLACK, BLACK, BLACK, BLACK, BLACK, WHITE), CAR),
        (np.zeros((3, 9)), (BLACK, WHITE), np.zeros((3, 9), bool)),
        (np.ones((3, 9)), (BLACK, WHITE), np.ones((3, 9), bool)),
        (np.zeros((3, 9)), (WHITE, BLACK), np.ones((3, 9), bool)),
        (np.arange(4)[np.newaxis], (BLACK, (127,) * 3, (128,) * 3, WHITE), np.array([[0, 0, 1, 1]], bool)),
        (np.arange(4)[np.newaxis], (WHITE, (128,) * 3, (127,) * 3, BLACK), np.array([[1, 1, 0, 0]], bool)),
    ],
)
def test_palette_masks(
    tmp_path: Path,
    indexes: NDArray[np.integer[Any]],
    colours: tuple[tuple[int, int, int], ...],
    expected: NDArray[np.bool_],
) -> None:
    for suffix in ["gif", "png", "tif"]:
        path = tmp_path / f"a.{suffix}"
        palette_image(indexes, *colours).save(path, **SAVE_OPTIONS.get(suffix, {}))
        assert_mask(path, expected)


def test_masks_that_pillow_saves_as_gif_keep_their_meaning(tmp_path: Path) -> None:
    for car in [CAR, ~CAR, np.zeros_like(CAR), np.ones_like(CAR)]:
        for image in [Image.fromarray(car), Image.fromarray(np.where(car, 255, 0).astype(np.uint8))]:
            image.save(tmp_path / "a.gif")
            assert_mask(tmp_path / "a.gif", car)


@pytest.mark.parametrize("high", [1, 2, 100, 255])
def test_grey_masks(tmp_path: Path, high: int) -> None:
    values = np.where(CAR, high, 0).astype(np.uint8)
    for name in ["a.png", "a.bmp", "a.tif"]:
        Image.fromarray(values).save(tmp_path / name)
        assert_mask(tmp_path / name, CAR)
        Image.fromarray(grey_to_rgb(values)).save(tmp_path / name)
        assert_mask(tmp_path / name, CAR)
    for name in ["b.png", "b.tif"]:
        Image.fromarray(np.dstack([values] * 3 + [np.full_like(values, 255)])).save(tmp_path / name)
        assert_mask(tmp_path / name, CAR)


@pytest.mark.parametrize("high", [1, 255, 4095, 65535])
def test_16_bit_masks(tmp_path: Path, high: int) -> None:
    values = np.where(CAR, high, 0).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", values, compression="zlib")
    for name in ["a.png", "a.tif"]:
        assert_mask(tmp_path / name, CAR)


def test_jpeg_masks(tmp_path: Path) -> None:
    values = np.where(CAR, 255, 0).astype(np.uint8)
    for image in [Image.fromarray(values), Image.fromarray(grey_to_rgb(values))]:
        image.save(tmp_path / "a.jpg", quality=95)
        assert_mask(tmp_path / "a.jpg", CAR)


def test_min_is_white_masks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ~CAR, photometric="miniswhite")
    assert_mask(tmp_path / "a.tif", CAR)


def test_images_that_are_not_masks(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "colours.png")
    assert reason(tmp_path / "colours.png").startswith("has coloured pixels")
    palette_image(X % 3, BLACK, WHITE, DARK_RED).save(tmp_path / "palette.png")
    count = np.count_nonzero(X % 3 == 2)
    assert reason(tmp_path / "palette.png").endswith(
        f"{count} pixels are neither, such as (128, 0, 0) at x 2, y 0"
    )
    Image.fromarray(np.dstack([grey_to_rgb(GREY), GREY])).save(tmp_path / "alpha.png")
    assert reason(tmp_path / "alpha.png").startswith("has transparent pixels")
    assert "save the alpha channel as a grey image" in reason(tmp_path / "alpha.png")
    palette_image(X % 3, BLACK, WHITE, BLACK).save(tmp_path / "alpha.gif", transparency=0)
    assert reason(tmp_path / "alpha.gif").startswith("has transparent pixels")
    Image.new("CMYK", (9, 9)).save(tmp_path / "ink.jpg")
    assert reason(tmp_path / "ink.jpg").startswith("has pixels of the kind CMYK")
    (tmp_path / "text.png").write_text("no mask")
    assert reason(tmp_path / "text.png").startswith("is not an image in a supported format")


def test_masks_of_all_formats_are_equal(tmp_path: Path) -> None:
    """0/1, 0/255, 0/65535, one bit, palettes and three equal channels give the same mask."""
    white = np.where(CAR, 255, 0).astype(np.uint8)
    for number, image in enumerate(
        [
            Image.fromarray(CAR),
            Image.fromarray(CAR.astype(np.uint8)),
            Image.fromarray(white),
            Image.fromarray(grey_to_rgb(white)),
            Image.fromarray(np.where(CAR, 65535, 0).astype(np.uint16)),
            palette_image(CAR, BLACK, WHITE),
            palette_image(CAR, BLACK, DARK_RED),
            palette_image(~CAR, WHITE, BLACK),
        ]
    ):
        path = tmp_path / f"{number}.png"
        image.save(path)
        np.testing.assert_array_equal(read(path).to_bool(), CAR)
    palette_image(CAR, BLACK, WHITE).save(tmp_path / "a.gif")
    tifffile.imwrite(tmp_path / "a.tif", CAR, photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path / "a.gif").to_bool(), CAR)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").to_bool(), ~CAR)
    for empty in [Image.new("L", (9, 5)), Image.new("1", (9, 5))]:
        for name in ["b.png", "b.jpg"]:
            empty.save(tmp_path / name)
            assert not read(tmp_path / name).to_bool().any()


def test_palettes_of_two_equally_bright_colours_are_refused(tmp_path: Path) -> None:
    lumas: dict[int, Any] = {}
    colour: Any = None
    for colour in itertools.product(range(0, 256, 5), repeat=3):
        luma = 299 * colour[0] + 587 * colour[1] + 114 * colour[2]
        if luma in lumas:
            break
        lumas[luma] = colour
    palette_image(CAR, lumas[luma], colour).save(tmp_path / "a.png")
    assert "equally bright" in reason(tmp_path / "a.png")


def test_masks_with_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.where(page, 255, 0).astype(np.uint8)) for page in (CAR, ~CAR)]
    for name in ("a.tif", "a.gif", "a.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert reason(tmp_path / name).startswith("has 2 pages")
    tifffile.imwrite(tmp_path / "one.tif", np.where(CAR, 255, 0).astype(np.uint8))
    assert_mask(tmp_path / "one.tif", CAR)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_masks_with_differing_samples_are_refused(tmp_path: Path, planar: str) -> None:
    background, car = (np.where(one, 255, 0).astype(np.uint8) for one in (~CAR, CAR))
    axis = 2 if planar == "contig" else 0
    for name, second in (("one-hot.tif", car), ("equal.tif", background)):
        samples = np.stack([background, second], axis=axis)
        tifffile.imwrite(tmp_path / name, samples, photometric="minisblack", planarconfig=planar)
    assert reason(tmp_path / "one-hot.tif").startswith("has several samples per pixel")
    assert_mask(tmp_path / "equal.tif", ~CAR)


def test_alpha_that_is_zero_throughout_is_ignored(tmp_path: Path) -> None:
    """Some programs write such alpha into BMP and PNG although the image is opaque."""
    clear = np.zeros(RGB.shape[:2], np.uint8)
    Image.fromarray(np.dstack([RGB, clear])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    grey = np.where(CAR, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([grey, np.zeros_like(grey)])).save(tmp_path / "mask.png")
    assert_mask(tmp_path / "mask.png", CAR)


# ---- soft masks


def test_soft_masks_are_divided_at_half(tmp_path: Path) -> None:
    for dtype, full in ((np.uint8, 255), (np.uint16, 65535)):
        values = np.clip(full * (0.5 + (X - 18) / 12), 0, full).astype(dtype)  # a ramp of 12 pixels
        for name in ("a.png", "a.tif"):
            Image.fromarray(values).save(tmp_path / name)
            assert_mask(tmp_path / name, values > full // 2)
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 0.25, 0.4999, 0.5, 1]], np.float32))
    assert read(tmp_path / "a.tif").to_bool().tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_masks_reduced_by_averaging_are_soft(tmp_path: Path, factor: int) -> None:
    """Averaging by 2 gives only three levels between black and white."""
    rows, columns = np.mgrid[:240, :360]
    car = (columns - 170) ** 2 + 2 * (rows - 115) ** 2 < 9000
    share = car.reshape(240 // factor, factor, 360 // factor, factor).mean(axis=(1, 3))
    values = np.rint(255 * share).astype(np.uint8)
    assert 3 <= len(np.unique(values)) <= 17
    Image.fromarray(values).save(tmp_path / "a.png")
    assert_mask(tmp_path / "a.png", values >= 128)


@pytest.mark.parametrize("blur", [3, 40])
def test_blurred_masks_are_soft(tmp_path: Path, blur: int) -> None:
    rows, columns = np.mgrid[:200, :300]
    distance = 60 - np.hypot(rows - 100, columns - 150)
    values = np.rint(255 * np.clip(0.5 + distance / blur, 0, 1)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert_mask(tmp_path / "a.png", values >= 128)


# ---- JPEG


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 100), (50, 200)])
def test_jpeg_compression_keeps_two_levels(tmp_path: Path, quality: int, low: int, high: int) -> None:
    rows, columns = np.mgrid[:160, :240]
    car = (columns - 120) ** 2 + 2 * (rows - 80) ** 2 < 5000
    Image.fromarray(np.where(car, high, low).astype(np.uint8)).save(tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as image:
        assert len(np.unique(np.asarray(image))) > 2
    wrong = read(tmp_path / "a.jpg").to_bool() != car
    assert wrong.sum() <= (0 if quality > 50 else 0.001 * car.sum())


@pytest.mark.parametrize("high", [1, 2, 40])
def test_jpeg_masks_of_low_contrast_are_refused(tmp_path: Path, high: int) -> None:
    Image.fromarray(np.where(CAR, high, 0).astype(np.uint8)).save(tmp_path / "a.jpg", quality=100)
    assert "JPEG does not keep values as close as 0 and 1; export it again" in reason(tmp_path / "a.jpg")


def test_jpeg_label_maps_are_refused(tmp_path: Path) -> None:
    """JPEG preserves blocks of 8 by 8 equal values."""
    for middle in (64, 128, 191):
        blocks = np.kron(np.array([[0, 0, middle], [255, 255, 255]], np.uint8), np.ones((16, 16), np.uint8))
        Image.fromarray(blocks).save(tmp_path / "a.jpg", quality=100)
        assert "neither near 0 nor near 255" in reason(tmp_path / "a.jpg")


def test_jpeg_masks_of_one_value(tmp_path: Path) -> None:
    for value in (0, 255):
        Image.new("L", (40, 30), value).save(tmp_path / "a.jpg")
        assert_mask(tmp_path / "a.jpg", np.full((30, 40), value == 255))


@pytest.mark.parametrize("third", [30, 60, 110, 128, 200, 235])
def test_jpeg_masks_of_three_levels_are_refused(tmp_path: Path, third: int) -> None:
    rows, columns = np.mgrid[:160, :240]
    values = np.where((columns - 120) ** 2 + 2 * (rows - 80) ** 2 < 5000, 255, 0).astype(np.uint8)
    values[:40, 20:70] = third
    for quality in (75, 95):
        Image.fromarray(values).save(tmp_path / "a.jpg", quality=quality)
        assert "JPEG does not keep the values of such a mask" in reason(tmp_path / "a.jpg")


def resized_ellipse(scale: float, resample: Image.Resampling) -> Image.Image:
    rows, columns = np.mgrid[:320, :480]
    car = (columns - 240) ** 2 + 2 * (rows - 160) ** 2 < 20000
    car[230:260, 150:300] = True
    image = Image.fromarray(car.astype(np.uint8) * 255)
    return image.resize((round(480 * scale), round(320 * scale)), resample)


def trimap(width: int, level: int) -> NDArray[np.uint8]:
    """An ellipse of 255 with a band of another level inside of its outline, over 0."""
    rows, columns = np.mgrid[:320, :480]
    depth = distance_transform_edt((columns - 240) ** 2 + 2 * (rows - 160) ** 2 < 30000)
    return np.where(depth > width, 255, np.where(depth > 0, level, 0)).astype(np.uint8)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("level", [64, 128, 192])
def test_jpeg_trimaps_are_refused(tmp_path: Path, width: int, level: int) -> None:
    for quality in (75, 85, 92, 98):
        Image.fromarray(trimap(width, level)).save(tmp_path / "a.jpg", quality=quality)
        assert "JPEG does not keep the values of such a mask; export it" in reason(tmp_path / "a.jpg")


@pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("scale", [0.4, 0.5, 0.7, 1, 1.5, 2])
def test_resized_jpeg_masks_are_no_trimaps(tmp_path: Path, scale: float, resample: Image.Resampling) -> None:
    image = resized_ellipse(scale, resample)
    car = np.asarray(image) > 127
    for quality in (50, 75, 92, 100):
        image.save(tmp_path / "a.jpg", quality=quality)
        wrong = read(tmp_path / "a.jpg").to_bool() != car
        assert wrong.sum() < 0.01 * car.sum()


def test_resized_trimaps_are_refused(tmp_path: Path) -> None:
    """They have many levels, but most are that of the band."""
    image = Image.fromarray(trimap(12, 128)).resize((320, 213), Image.Resampling.BILINEAR)
    image.save(tmp_path / "a.png")
    assert "where 0 is background and 255 is car" in reason(tmp_path / "a.png")


@pytest.mark.parametrize("car_values", [(), (255,)])
def test_jpeg_does_not_keep_ignored_values(tmp_path: Path, car_values: tuple[int, ...]) -> None:
    """Pixels of 128 would count, except those that are exactly that after compression."""
    rows, columns = np.mgrid[:200, :300]
    soft = np.clip(255 * (0.5 + (60 - np.hypot(rows - 100, columns - 150)) / 40), 0, 255)
    for values in (soft.astype(np.uint8), np.where(soft > 127, 255, 0).astype(np.uint8)):
        Image.fromarray(values).save(tmp_path / "a.jpg", quality=92)
        decided = decide_values(tmp_path, [tmp_path / "a.jpg"], car_values, ignored_values=(128,))
        with pytest.raises(ImageError, match="does not keep the value 128 of --ignore-value; export it"):
            read_mask(tmp_path / "a.jpg", decided)


def test_jpeg_keeps_ignored_values_among_two(tmp_path: Path) -> None:
    Image.fromarray(CAR.astype(np.uint8) * 255).resize((320, 240)).save(tmp_path / "a.jpg", quality=95)
    decided = decide_values(tmp_path, [tmp_path / "a.jpg"], (0,), ignored_values=(255,))
    mask = read_mask(tmp_path / "a.jpg", decided)
    np.testing.assert_array_equal(mask.to_bool(), ~mask.ignored_to_bool())
    assert mask.to_bool().any()


def test_blurred_jpeg_masks_are_soft(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:200, :300]
    distance = 60 - np.hypot(rows - 100, columns - 150)
    values = np.rint(255 * np.clip(0.5 + distance / 40, 0, 1)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=90)
    wrong = read(tmp_path / "a.jpg").to_bool() != (values >= 128)
    assert wrong.sum() < 0.01 * wrong.size


# ---- other depths


@pytest.mark.parametrize("high", [1, 40, 255, 65535])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_masks_of_several_channels(tmp_path: Path, channels: int, high: int) -> None:
    grey = np.where(CAR, high, 0).astype(np.uint16)
    full = np.full_like(grey, 65535)
    values = np.dstack([grey] * (1 if channels == 2 else 3) + [full] * (channels % 2 == 0))
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    assert_mask(tmp_path / "a.png", CAR)


@pytest.mark.parametrize("high", [1, 100, 1023])
def test_10_bit_tiff_masks(tmp_path: Path, high: int) -> None:
    values = np.where(CAR, high, 0).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, bitspersample=10)
    assert_mask(tmp_path / "a.tif", CAR)


def test_values_of_few_bits_are_those_in_the_file(tmp_path: Path) -> None:
    """Decoders scale 7 of 15 to 119 of 255."""
    labels = np.where(CAR, 7, 3).astype(np.uint8)
    labels[:2] = 15
    rows = b"".join(b"\0" + bytes(np.packbits(np.unpackbits(row[:, None], axis=1)[:, 4:])) for row in labels)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 4, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    tifffile.imwrite(tmp_path / "a.tif", labels, bitspersample=4)
    for name in ("a.png", "a.tif"):
        values = decide_values(tmp_path, [tmp_path / name], car_values=(7,), ignored_values=(15,))
        mask = read_mask(tmp_path / name, values)
        np.testing.assert_array_equal(mask.to_bool(), labels == 7)
        np.testing.assert_array_equal(mask.ignored_to_bool(), labels == 15)


def test_jpeg_in_tiff_masks(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:160, :240]
    car = (columns - 120) ** 2 + 2 * (rows - 80) ** 2 < 5000
    values = np.where(car, 100, 0).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, compression="jpeg", photometric="minisblack")
    assert_mask(tmp_path / "a.tif", car)


def test_masks_with_an_orientation_are_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(CAR).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(CAR).save(tmp_path / "a.tif", tiffinfo={274: 3})
    for name in ("a.png", "a.tif"):
        assert "has the EXIF orientation 3, so it is not clear which way it lies" in reason(tmp_path / name)


def test_out_of_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.where(CAR, 255, 0).astype(np.uint8)).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("carvana_batch.masks.read.decode_pixels", fail)
    assert reason(tmp_path / "a.png") == "does not fit into the memory that is free"
