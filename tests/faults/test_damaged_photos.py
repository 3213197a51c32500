"""Photos damaged inside, so that a decoder still gives pixels: each is refused, or looks as before.

The files are damaged as disks, transfers and repair programs do it. What no decoder and no check can notice,
such as changed values of uncompressed pixels, is counted, and must not become more.
"""

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from carvana_batch.decode.photo import read_image
from carvana_batch.errors import ImageError

SIZE = (400, 300)
REPEATS = 25
"""How often each photo is damaged in each way."""


def draw_photo():
    """A car-like shape before a smooth background, with texture and noise, as an RGB image."""
    random = np.random.default_rng(0)
    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    background = np.stack([200 - y / 4, 205 - y / 4, 210 - x / 10], axis=-1)
    coarse = random.integers(0, 256, (height // 10, width // 10, 3)).astype(np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC), float)
    car = ((x - width / 2) / (0.4 * width)) ** 2 + ((y - height / 2) / (0.3 * height)) ** 2 < 1
    pixels = np.where(car[..., np.newaxis], texture, background) + random.normal(0, 3, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


PHOTO = draw_photo()


def saved(image_format, mode="RGB", **options):
    buffer = io.BytesIO()
    PHOTO.convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def tiff(mode="RGB", **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.asarray(PHOTO.convert(mode)), **options)
    return buffer.getvalue()


def heic(**options):
    buffer = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(PHOTO).save(buffer, **options)
    return buffer.getvalue()


def jpeg_xl(**options):
    return bytes(imagecodecs.jpegxl_encode(np.asarray(PHOTO), **options))


PHOTOS = {
    "JPEG": lambda: [
        saved("JPEG", quality=90),
        saved("JPEG", quality=75, optimize=True),
        saved("JPEG", quality=90, subsampling=0),
        saved("JPEG", quality=90, restart_marker_rows=1),
        saved("JPEG", "L", quality=90),
        saved("JPEG", "CMYK", quality=90),
    ],
    "progressive JPEG": lambda: [
        saved("JPEG", quality=90, progressive=True),
        saved("JPEG", quality=75, progressive=True, subsampling=0),
    ],
    "WebP": lambda: [saved("WEBP", quality=90), saved("WEBP", quality=60)],
    "lossless WebP": lambda: [saved("WEBP", lossless=True)],
    "PNG": lambda: [saved("PNG"), saved("PNG", "P")],
    "GIF": lambda: [saved("GIF"), saved("GIF", interlace=0)],
    "BMP": lambda: [saved("BMP"), saved("BMP", "P")],
    "TIFF": lambda: [
        tiff(photometric="rgb", rowsperstrip=16),
        tiff(photometric="rgb", rowsperstrip=300),
    ],
    "compressed TIFF": lambda: [
        tiff(photometric="rgb", compression="lzw", rowsperstrip=16),
        tiff(photometric="rgb", compression="zlib", tile=(64, 64)),
        tiff(photometric="rgb", compression="zstd", rowsperstrip=64),
        saved("TIFF", compression="packbits"),
        tiff(photometric="ycbcr", compression="jpeg", tile=(64, 64)),
        saved("TIFF", "1", compression="group4"),
    ],
    "HEIC": lambda: [heic(quality=90), heic(quality=50)],
    "AVIF": lambda: [saved("AVIF", quality=90, speed=8), saved("AVIF", quality=60, speed=8)],
    "JPEG XL": lambda: [jpeg_xl(distance=1), jpeg_xl(distance=3, usecontainer=True)],
    "lossless JPEG XL": lambda: [jpeg_xl(lossless=True)],
    "JPEG 2000": lambda: [
        saved("JPEG2000", irreversible=True, quality_layers=[8]),
        saved("JPEG2000", irreversible=True, quality_layers=[40, 10], tile_size=(128, 128)),
        saved("JPEG2000", no_jp2=True),
    ],
}


# ---- damage: (content, random) -> damaged content


def block(content, random, largest=4096):
    """A part of the file at a random place behind its head: (start, end)."""
    length = int(min(largest, len(content) // 8) * random.uniform(0.25, 1))
    start = int(random.integers(len(content) // 20 + 64, len(content) - length))
    return start, start + length


def zero_block(content, random):
    start, end = block(content, random)
    return content[:start] + bytes(end - start) + content[end:]


def erase_block(content, random):
    """As in flash memory."""
    start, end = block(content, random)
    return content[:start] + b"\xff" * (end - start) + content[end:]


def remove_block(content, random):
    start, end = block(content, random)
    return content[:start] + content[end:]


def repeat_block(content, random):
    start, end = block(content, random)
    return content[:end] + content[start:]


def copy_block(content, random):
    """Replace a block by another one of the file."""
    start, end = block(content, random)
    other = int(random.integers(len(content) // 20 + 64, len(content) - (end - start)))
    return content[:start] + content[other : other + end - start] + content[end:]


def flip_bit(content, random):
    damaged = bytearray(content)
    damaged[random.integers(len(content))] ^= 1 << random.integers(8)
    return bytes(damaged)


def flip_bits(content, random):
    for _ in range(20):
        content = flip_bit(content, random)
    return content


def text_mode(content, random):
    """Line ends of DOS, from a random place on."""
    start = int(random.choice([0, random.integers(len(content) // 2)]))
    return content[:start] + content[start:].replace(b"\n", b"\r\n")


def unix_text_mode(content, random):
    start = int(random.integers(len(content) // 2))
    return content[:start] + content[start:].replace(b"\r", b"")


def cut(content, random):
    return content[: int(len(content) * random.uniform(0.2, 0.99))]


def cut_and_ended(content, random):
    """Cut, then repaired by the last bytes of the file."""
    return cut(content, random) + content[-int(random.choice([2, 12, 16])) :]


def cut_and_filled(content, random):
    return cut(content, random).ljust(len(content), b"\0")


DAMAGE = [
    zero_block,
    erase_block,
    remove_block,
    repeat_block,
    copy_block,
    flip_bit,
    flip_bits,
    text_mode,
    unix_text_mode,
    cut,
    cut_and_ended,
    cut_and_filled,
]


def is_visibly_broken(pixels, sound):
    """Whether more than 2 % of the pixels differ by more than 32 levels, or the size does."""
    if pixels.shape != sound.shape:
        return True
    return np.mean(np.abs(pixels.astype(int) - sound).max(axis=-1) > 32) > 0.02


def count_silent(kind, path, kinds_of_damage=DAMAGE):
    """Damage the photos of a kind in each way: {damage: (silently accepted broken ones, refused, all)}."""
    counts = {}
    photos = []
    for content in PHOTOS[kind]():
        path.write_bytes(content)
        photos.append((content, read_image(path)))
    for damage in kinds_of_damage:
        random = np.random.default_rng(len(counts))
        silent = refused = files = 0
        for content, sound in photos:
            for _ in range(REPEATS):
                path.write_bytes(damage(content, random))
                files += 1
                try:
                    silent += is_visibly_broken(read_image(path), sound)
                except ImageError:
                    refused += 1
        counts[damage.__name__] = (int(silent), refused, files)
    return counts


SILENT = {
    "JPEG": 36,
    "progressive JPEG": 2,
    "WebP": 0,
    "lossless WebP": 28,
    "PNG": 0,
    "GIF": 20,
    "BMP": 92,
    "TIFF": 113,
    "compressed TIFF": 175,
    "HEIC": 185,
    "AVIF": 130,
    "JPEG XL": 0,
    "lossless JPEG XL": 0,
    "JPEG 2000": 70,
}
"""At most so many visibly broken photos are accepted without a word; see docs/promises.md."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", PHOTOS)
def test_visible_damage_is_refused(tmp_path, kind, count_faults):
    counts = count_silent(kind, tmp_path / "photo")
    files = sum(files for _, _, files in counts.values())
    silent = sum(silent for silent, _, _ in counts.values())
    count_faults(f"visible damage of a {kind} is refused ({silent} of {files} are not)", files)
    assert silent <= SILENT[kind], counts


def test_zero_blocks_and_false_ends_are_always_noticed(tmp_path):
    """The most frequent kinds of damage, in all formats whose pixels are coded; HEIC may be missing."""
    for kind in ("JPEG", "progressive JPEG", "WebP", "PNG", "GIF", "AVIF", "JPEG XL", "JPEG 2000", "HEIC"):
        counts = count_silent(kind, tmp_path / "photo", [zero_block, remove_block, cut, cut_and_ended])
        assert {silent for silent, _, _ in counts.values()} == {0}, (kind, counts)
