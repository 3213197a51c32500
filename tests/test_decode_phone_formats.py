"""HEIC, AVIF, JPEG XL and JPEG 2000: pixels, depth, orientation, damage, and what to install."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from carvana_batch.decode import image_file
from carvana_batch.decode.jpeg_xl import JpegXlHeader, read_jpeg_xl_header
from carvana_batch.decode.photo import decode_image, read_image
from carvana_batch.errors import ImageError
from carvana_batch.notes import Note

pillow_heif = pytest.importorskip("pillow_heif")

HEIGHT, WIDTH = 48, 80
Y, X = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.stack([X * 3, Y * 5, X + Y], axis=-1).astype(np.uint8)
SMOOTH[:16, :16] = (250, 10, 10)  # in one corner, to see turns
ALPHA = np.where(X < WIDTH // 2, 255, 0).astype(np.uint8)
LOSSY = 4
"""Most by which the mean of a lossy photo may differ from that of the original."""


def saved(image_format: str, pixels: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def heic(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=95, chroma=444)
    return buffer.getvalue()


def deep_heic(pixels: NDArray[np.uint8]) -> bytes:
    """10 bits, as phones store HDR."""
    buffer = io.BytesIO()
    values = (pixels.astype(np.uint16) << 8).tobytes()
    pillow_heif.from_bytes("RGB;16", pixels.shape[1::-1], values).save(buffer, quality=95, chroma=444)
    return buffer.getvalue()


def deep_avif(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.avif_encode(pixels.astype(np.uint16) << 2, 95, bitspersample=10))


ENCODERS: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "heic": heic,
    "10-bit heic": deep_heic,
    "avif": lambda pixels: saved("AVIF", pixels, quality=95, subsampling="4:4:4"),
    "10-bit avif": deep_avif,
    "jxl": lambda pixels: bytes(imagecodecs.jpegxl_encode(pixels, distance=1)),
    "jp2": lambda pixels: saved("JPEG2000", pixels, quality_layers=[4], irreversible=True),
    "j2k": lambda pixels: saved("JPEG2000", pixels, no_jp2=True),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_photos_in_formats_of_phones_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(ENCODERS[name](SMOOTH))  # the content tells the format
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.abs(pixels.astype(int) - SMOOTH).mean() < LOSSY


@pytest.mark.parametrize("name", ["heic", "avif", "jxl", "jp2"])
def test_transparent_parts_of_phone_formats_are_white(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(ENCODERS[name](np.dstack([SMOOTH, ALPHA])))
    expected = np.where(ALPHA[..., np.newaxis] > 0, SMOOTH, 255)
    assert np.abs(read_image(tmp_path / "a").astype(int) - expected).mean() < LOSSY


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_jpeg_xl_and_jpeg_2000_of_any_depth(tmp_path: Path, bits: int, channels: int) -> None:
    values = SMOOTH[..., :channels].astype(np.uint16) << (bits - 8)
    values = values.astype(np.uint8) if bits == 8 else values
    expected = np.broadcast_to(np.rint(values / (2**bits - 1) * 255), SMOOTH.shape)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=bits))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jxl"), expected)
    (tmp_path / "a.jp2").write_bytes(
        imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, reversible=True)
    )
    assert np.abs(read_image(tmp_path / "a.jp2") - expected).max() <= 1  # Pillow drops the lower bits
    for name in ("a.jxl", "a.jp2"):
        assert decode_image(tmp_path / name).notes == ()


# ---- orientation


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels as Pillow turns a JPEG with this orientation."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    image = Image.fromarray(pixels)
    return np.asarray(image.transpose(turns[orientation]) if orientation > 1 else image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_phone_formats_are_upright_with_and_without_exif(tmp_path: Path, orientation: int) -> None:
    """Their turns belong to the picture and not to EXIF, so every reader shows them turned, once."""
    pillow_heif.register_heif_opener()
    jpeg = saved("JPEG", SMOOTH, exif=exif_of(orientation), quality=95, subsampling=0)
    contents = {
        "heic": saved("HEIF", SMOOTH, exif=exif_of(orientation), quality=95, chroma=444),
        "avif": saved("AVIF", SMOOTH, exif=exif_of(orientation), quality=95, subsampling="4:4:4"),
        "jxl": imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True),
    }
    expected = upright(SMOOTH, orientation)
    for name, content in contents.items():
        (tmp_path / "a").write_bytes(content)
        for apply_exif in (False, True):
            pixels = read_image(tmp_path / "a", apply_exif=apply_exif)
            assert pixels.shape == expected.shape
            assert np.abs(pixels.astype(int) - expected).mean() < LOSSY, (name, apply_exif)


def test_further_frames_of_phone_formats_are_noted(tmp_path: Path) -> None:
    frames = [Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[::-1])]
    burst = pillow_heif.from_pillow(frames[0])
    burst.add_from_pillow(frames[1])
    burst.save(tmp_path / "heic", quality=95)
    frames[0].save(tmp_path / "avif", "AVIF", save_all=True, append_images=frames[1:], quality=95)
    animation = imagecodecs.jpegxl_encode(np.stack(list(map(np.asarray, frames))), distance=1)
    (tmp_path / "jxl").write_bytes(animation)
    for name in ("heic", "avif", "jxl"):
        decoded = decode_image(tmp_path / name)
        assert np.abs(decoded.pixels.astype(int) - SMOOTH).mean() < LOSSY, name
        assert decoded.notes == (Note.FIRST_PAGE,), name
        (tmp_path / "one").write_bytes(ENCODERS[name](SMOOTH))
        assert decode_image(tmp_path / "one").notes == ()


# ---- JPEG XL headers


def test_jpeg_xl_headers_have_size_and_depth() -> None:
    generator = np.random.default_rng(0)
    for number in range(120):
        height, width = (int(side) for side in generator.integers(1, (40, 700)[number % 2], 2))
        if number % 7 == 0:
            width = height
        if number % 11 == 0:
            width, height = width * 8, height // 8 * 8 + 8
        bits = int(generator.integers(1, 17))
        pixels = np.full((height, width, 3), 1, np.uint8 if bits <= 8 else np.uint16)
        content = imagecodecs.jpegxl_encode(
            pixels, lossless=bool(number % 3), bitspersample=bits, usecontainer=bool(number % 2)
        )
        assert read_jpeg_xl_header(bytes(content)) == JpegXlHeader(width, height, bits)
    animation = imagecodecs.jpegxl_encode(np.zeros((3, 20, 30, 3), np.uint8))
    assert read_jpeg_xl_header(bytes(animation)) == JpegXlHeader(30, 20, 8, True)
    floating = imagecodecs.jpegxl_encode(np.zeros((20, 30, 3), np.float32), lossless=True)
    assert read_jpeg_xl_header(bytes(floating)) == JpegXlHeader(30, 20, 0)


# ---- photos that cannot be used


def reason(path: Path, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{path} ")


@pytest.mark.parametrize("name", ENCODERS)
def test_the_pixel_limit_of_phone_formats_is_exact(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(ENCODERS[name](SMOOTH))
    assert reason(path, pixel_limit=WIDTH * HEIGHT - 1).startswith(
        f"has {WIDTH} x {HEIGHT} pixels, more than"
    )
    assert read_image(path, pixel_limit=WIDTH * HEIGHT).shape == SMOOTH.shape


def test_sizes_of_jpeg_xl_are_checked_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(imagecodecs, "jpegxl_decode", fail)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(SMOOTH))
    assert "more than the limit" in reason(tmp_path / "a.jxl", pixel_limit=10)


@pytest.mark.parametrize("name", ENCODERS)
def test_cut_photos_of_phone_formats_are_refused(tmp_path: Path, name: str) -> None:
    data = ENCODERS[name](SMOOTH)
    for percent in range(10, 100, 3):
        (tmp_path / "a").write_bytes(data[: len(data) * percent // 100])
        assert "cut short" in reason(tmp_path / "a")


@pytest.mark.parametrize("name", ENCODERS)
def test_damaged_phone_formats_give_pixels_or_a_reason(tmp_path: Path, name: str) -> None:
    data = ENCODERS[name](SMOOTH)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        for position in generator.integers(0, min(len(data), generator.choice([64, 300, 10_000])), 3):
            damaged[position] ^= 1 << int(generator.integers(8))
        (tmp_path / "a").write_bytes(damaged)
        try:
            read_image(tmp_path / "a", pixel_limit=1_000_000)
        except ImageError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 0


def test_heic_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(heic(SMOOTH))
    monkeypatch.setattr(image_file, "pillow_heif", None)
    assert (
        reason(tmp_path / "a.heic") == "is a HEIC photo; to read it, run: pip install 'carvana-batch[heic]'"
    )


def test_formats_that_pillow_was_built_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file.features, "check", lambda _: False)
    for name, called in (("avif", "AVIF"), ("jp2", "JPEG2000")):
        (tmp_path / "a").write_bytes(ENCODERS[name](SMOOTH))
        assert reason(tmp_path / "a").startswith(f"is an image of the format {called}, which this build")


def test_brands_tell_avif_from_heic_and_video(tmp_path: Path) -> None:
    data = heic(SMOOTH)
    size = struct.unpack(">I", data[:4])[0]
    for major in (b"mif1", b"msf1", b"heix"):  # the major brand need not be that of the codec
        (tmp_path / "a").write_bytes(data[:8] + major + data[12:])
        assert read_image(tmp_path / "a").shape == SMOOTH.shape
    (tmp_path / "a").write_bytes(
        data[:8] + b"isom" + data[12:16] + b"isom" * ((size - 16) // 4) + data[size:]
    )
    assert reason(tmp_path / "a").startswith("is not an image in a supported format")
