"""Damage of PNG, WebP, GIF, BMP and TIFF that decoders pass over is found, and sound files have none."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from carvana_batch.decode.damage import find_bmp_damage, find_gif_damage, find_png_damage, find_webp_damage
from carvana_batch.decode.photo import decode_image, read_image
from carvana_batch.errors import DamageError, ImageError
from carvana_batch.masks.read import read_mask
from carvana_batch.notes import Note

COARSE = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
PHOTO = Image.fromarray(COARSE).resize((160, 120), Image.Resampling.BICUBIC)
FLAT = Image.new("RGB", (160, 120), "white")
NOISE = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def saved(image_format, image=PHOTO, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def damage(find, content):
    return find(io.BytesIO(content))


@pytest.mark.parametrize("image", [PHOTO, FLAT, PHOTO.convert("L"), PHOTO.resize((3, 1))])
def test_sound_files_have_no_damage(image):
    two = {"save_all": True, "append_images": [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]}
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))
    for options in ({}, {"optimize": True}, {"compress_level": 0}, two):
        assert damage(find_png_damage, saved("PNG", image, **options)) is None
    for options in ({"quality": 1}, {"quality": 100, "method": 6}, {"lossless": True}, two):
        assert damage(find_webp_damage, saved("WEBP", image, **options)) is None
    for options in ({"quality": 80}, {"lossless": True}):
        assert damage(find_webp_damage, saved("WEBP", alpha, **options)) is None
    for options in ({}, {"interlace": 0}, two):
        assert damage(find_gif_damage, saved("GIF", image, **options)) is None
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        content = saved("BMP", image.convert(mode))
        assert damage(find_bmp_damage, content) is None
        for behind in (bytes(2), bytes(100), b"\r\n", b"abc"):  # some programs write these
            assert damage(find_bmp_damage, content + behind) is None
        assert damage(find_bmp_damage, content + b"four") is not None


@pytest.mark.parametrize("options", [{"quality": 90}, {"lossless": True}])
def test_zeros_in_a_webp(tmp_path, options):
    content = saved("WEBP", **options)
    half = len(content) // 2
    (tmp_path / "a.webp").write_bytes(content[:half] + bytes(700) + content[half + 700 :])
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / "a.webp")


def test_checksums_of_a_png(tmp_path):
    """A deflate stream whose damage is beyond the rows that Pillow reads, and one whose checksum is wrong."""
    content = bytearray(saved("PNG"))
    end = content.rindex(b"IEND") - 8
    content[end] ^= 1
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DamageError, match="a checksum of its picture data is wrong"):
        read_image(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png", accept_damage=True).notes == (Note.DAMAGED,)
    mask = bytearray(saved("PNG", FLAT.convert("L")))
    mask[mask.rindex(b"IEND") - 8] ^= 1
    (tmp_path / "mask.png").write_bytes(mask)
    with pytest.raises(DamageError, match="a checksum"):
        read_mask(tmp_path / "mask.png")


def png_with_fewer_rows(pixels, rows, *, bits=8, interlaced=False):
    """A PNG whose header says more rows than there are; its data are valid apart from that."""
    height, width = pixels.shape[:2]
    parts = [pixels]
    if interlaced:
        starts = ((0, 0), (0, 4), (4, 0), (0, 2), (2, 0), (0, 1), (1, 0))
        steps = ((8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1))
        parts = [pixels[y::down, x::across] for (y, x), (down, across) in zip(starts, steps, strict=True)]
    lines = [b"\0" + row.tobytes() for part in parts for row in part if part.size]
    data = zlib.compress(b"".join(lines[: len(lines) - rows]))
    header = struct.pack(">IIBBBBB", width, height, bits, 2 if pixels.ndim == 3 else 0, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", data[:50]), (b"IDAT", data[50:]), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(120, 160, 3), (119, 33), (2, 3, 3), (9, 1), (1, 7)])
def test_pngs_with_fewer_rows_than_their_header_says(tmp_path, shape, interlaced):
    pixels = np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8)
    path = tmp_path / "a.png"
    for values, bits in ((pixels, 8), (pixels.astype(">u2") * 257, 16)):
        path.write_bytes(png_with_fewer_rows(values, 0, bits=bits, interlaced=interlaced))
        read = read_image(path)
        np.testing.assert_array_equal(read if pixels.ndim == 3 else read[..., 0], pixels)
        for rows in {1, shape[0] // 2} - {0}:
            path.write_bytes(png_with_fewer_rows(values, rows, bits=bits, interlaced=interlaced))
            with pytest.raises(ImageError, match=r"end before the picture does|cut short"):
                read_image(path)


def test_masks_with_fewer_rows_than_their_header_says(tmp_path):
    mask = np.where(np.asarray(PHOTO.convert("L")) > 128, 255, 0).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(png_with_fewer_rows(mask, 0))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png").to_bool(), mask > 0)
    (tmp_path / "a.png").write_bytes(png_with_fewer_rows(mask, 50))
    with pytest.raises(DamageError, match="end before the picture does"):
        read_mask(tmp_path / "a.png")


def test_bytes_inserted_into_a_bmp(tmp_path):
    content = saved("BMP")
    (tmp_path / "a.bmp").write_bytes(content[:5000] + b"inserted" + content[5000:])
    with pytest.raises(DamageError, match="it has 8 bytes more than its header says"):
        read_image(tmp_path / "a.bmp")


def test_codes_left_over_in_a_gif():
    """A clear code in the middle makes the codes after it shorter, as another picture would."""
    content = saved("GIF", PHOTO.convert("L"))
    lower = bytearray(content)
    screen = lower.index(b"\x2c", 13 + 3 * 256)
    lower[screen + 7 : screen + 9] = (100).to_bytes(2, "little")  # 20 rows fewer than there are codes for
    assert damage(find_gif_damage, bytes(lower)) is not None
    assert damage(find_gif_damage, content) is None


@pytest.mark.parametrize("compression", ["lzw", "packbits"])
def test_tiff_strips_of_another_size_than_the_picture(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", compression=compression, rowsperstrip=16)
    np.testing.assert_array_equal(read_image(path), NOISE)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages.first.dataoffsets[1], tiff.pages.first.databytecounts[1]
    encode = {"lzw": imagecodecs.lzw_encode, "packbits": imagecodecs.packbits_encode}[compression]
    longer = encode(bytes(16 * 64 * 3 + 100)).ljust(count, b"\0")
    content = path.read_bytes()
    path.write_bytes(content[:offset] + longer + content[offset + count :])
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"rowsperstrip": 32}])
def test_jpeg_damage_in_a_tiff(tmp_path, options):
    path = tmp_path / "a.tif"
    pixels = np.asarray(PHOTO.resize((192, 128)))
    tifffile.imwrite(path, pixels, photometric="ycbcr", compression="jpeg", **options)
    assert decode_image(path).damage == ""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages.first.dataoffsets[1], tiff.pages.first.databytecounts[1]
    content = path.read_bytes()
    middle = offset + count // 2
    path.write_bytes(content[:middle] + bytes(300) + content[middle + 300 :])
    with pytest.raises(DamageError, match="its picture data are corrupt"):
        read_image(path)
    image = decode_image(path, accept_damage=True)
    assert image.notes == (Note.DAMAGED,)
    assert image.pixels.shape == pixels.shape


def test_text_mode_in_an_uncompressed_tiff(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb")
    content = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages.first.dataoffsets[0]
    assert b"\n" not in content[:start]  # the header stays as it is
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    with pytest.raises(DamageError, match="text mode"):
        read_image(path)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "jpeg"])
def test_a_last_byte_count_that_is_too_large_is_harmless(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", compression=compression)
    expected, content = read_image(path), path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages.first.tags["StripByteCounts"]
        count, offset = tag.value[0], tag.valueoffset
    size = {3: 2, 4: 4}[tag.dtype]
    path.write_bytes(content[:offset] + (count + 5000).to_bytes(size, "little") + content[offset + size :])
    np.testing.assert_array_equal(read_image(path), expected)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"cut short|damaged"):
        read_image(path)


def test_a_profile_behind_the_pixels_of_a_bmp_is_no_damage(tmp_path):
    """A header of version 5 says where the profile lies."""
    pixels = PHOTO.tobytes("raw", "BGR")
    width, height = PHOTO.size
    stride = (3 * width + 3) // 4 * 4
    rows = b"".join(
        pixels[3 * width * row : 3 * width * (row + 1)].ljust(stride, b"\0")
        for row in reversed(range(height))
    )
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(rows), 0, 0, 0, 0)
    for profile_offset, is_sound in ((124 + len(rows), True), (0, False)):
        version_5 = header.ljust(112, b"\0") + struct.pack("<III", profile_offset, 400, 0)
        content = struct.pack("<2sIHHI", b"BM", 138 + len(rows) + 400, 0, 0, 138) + version_5 + rows
        (tmp_path / "a.bmp").write_bytes(content + b"p" * 400)
        if is_sound:
            np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), np.asarray(PHOTO))
        else:
            with pytest.raises(DamageError, match="400 bytes more"):
                read_image(tmp_path / "a.bmp")


def test_zeros_after_the_codes_of_a_gif_are_no_damage(tmp_path):
    content = saved("GIF")
    end = content.rindex(b"\0;")
    (tmp_path / "a.gif").write_bytes(content[:end] + b"\x08" + bytes(8) + content[end:])
    (tmp_path / "b.gif").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), read_image(tmp_path / "b.gif"))
