"""Decoded pixels compared with values computed by hand or by another decoder, and reasons for bad files."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from carvana_batch.decode import image_file
from carvana_batch.decode.photo import DecodedImage, decode_image, read_image
from carvana_batch.errors import ImageError
from carvana_batch.masks.read import read_mask
from carvana_batch.notes import Note

HEIGHT, WIDTH = 23, 37
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([X * 6, Y * 10, X * Y % 256], axis=-1).astype(np.uint8)
GREY = (X * 6 + Y).astype(np.uint8)
DEEP = (X * 1700 + Y * 97).astype(np.uint16)  # up to 63334
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "webp": {"lossless": True},
    "gif": {"optimize": False},
    "lzw.tif": {"compression": "tiff_lzw"},
}
CAR = (X - 18) ** 2 + 2 * (Y - 11) ** 2 < 150
READERS: list[Callable[..., Any]] = [read_image, read_mask]


def rounded_to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return value / 257, rounded, in integer arithmetic."""
    return ((values.astype(np.uint32) * 2 + 257) // 514).astype(np.uint8)


def grey_to_rgb(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([values] * 3, axis=-1)


def over_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha[..., np.newaxis] / 255
    return colours * share + 255 * (1 - share)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    """Build a PNG; ``rows`` are scanlines with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *extra,
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
    )


def reason(path: Path, read: Callable[..., Any] = read_image, **options: Any) -> str:
    """Return why ``path`` is refused, and check that the message is one line and begins with the path."""
    with pytest.raises(ImageError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path} ") or not str(path).isprintable()
    return message.removeprefix(f"{path} ")


# ---- photos


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("grün \udcff\n.png", {}),
        ("x" * 251 + ".png", {}),
    ],
)
def test_lossless_formats_give_the_exact_pixels(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        Image.fromarray(RGB).save(file, path.suffix.replace(".tif", ".tiff")[1:], **options)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_pixels_equal_those_of_pillow(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path, quality=90, **options)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image))


def decoded_or_reason(path: Path) -> bytes | str:
    try:
        return read_image(path).tobytes()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": subsampling, "quality": 85} for subsampling in ("4:4:4", "4:2:2", "4:2:0")),
        {"quality": 5},
        {"quality": 100},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
        {"exif": b"Exif\0\0nonsense"},
    ],
)
@pytest.mark.parametrize("size", [(97, 61), (1, 1), (16, 9)])
def test_simplejpeg_gives_the_pixels_of_pillow(
    tmp_path: Path, options: dict[str, Any], size: tuple[int, int]
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    pixels = read_image(path)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_give_the_pixels_of_pillow(tmp_path: Path, mode: str) -> None:
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), np.asarray(image.convert("RGB")))


def test_the_format_depends_on_content_not_suffix(tmp_path: Path) -> None:
    for actual, suffix in [("PNG", "jpg"), ("TIFF", "jpg"), ("BMP", "tif"), ("WEBP", "")]:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(RGB).save(path, actual, lossless=True)
        np.testing.assert_array_equal(read_image(path), RGB)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    for suffix in ["png", "bmp", "tif"]:
        Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), grey_to_rgb(GREY))
    Image.fromarray(GREY).save(tmp_path / "a.jpg", quality=100)
    assert np.ptp(read_image(tmp_path / "a.jpg"), axis=-1).max() == 0


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    for suffix in ["png", "bmp", "tif"]:
        Image.fromarray(CAR).save(tmp_path / f"a.{suffix}")
        expected = grey_to_rgb(np.where(CAR, 255, 0).astype(np.uint8))
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), expected)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", DEEP)
    for name in ["a.png", "a.tif"]:
        np.testing.assert_array_equal(read_image(tmp_path / name), grey_to_rgb(rounded_to_8_bits(DEEP)))


def test_16_bit_rgb_png_is_scaled(tmp_path: Path) -> None:
    colours = np.stack([DEEP, 65535 - DEEP, DEEP // 2], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    (tmp_path / "a.png").write_bytes(png(WIDTH, HEIGHT, 16, 2, rows))
    difference = read_image(tmp_path / "a.png").astype(int) - rounded_to_8_bits(colours)
    assert np.abs(difference).max() <= 1  # Pillow keeps the high byte


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, GREY])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba).save(tmp_path / "a.webp", lossless=True, exact=True)
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    multiplied = np.rint(RGB * (GREY[..., np.newaxis] / 255)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "b.tif", np.dstack([multiplied, GREY]), photometric="rgb", extrasamples=["assocalpha"]
    )
    for name in ["a.png", "a.webp", "a.tif", "b.tif"]:
        tolerance = 2 if name == "b.tif" else 1  # its colours were rounded when they were stored
        assert np.abs(read_image(tmp_path / name) - over_white(RGB, GREY)).max() <= tolerance, name


@pytest.mark.parametrize("shown", [0, 1])
def test_alpha_that_hides_the_whole_photo_is_ignored(tmp_path: Path, shown: int) -> None:
    """Programs give opaque pixels as 1, or as 255 of 65535."""
    alpha = np.where(X % 2, shown, 0).astype(np.uint8)
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "a.png")
    deep = np.dstack([RGB, alpha]).astype(np.uint16)
    deep[..., :3] *= 257
    deep[..., 3] *= 255
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(deep))
    for name, extra in (("a.tif", "unassalpha"), ("b.tif", "assocalpha")):
        tifffile.imwrite(tmp_path / name, np.dstack([RGB, alpha]), photometric="rgb", extrasamples=[extra])
    tifffile.imwrite(tmp_path / "c.tif", deep, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "b.png", "a.tif", "b.tif", "c.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB, name)


def test_grey_with_alpha(tmp_path: Path) -> None:
    alpha = GREY[::-1]
    Image.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "a.png")
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([GREY, alpha]), photometric="minisblack", extrasamples=["unassalpha"]
    )
    for name in ["a.png", "a.tif"]:
        assert np.abs(read_image(tmp_path / name) - over_white(grey_to_rgb(GREY), alpha)).max() <= 1, name


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray((X % 3).astype(np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)[X % 3]
    for suffix in ["png", "gif", "bmp", "tif"]:
        image.save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), expected)

    expected[X % 3 == 1] = 255
    for suffix in ["png", "gif"]:
        image.save(tmp_path / f"b.{suffix}", transparency=1)
        np.testing.assert_array_equal(read_image(tmp_path / f"b.{suffix}"), expected)


def test_only_the_first_frame_of_an_animation_is_decoded(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ["red", "blue"]]
    for suffix in ["gif", "webp", "png", "tif"]:
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **SAVE_OPTIONS.get(suffix, {}))
        np.testing.assert_array_equal(read_image(path), np.broadcast_to([255, 0, 0], RGB.shape))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_further_pages_and_frames_are_noted(tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    first.save(tmp_path / f"b.{suffix}")
    assert decode_image(tmp_path / f"a.{suffix}").notes == (Note.FIRST_PAGE,)
    assert decode_image(tmp_path / f"b.{suffix}").notes == ()


def test_previews_are_not_further_pages(tmp_path: Path) -> None:
    photo = Image.fromarray(RGB)
    photo.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[photo.resize((8, 5))])
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(RGB)
        tiff.write(RGB[::2, ::2], subfiletype=1)
    with Image.open(tmp_path / "a.mpo") as image:
        assert getattr(image, "n_frames", 0) == 2
    for name in ("a.mpo", "b.tif"):
        assert decode_image(tmp_path / name).notes == ()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    # Flat colours, so that JPEG keeps them almost exactly. Pillow writes inverted CMYK, as Adobe does.
    cases = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 128, 255, 51): (204, 102, 0)}
    for ink, expected in cases.items():
        image = Image.new("CMYK", (WIDTH, HEIGHT), ink)
        image.save(tmp_path / "a.jpg", quality=100)
        image.save(tmp_path / "a.tif")
        for name in ["a.jpg", "a.tif"]:
            pixels = read_image(tmp_path / name)
            assert pixels.shape == RGB.shape
            assert np.abs(pixels.astype(int) - expected).max() <= 2, (name, ink)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (16, 16)},
        {"rowsperstrip": 5, "compression": "lzw", "predictor": True},
        {"tile": (16, 32), "compression": "zlib"},
        {"compression": "zstd", "byteorder": ">"},
        {"bigtiff": True, "byteorder": ">"},
    ],
)
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_layouts(tmp_path: Path, bits: int, options: dict[str, Any], planar: bool) -> None:
    colours = RGB if bits == 8 else np.stack([DEEP, 65535 - DEEP, DEEP // 2], axis=-1)
    stored = np.ascontiguousarray(np.moveaxis(colours, -1, 0)) if planar else colours
    config = "separate" if planar else "contig"
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=config, **options)
    expected = RGB if bits == 8 else rounded_to_8_bits(colours)
    pixels = read_image(tmp_path / "a.tif")
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


def test_other_tiff_variants(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, 255 - GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path), grey_to_rgb(GREY))

    tifffile.imwrite(path, GREY // 17, bitspersample=4)
    np.testing.assert_array_equal(read_image(path), grey_to_rgb(GREY // 17 * 17))

    tifffile.imwrite(path, (GREY / 255).astype(np.float32))
    np.testing.assert_array_equal(read_image(path), grey_to_rgb(GREY))

    tifffile.imwrite(path, np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_image(path), RGB)  # the fourth channel is not alpha

    tifffile.imwrite(path, RGB, photometric="ycbcr", compression="jpeg", tile=(16, 16))
    with Image.open(path) as image:
        assert np.abs(read_image(path).astype(int) - np.asarray(image.convert("RGB"))).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 4)])
def test_tiny_tiffs_are_not_squeezed(tmp_path: Path, size: tuple[int, int]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB[: size[0], : size[1]], photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB[: size[0], : size[1]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied_only_when_asked(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif, **SAVE_OPTIONS.get(suffix, {}))
    stored = read_image(path)
    if suffix != "jpg":
        np.testing.assert_array_equal(stored, RGB)
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    upright = read_image(path, apply_exif=True)
    assert upright.flags.c_contiguous
    np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(image)))


def test_orientation_6_by_hand(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first stored row is the right edge of the scene
    stored = np.array([[[10] * 3, [20] * 3], [[30] * 3, [40] * 3], [[50] * 3, [60] * 3]], np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), stored)
    expected = [[50, 30, 10], [60, 40, 20]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", apply_exif=True)[..., 0], expected)


def test_damaged_exif_does_not_affect_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "x" * 50
    Image.fromarray(RGB).save(path, exif=exif)
    data = path.read_bytes()
    pixels = read_image(path)
    start = data.index(b"Exif\0\0") + 6
    for position in range(start, start + 40):
        path.write_bytes(data[:position] + b"\xff" + data[position + 1 :])
        np.testing.assert_array_equal(read_image(path), pixels)
        assert read_image(path, apply_exif=True).size == pixels.size


# ---- tags of TIFF that are missing or wrong


def tiff(values: NDArray[Any], tags: dict[int, list[int]]) -> bytes:
    """Build an uncompressed TIFF with one strip; ``tags`` override or add to those of its size.

    All tags are lists of shorts, except for offset and length of the strip. An empty list leaves a tag out.
    """
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    shorts = {256: [width], 257: [height], 258: [8 * values.itemsize] * samples, 277: [samples], **tags}
    shorts = {tag: entry for tag, entry in shorts.items() if entry}
    start = 8 + 2 + 12 * (len(shorts) + 2) + 4
    long_values = b""
    entries = []
    for tag, entry in shorts.items():
        packed = struct.pack(f"<{len(entry)}H", *entry)
        if len(packed) > 4:
            long_values += packed
            packed = struct.pack("<I", start + len(long_values) - len(packed))
        entries.append(struct.pack("<HHI", tag, 3, len(entry)) + packed.ljust(4, b"\0"))
    entries.append(struct.pack("<HHII", 273, 4, 1, start + len(long_values)))
    entries.append(struct.pack("<HHII", 279, 4, 1, values.nbytes))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + long_values + values.tobytes()


def read_tiff(tmp_path: Path, values: NDArray[Any], tags: dict[int, list[int]]) -> DecodedImage:
    (tmp_path / "a.tif").write_bytes(tiff(values, tags))
    return decode_image(tmp_path / "a.tif")


@pytest.mark.parametrize("largest", [255, 65280, 65535])
def test_tiff_palettes_of_8_and_16_bits(tmp_path: Path, largest: int) -> None:
    """libtiff takes a palette without values above 255 for one of 8 bits."""
    indexes = (X % 3).astype(np.uint8)
    palette = np.zeros((3, 256), int)
    palette[:, :3] = [[0, 51, 255], [102, 255, 0], [255, 204, 153]]
    tags = {262: [3], 320: list((palette * largest // 255).ravel())}
    pixels = read_tiff(tmp_path, indexes, tags).pixels
    np.testing.assert_array_equal(pixels, palette.T[indexes])
    if largest > 255:  # Pillow divides by 256 in any case
        with Image.open(tmp_path / "a.tif") as image:
            np.testing.assert_array_equal(image.convert("RGB"), pixels)


def test_predictors_without_compression_are_ignored(tmp_path: Path) -> None:
    for values in (RGB, GREY):
        pixels = read_tiff(tmp_path, values, {262: [2 if values.ndim == 3 else 1], 317: [2]}).pixels
        np.testing.assert_array_equal(pixels, values if values.ndim == 3 else grey_to_rgb(values))
        with Image.open(tmp_path / "a.tif") as image:  # decoded by libtiff's rules
            np.testing.assert_array_equal(image, values)
    tifffile.imwrite(tmp_path / "b.tif", RGB, compression="zlib", predictor=True)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), RGB)


def test_missing_colour_models_are_guessed_with_a_note(tmp_path: Path) -> None:
    assert read_tiff(tmp_path, RGB, {262: [2]}).notes == ()
    for values, expected in ((RGB, RGB), (GREY, grey_to_rgb(GREY))):
        decoded = read_tiff(tmp_path, values, {})
        np.testing.assert_array_equal(decoded.pixels, expected)
        assert decoded.notes == (Note.GUESSED_COLOURS,)
    two = np.dstack([GREY, GREY])
    colours = list(range(768))
    for values, tags in ((two, {}), (GREY, {320: colours})):
        (tmp_path / "a.tif").write_bytes(tiff(values, tags))
        assert "no colour model (tag PhotometricInterpretation)" in reason(tmp_path / "a.tif")


def test_three_samples_called_grey_are_colours(tmp_path: Path) -> None:
    four = np.dstack([RGB, GREY])
    cases: list[tuple[NDArray[Any], dict[int, list[int]], NDArray[Any]]] = [
        (RGB, {}, RGB),
        (RGB, {338: [0, 0]}, RGB),
        (RGB.astype("<u2") * 257, {338: [0, 0]}, RGB),
        (four, {338: [0, 0, 0]}, RGB),
        (four, {338: [0, 0, 2]}, np.rint(over_white(RGB, GREY))),
    ]
    for values, tags, expected in cases:
        decoded = read_tiff(tmp_path, values, {262: [1], **tags})
        assert np.abs(decoded.pixels - expected.astype(float)).max() <= (1 if 2 in tags.get(338, []) else 0)
        assert decoded.notes == (Note.GUESSED_COLOURS,)
    for photometric, samples in ((1, 5), (0, 3)):
        values = np.dstack([GREY] * samples)
        (tmp_path / "a.tif").write_bytes(tiff(values, {262: [photometric]}))
        assert f"{samples} samples per pixel that are all called grey" in reason(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "lzma", "packbits"])
@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 4}, {"tile": (16, 16)}])
def test_tags_that_contradict_the_size_of_the_data(
    tmp_path: Path, compression: str | None, options: dict[str, Any]
) -> None:
    """BitsPerSample is wrong, or missing, which means 1."""
    path = tmp_path / "a.tif"
    cases = [(GREY, 1, "8 bits"), (GREY, 4, "8 bits"), (DEEP, 8, "16 bits"), (DEEP, 12, "16 bits")]
    for values, bits, contents in cases:
        tifffile.imwrite(path, values, photometric="minisblack", compression=compression, **options)
        assert read_image(path).shape == RGB.shape
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages.first.tags[258].overwrite(bits)
        for read in READERS:
            with pytest.raises(ImageError) as caught:
                read(path)
            if compression is None:
                expected = (
                    f"tags that say 1 x {bits} bits per pixel, but data as large as 1 sample of {contents}"
                )
                assert expected in str(caught.value)


def test_three_samples_of_which_the_tags_say_one(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(RGB, {258: [8], 277: [1], 262: [1]}))
    with pytest.raises(ImageError, match="1 x 8 bits per pixel, but data as large as 3 samples of 8 bits"):
        read_image(tmp_path / "a.tif")


def test_a_last_strip_may_claim_the_size_of_the_others(tmp_path: Path) -> None:
    values = np.tile(GREY, (2, 1))[:24]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", rowsperstrip=16)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        counts = file.pages.first.databytecounts
        file.pages.first.tags[279].overwrite((counts[0], counts[0]))
    assert counts[0] == 2 * counts[1]
    with (tmp_path / "a.tif").open("ab") as file:
        file.write(b"x" * counts[1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], values)


def test_a_single_page_called_a_thumbnail_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(path), RGB)
    tifffile.imwrite(path, RGB, photometric="rgb", append=True)
    with pytest.raises(ImageError, match="a thumbnail as its first page"):
        read_image(path)


# ---- depth


FULL = np.dstack([X * 7, Y * 11, X + Y]).astype(np.uint16) % 256  # 8-bit values, up to 252


def deep_png(values: NDArray[np.uint16], *chunks: bytes) -> bytes:
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour_type, rows, *chunks)


@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_cameras_of_fewer_bits_are_not_dark(tmp_path: Path, bits: int, channels: int) -> None:
    """Their values fill the lower bits of 16; only 15 bits cannot be told from a dark photo."""
    values = (FULL[..., : 3 if channels > 2 else 1] << (bits - 8)).astype(np.uint16)
    expected = np.broadcast_to(FULL if channels > 2 else FULL[..., :1], RGB.shape)
    extra: dict[str, Any] = {}
    if channels in {2, 4}:
        values = np.dstack([values, np.full(values.shape[:2], 2**bits - 1, np.uint16)])
        extra["extrasamples"] = ["unassalpha"]
    (tmp_path / "a.png").write_bytes(deep_png(values))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb" if channels > 2 else "minisblack", **extra)
    for name in ("a.png", "a.tif"):
        decoded = decode_image(tmp_path / name)
        if bits == 15:
            assert decoded.notes == ()
            continue
        assert decoded.notes == (() if bits == 16 else (f"scaled from {bits} bits",))
        difference = decoded.pixels.astype(int) - expected
        assert np.abs(difference).max() <= 1, name  # 255 * (v << k) / (2**bits - 1) is at most 1 below v


@pytest.mark.parametrize("bits", [9, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_bits_in_16_bits_of_phone_formats(tmp_path: Path, bits: int, channels: int) -> None:
    values = (FULL[..., :channels] << (bits - 8)).astype(np.uint16)
    expected = np.broadcast_to(FULL[..., :channels], RGB.shape)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(values, lossless=True))
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(values, level=0, reversible=True))
    (tmp_path / "a.j2k").write_bytes(
        imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k")
    )
    for name in ("a.jxl", "a.jp2", "a.j2k"):
        decoded = decode_image(tmp_path / name)
        assert decoded.notes == (() if bits == 16 else (f"scaled from {bits} bits",))
        assert np.abs(decoded.pixels.astype(int) - expected).max() <= 1, name


@pytest.mark.parametrize("channels", [1, 3])
def test_hot_pixels_do_not_make_a_photo_dark(tmp_path: Path, channels: int) -> None:
    """A few pixels that are larger than 12 or 14 bits become white; many are a part of the picture."""
    model = "rgb" if channels == 3 else "minisblack"
    expected = np.broadcast_to(FULL[..., :channels], RGB.shape)
    for bits, largest in ((12, 65535), (12, 18384), (14, 17983)):
        values = (FULL[..., :channels] << (bits - 8)).astype(np.uint16)
        values[3, 3:8] = largest
        (tmp_path / "a.png").write_bytes(deep_png(values))
        tifffile.imwrite(tmp_path / "a.tif", values, photometric=model)
        (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(values, lossless=True))
        for name in ("a.png", "a.tif", "a.jxl"):
            decoded = decode_image(tmp_path / name)
            assert decoded.notes == (f"scaled from {bits} bits",)
            assert (decoded.pixels[3, 3:8] == 255).all()
            difference = np.abs(decoded.pixels.astype(int) - expected)
            difference[3, 3:8] = 0
            assert difference.max() <= 1
        values[4, :17] = largest
        tifffile.imwrite(tmp_path / "a.tif", values, photometric=model)
        assert decode_image(tmp_path / "a.tif").notes == ()


def test_a_level_of_black_does_not_make_a_photo_dark(tmp_path: Path) -> None:
    values = FULL.astype(np.uint16) * 65 + 600
    values[:5] = 16383 + 600
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    decoded = decode_image(tmp_path / "a.tif")
    assert decoded.notes == ("scaled from 14 bits",)
    assert (decoded.pixels[:5] == 255).all()
    np.testing.assert_array_equal(decoded.pixels[5:], np.rint(values[5:] / 16383 * 255).clip(0, 255))
    values[1:3] = 16384 + 1024
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    assert decode_image(tmp_path / "a.tif").notes == ()


def test_floating_point_values_of_fewer_bits_are_not_dark(tmp_path: Path) -> None:
    for model, values in (("rgb", FULL), ("minisblack", FULL[..., 0])):
        tifffile.imwrite(tmp_path / "a.tif", ((values << 4) / 65535).astype(np.float32), photometric=model)
        decoded = decode_image(tmp_path / "a.tif")
        assert decoded.notes == ("scaled from 12 bits",)
        difference = decoded.pixels[..., 0].astype(int) - FULL[..., 0]
        assert np.abs(difference).max() <= 1
        tifffile.imwrite(tmp_path / "a.tif", (values / 900).astype(np.float32), photometric=model)
        assert decode_image(tmp_path / "a.tif").notes == ()


def test_declared_bits_of_tiffs_are_used(tmp_path: Path) -> None:
    dark = FULL << 2  # 10 bits, 1008 at most
    for declared, bits in ((4095, 12), (1023, 10), (65535, 16), (1008, 10), (511, 10), (32767, 10)):
        for values, model in ((dark, "rgb"), (dark[..., 0], "minisblack")):
            tifffile.imwrite(
                tmp_path / "a.tif", values, photometric=model, extratags=[(281, "H", 1, declared, True)]
            )
            decoded = decode_image(tmp_path / "a.tif")
            expected = np.rint(values / (2**bits - 1) * 255)
            np.testing.assert_array_equal(decoded.pixels[..., 0], expected.reshape(*X.shape, -1)[..., 0])
            assert decoded.notes == (() if bits == 16 else (f"scaled from {bits} bits",))


def test_nonsense_in_the_largest_value_does_not_cost_the_picture(tmp_path: Path) -> None:
    for kind, count, value in (("s", 0, "many"), ("f", 1, 4095.0), ("H", 0, []), ("h", 1, -1), ("H", 1, 0)):
        tifffile.imwrite(
            tmp_path / "a.tif", FULL << 2, photometric="rgb", extratags=[(281, kind, count, value, True)]
        )
        assert decode_image(tmp_path / "a.tif").notes == ("scaled from 10 bits",)


def test_declared_bits_of_pngs_are_used_if_not_scaled(tmp_path: Path) -> None:
    dark = FULL << 2 | FULL >> 6  # 10 bits
    scaled = np.rint(dark // 20 * (65535 / 4095)).astype(np.uint16)  # 12 bits, by the standard
    cases = [(dark, 12, 12), (dark, 10, 10), (dark, 9, 10), (dark, 16, 16), (scaled, 12, 16)]
    for values, declared, bits in cases:
        (tmp_path / "a.png").write_bytes(deep_png(values, png_chunk(b"sBIT", bytes([declared] * 3))))
        decoded = decode_image(tmp_path / "a.png")
        np.testing.assert_array_equal(decoded.pixels, np.rint(values / (2**bits - 1) * 255))
        assert decoded.notes == (() if bits == 16 else (f"scaled from {bits} bits",))


def test_packed_tiffs_of_fewer_bits_have_no_note(tmp_path: Path) -> None:
    values = (FULL << 4).astype(np.uint16)
    packed = np.stack(
        [np.frombuffer(imagecodecs.packints_encode(row.ravel(), 12), np.uint8) for row in values]
    )
    content = tiff(packed, {256: [WIDTH], 258: [12] * 3, 277: [3], 262: [2]})
    (tmp_path / "a.tif").write_bytes(content)
    decoded = decode_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(decoded.pixels, np.rint(values / 4095 * 255))
    assert decoded.notes == ()


def test_black_photos_stay_black_without_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(deep_png(np.zeros((5, 7, 3), np.uint16)))
    decoded = decode_image(tmp_path / "a.png")
    assert (decoded.pixels.max(), decoded.notes) == (0, ())


# ---- transparent colours


@pytest.mark.parametrize(("bits", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_transparent_colours_become_white_at_every_depth(tmp_path: Path, bits: int, colour_type: int) -> None:
    channels = 3 if colour_type == 2 else 1
    values = np.dstack([(X + 3 * Y + channel) % 7 for channel in range(channels)]) % 2**bits
    if bits == 16:
        values = values * 10_000 + 5  # with other high and low bytes
        values[0, 0] = values[0, 1] - 1  # differs from the transparent colour in the low byte only
    key = values[0, 1]
    if bits == 16:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    else:
        samples = np.unpackbits(values.astype(np.uint8)[..., np.newaxis], axis=-1)[..., 8 - bits :]
        rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in samples)
    extra = png_chunk(b"tRNS", struct.pack(f">{channels}H", *key))
    (tmp_path / "a.png").write_bytes(png(WIDTH, HEIGHT, bits, colour_type, rows, extra))
    expected = np.rint(values * 255 / (2**bits - 1))
    expected = np.where((values == key).all(axis=2, keepdims=True), 255, expected)
    assert 0 < (values == key).all(axis=2).sum() < values.size
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.broadcast_to(expected, RGB.shape))


@pytest.mark.parametrize("header", [40, 56, 108, 124])
@pytest.mark.parametrize("alpha", [0, 255, 128])
def test_bmps_of_32_bits(tmp_path: Path, header: int, alpha: int) -> None:
    """Without a mask for alpha, the fourth byte has no meaning; if it is 0 throughout, it is not alpha."""
    bgra = np.dstack([RGB[::-1, :, ::-1], np.full(X.shape, alpha, np.uint8)])
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) if header > 40 else b""
    fields = struct.pack(
        "<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, 32, 3 if masks else 0, bgra.size, 0, 0, 0, 0
    )
    fields = (fields + masks).ljust(header, b"\0")
    start = 14 + len(fields)
    data = b"BM" + struct.pack("<IHHI", start + bgra.size, 0, 0, start) + fields + bgra.tobytes()
    (tmp_path / "a.bmp").write_bytes(data)
    share = alpha / 255 if masks and alpha else 1
    expected = RGB * share + 255 * (1 - share)
    assert np.abs(read_image(tmp_path / "a.bmp") - expected).max() <= 1


# ---- photos that cannot be used


def test_truncated_jpegs_are_refused(tmp_path: Path) -> None:
    Image.effect_noise((200, 120), 60).convert("RGB").save(tmp_path / "whole.jpg", quality=90)
    data = (tmp_path / "whole.jpg").read_bytes()
    read_image(tmp_path / "whole.jpg")
    path = tmp_path / "a.jpg"
    for percent in range(5, 100, 5):
        path.write_bytes(data[: len(data) * percent // 100])
        assert "cut short" in reason(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "webp", "tif", "lzw.tif"])
def test_truncated_files_of_other_formats_are_refused(tmp_path: Path, suffix: str) -> None:
    options = SAVE_OPTIONS.get(suffix, {})
    image = Image.effect_noise((60, 40), 60)
    image.save(tmp_path / f"whole.{suffix}", **options)
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"a.{suffix}"
    for percent in range(5, 100, 5):
        path.write_bytes(data[: len(data) * percent // 100])
        assert "cut short" in reason(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "lzw.tif"])
def test_damaged_bytes_give_pixels_or_a_reason(tmp_path: Path, suffix: str) -> None:
    options = SAVE_OPTIONS.get(suffix, {})
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, **options)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        for position in random.integers(0, min(len(data), random.choice([64, 10_000])), 3):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        for read in READERS:
            try:
                read(path, pixel_limit=1_000_000)
            except ImageError as error:
                refused += 1
                assert str(error).isprintable()
    assert refused > 0


def test_the_size_is_checked_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000, 8, 2, b""))
    message = reason(tmp_path / "a.png")
    assert message.startswith("has 60000 x 60000 pixels, more than the limit of 200,000,000;")
    assert "--pixel-limit" in message

    tifffile.imwrite(tmp_path / "a.tif", RGB)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for tag, value in [(256, 60_000), (257, 60_000)]:  # ImageWidth, ImageLength
        position = data.index(struct.pack("<H", tag)) + 8
        data[position : position + 4] = struct.pack("<I", value)
    (tmp_path / "a.tif").write_bytes(data)
    assert reason(tmp_path / "a.tif").startswith("has 60000 x 60000 pixels")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_the_pixel_limit_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path)
    for read in READERS:
        assert "limit" in reason(path, read, pixel_limit=WIDTH * HEIGHT - 1)
    assert read_image(path, pixel_limit=WIDTH * HEIGHT).shape == RGB.shape


def test_pillows_own_limit_does_not_interfere(tmp_path: Path) -> None:
    side = 13_400  # 179.6 million pixels: Pillow alone would warn, and warnings are errors here
    row = b"\0" + bytes(side // 8)
    packed = zlib.compressobj(1)
    data = b"".join([packed.compress(row) for _ in range(side)]) + packed.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(body)
    mask = read_mask(tmp_path / "a.png")
    assert (mask.height, mask.width) == (side, side)


def test_files_that_are_not_images(tmp_path: Path) -> None:
    contents = {
        "empty.jpg": (b"", "is empty (0 bytes)"),
        "text.jpg": (b"not a photo at all\n", "is not an image in a supported format"),
        "page.png": (b"<!DOCTYPE html>", "is not an image in a supported format"),
        "photoshop.jpg": (b"8BPS\0\1" + bytes(30), "is a Photoshop file, which is not read; save it as"),
        "camera.nef": (b"II*\0\x08\0\0\0", "is a raw file of a camera, which is not read"),
        "canon.jpg": (b"II*\0\x10\0\0\0CR\2\0", "is a raw file of a camera, which is not read"),
        "canon3.jpg": (b"\0\0\0\x18ftypcrx \0\0\0\1", "is a raw file of a camera, which is not read"),
        "targa.tga": (bytes(30), "is a TGA file, which is not read"),
        "video.mp4": (b"\0\0\0\x18ftypmp42", "is not an image in a supported format"),
        "wave.webp": (b"RIFF\x24\0\0\0WAVEfmt ", "is not an image in a supported format"),
        "start.jpg": (b"\xff\xd8\xff", "is damaged or cut short: its header cannot be read"),
        "start.tif": (b"II*\0\x08\0\0\0", "is damaged or cut short"),
        "bm.bmp": (b"BM, the beginning of a text", "is cut short"),
        "zero.png": (png(0, 5, 8, 2, b""), "is damaged or cut short"),
    }
    for name, (data, expected) in contents.items():
        (tmp_path / name).write_bytes(data)
        assert reason(tmp_path / name).startswith(expected), name


def test_paths_that_are_not_regular_files(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "folder.jpg") == "is a folder, not an image"
    assert reason(tmp_path / "missing.jpg") == "does not exist"
    (tmp_path / "link.jpg").symlink_to("missing.jpg")
    assert reason(tmp_path / "link.jpg") == "is a link to a file that does not exist"
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert reason(tmp_path / "loop.jpg").startswith("cannot be read: Too many levels of symbolic links")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "is not a regular file"
    assert reason(tmp_path / ("x" * 300 + ".jpg")).startswith("cannot be read: File name too long")
    assert reason(tmp_path / "a.jpg" / "b.jpg") == "does not exist"
    assert "cannot be read" in reason(tmp_path / "pipe.jpg" / "b.jpg")
    assert r"new\nline\udcff.jpg does not exist" in reason(tmp_path / "new\nline\udcff.jpg")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")]
)
def test_disk_errors_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)  # because root may read every file
    assert reason(tmp_path / "a.jpg") == f"cannot be read: {error.strerror}"


def test_out_of_memory_is_not_mistaken_for_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png")


def png_with(*chunks: bytes) -> bytes:
    """Build a PNG of ``RGB`` with further chunks before the pixels."""
    return png(WIDTH, HEIGHT, 8, 2, b"".join(b"\0" + row.tobytes() for row in RGB), *chunks)


def test_png_metadata_never_cost_the_picture(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(32, 120, 1_500_000).astype(np.uint8).tobytes()
    packed = zlib.compress(noise)
    bomb = zlib.compress(bytes(80_000_000), 9)

    def damaged(chunk: bytes) -> bytes:
        return chunk[:-4] + bytes(4)

    chunks = {
        "large profile": png_chunk(b"iCCP", b"icc\0\0" + packed),
        "large XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
        "large text": png_chunk(b"tEXt", b"Comment\0" + noise),
        "text bomb": png_chunk(b"zTXt", b"key\0\0" + bomb),
        "XMP bomb": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        "EXIF bomb": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb),
        "text that is not compressed": png_chunk(b"zTXt", b"Raw profile type exif\0\0nonsense"),
        "wrong checksum of a profile": damaged(png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * 99))),
        "wrong checksum of a text": damaged(png_chunk(b"tEXt", b"Comment\0hello")),
        "wrong checksum of an unknown chunk": damaged(png_chunk(b"prVt", b"zz")),
        "wrong checksum of EXIF": damaged(png_chunk(b"eXIf", b"II*\0")),
        "nonsense in EXIF": png_chunk(b"eXIf", b"nonsense"),
        "empty sRGB": png_chunk(b"sRGB", b""),
        "short pHYs": png_chunk(b"pHYs", b"\0\0"),
        "short tRNS": png_chunk(b"tRNS", b"\0"),
        "short acTL": png_chunk(b"acTL", b"\0"),
        "empty sBIT": png_chunk(b"sBIT", b""),
        "empty gAMA and cHRM": png_chunk(b"gAMA", b"") + png_chunk(b"cHRM", b"\0"),
    }
    path = tmp_path / "a.png"
    for name, chunk in chunks.items():
        path.write_bytes(png_with(chunk))
        np.testing.assert_array_equal(read_image(path, apply_exif=True), RGB, name)
    deep = np.repeat(RGB.astype(">u2") * 257, 1, axis=0)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    path.write_bytes(png(WIDTH, HEIGHT, 16, 2, rows, *chunks.values()))
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("place", ["before", "after"])
def test_orientations_in_any_png_chunk_are_kept(tmp_path: Path, place: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    legacy = f"\nexif\n{len(body) + 6}\n{(b'Exif' + bytes(2) + body).hex()}\n".encode()
    xmp = b'<rdf:Description tiff:Orientation="3"/>'
    chunks = {
        "eXIf": png_chunk(b"eXIf", body),
        "legacy": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(legacy)),
        "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "compressed XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    }
    end = png_chunk(b"IEND", b"")
    for name, chunk in chunks.items():
        data = png_with(chunk) if place == "before" else png_with().removesuffix(end) + chunk + end
        (tmp_path / "a.png").write_bytes(data)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png", apply_exif=True), RGB[::-1, ::-1], name)


def test_a_png_that_lacks_its_palette_is_refused(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    (tmp_path / "a.png").write_bytes(png(WIDTH, HEIGHT, 8, 3, rows))
    assert reason(tmp_path / "a.png") == "is damaged: it has no colours for its palette"


def test_wrong_checksums_of_png_pixels_are_refused(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in RGB.astype(">u2") * 257)
    for data in (png_with(), png(WIDTH, HEIGHT, 16, 2, rows)):  # decoded by Pillow and by libpng
        for kind in (b"IHDR", b"IDAT"):
            start = data.index(kind)
            end = start + 4 + int.from_bytes(data[start - 4 : start])
            (tmp_path / "a.png").write_bytes(data[:end] + bytes(4) + data[end + 4 :])
            assert reason(tmp_path / "a.png") == "is damaged: a checksum of its picture data is wrong"
            accepted = decode_image(tmp_path / "a.png", accept_damage=True)
            np.testing.assert_array_equal(accepted.pixels, RGB)
            assert accepted.notes == (Note.DAMAGED,)
    (tmp_path / "b.png").write_bytes(png_with(png_chunk(b"CgBI", bytes(4))))
    assert reason(tmp_path / "b.png") == "is damaged, or contains more than the PNG standard allows"


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (GREY.astype(np.float32), {}, "floating-point values outside of 0 to 1"),
        (np.full((5, 5), np.nan, np.float32), {}, "floating-point values outside of 0 to 1"),
        (GREY.astype(np.int16), {}, "16-bit values of kind int16"),
        (GREY.astype(np.uint32), {}, "32-bit values of kind uint32"),
        (RGB, {"photometric": "cielab"}, "the colour model CIELAB"),
        (RGB, {"photometric": "ycbcr"}, "the colour model YCBCR"),
        (
            np.zeros((4, 16, 16), np.uint8),
            {"volumetric": True, "tile": (16, 16, 16), "photometric": "minisblack"},
            "number of planes",
        ),
    ],
)
def test_tiffs_that_would_be_misread_are_refused(
    tmp_path: Path, values: NDArray[Any], options: dict[str, Any], expected: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    assert expected in reason(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits"])
def test_the_size_that_a_strip_claims_takes_no_memory(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    for strip in (0, -1):
        tifffile.imwrite(path, GREY, compression=compression, bigtiff=True, rowsperstrip=HEIGHT // 2)
        with tifffile.TiffFile(path, mode="r+") as file:
            tag = file.pages.first.tags["StripByteCounts"]
            sizes = list(tag.value)
            sizes[strip] = 2**50
            tag.overwrite(sizes, dtype="Q")
        if strip == -1 and compression != "packbits":  # which does not end by itself
            np.testing.assert_array_equal(read_image(path), grey_to_rgb(GREY))
        for read in READERS:
            with contextlib.suppress(ImageError):
                read(path)


@pytest.mark.parametrize("compression", [None, "jpeg"])
def test_strips_without_an_offset_are_not_filled_with_the_header(
    tmp_path: Path, compression: str | None
) -> None:
    path = tmp_path / "a.tif"
    values = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    tifffile.imwrite(path, values, photometric="rgb", compression=compression, rowsperstrip=16)
    assert read_image(path).shape == values.shape
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages.first.tags["StripOffsets"]
        assert tag.count > 2
        tag.overwrite([tag.value[0], 0, *tag.value[2:]])
    for read in READERS:
        assert reason(path, read) == "is damaged: parts of the picture are missing"


def test_missing_tiles_are_not_filled_with_black(tmp_path: Path) -> None:
    tiles = iter([RGB[:16, :16], None])
    tifffile.imwrite(
        tmp_path / "a.tif", tiles, shape=(16, 32, 3), dtype=np.uint8, tile=(16, 16), photometric="rgb"
    )
    assert "parts of the picture are missing" in reason(tmp_path / "a.tif")


def test_long_lzw_data_is_decoded_exactly(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 150, 3)).astype(np.uint8)  # many clear codes
    tifffile.imwrite(tmp_path / "a.tif", noise, photometric="rgb", compression="lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), noise)
    Image.fromarray(noise).save(tmp_path / "b.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), noise)


@pytest.mark.parametrize("damage", [b"\x80\x7f\xff", b"\0\xff\xff"])
def test_damaged_lzw_does_not_crash_the_interpreter(tmp_path: Path, damage: bytes) -> None:
    """imagecodecs 2026.3.6 does not check for an undefined code right after the first clear code."""
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression="lzw")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        start = tiff.pages.first.dataoffsets[0]
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[:start] + damage + data[start + 3 :])
    code = (
        "import sys; from pathlib import Path; from carvana_batch.decode.photo import *\n"
        "try: read_image(Path(sys.argv[1]))\nexcept Exception as error: print(type(error), error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True, check=True)
    assert b"is damaged" in done.stdout


def test_tifffile_prints_nothing(tmp_path: Path) -> None:
    """In a separate interpreter, because pytest captures logging."""
    tifffile.imwrite(tmp_path / "a.tif", RGB)
    data = (tmp_path / "a.tif").read_bytes().replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 99))
    (tmp_path / "a.tif").write_bytes(data)
    code = "import sys; from pathlib import Path; from carvana_batch.decode.photo import *\n" + (
        "try: read_image(Path(sys.argv[1]))\nexcept Exception as error: print(type(error), error)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "a.tif"], capture_output=True, check=True
    )
    assert done.stderr == b""
    assert b"a.tif is damaged" in done.stdout


def test_threads_can_read_concurrently(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"  # Pillow warns about it, and warnings are errors here
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    expected = read_image(tmp_path / "a.jpg")
    results: list[NDArray[np.uint8]] = []

    def work() -> None:
        results.extend(read_image(tmp_path / "a.jpg", apply_exif=True) for _ in range(30))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 120
    assert all(np.array_equal(pixels, expected) for pixels in results)


def test_a_worker_forked_while_the_lock_is_held_can_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with image_file.warnings_lock:  # as if another thread held it
        worker = multiprocessing.get_context("fork").Process(target=read_image, args=[tmp_path / "a.png"])
        worker.start()
        worker.join(timeout=30)
    if worker.is_alive():
        worker.kill()
    assert worker.exitcode == 0


def test_padding_bits_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(11, 2, 1, 0, b"\0\xff\xff" + b"\0\x00\x1f"))
    assert read_mask(tmp_path / "a.png").rows.tolist() == [[0xFF, 0xE0], [0x00, 0x00]]
