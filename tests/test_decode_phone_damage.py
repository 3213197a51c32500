"""Damage of HEIC, AVIF and JPEG 2000 that decoders pass over is found, and sound files have none."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from carvana_batch.decode.heif_damage import find_heif_damage, read_boxes
from carvana_batch.decode.jpeg_2000 import find_jpeg_2000_damage
from carvana_batch.decode.photo import decode_image, read_image
from carvana_batch.errors import DamageError
from carvana_batch.notes import Note

pillow_heif = pytest.importorskip("pillow_heif")

COARSE = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
PHOTO = Image.fromarray(COARSE).resize((320, 240), Image.Resampling.BICUBIC)
HALF = Image.new("RGB", (320, 240), "white")
HALF.paste(PHOTO.crop((0, 0, 320, 120)))
FLAT = Image.new("RGB", (320, 240), "white")


def heic(image=PHOTO, **options):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


def saved(image_format, image=PHOTO, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg_2000(image=PHOTO, **options):
    return saved("JPEG2000", image, irreversible=True, **options)


FILES = {
    "a.heic": heic(quality=80),
    "a.avif": saved("AVIF", quality=80),
    "a.jp2": jpeg_2000(quality_layers=[8]),
    "a.j2k": saved("JPEG2000", no_jp2=True),
}


def replace(content, data, share=0.5):
    start = int(len(content) * share)
    return content[:start] + data + content[start + len(data) :]


@pytest.mark.parametrize("image", [PHOTO, HALF, FLAT, PHOTO.convert("L"), PHOTO.resize((3, 2))])
def test_sound_photos_of_phone_formats_have_no_damage(image):
    for quality in (1, 50, 100, -1):
        assert find_heif_damage(io.BytesIO(heic(image, quality=quality))) is None
    for quality in (1, 50, 100):
        content = saved("AVIF", image, quality=quality, speed=8)
        assert find_heif_damage(io.BytesIO(content)) is None
    many_layers = {"quality_layers": [100, 50, 20, 10, 5], "precinct_size": (64, 64)}
    for options in ({}, {"no_jp2": True}, {"tile_size": (128, 128)}, many_layers, {"plt": True}):
        content = jpeg_2000(image, **options)
        assert find_jpeg_2000_damage(io.BytesIO(content)) is None
        assert find_jpeg_2000_damage(io.BytesIO(content + b"anything")) is None


@pytest.mark.parametrize("name", FILES)
def test_zeros_in_photos_of_phone_formats(tmp_path, name):
    path = tmp_path / name
    for share in (0.3, 0.5, 0.9):
        path.write_bytes(replace(FILES[name], bytes(512), share))
        with pytest.raises(DamageError, match="replaced by zeros"):
            read_image(path)
        decoded = decode_image(path, accept_damage=True)
        assert decoded.notes == (Note.DAMAGED,)
        assert decoded.pixels.shape == (240, 320, 3)


@pytest.mark.parametrize("name", ["a.heic", "a.avif"])
def test_erased_blocks_in_a_heic_or_avif(tmp_path, name):
    (tmp_path / name).write_bytes(replace(FILES[name], b"\xff" * 512))
    with pytest.raises(DamageError, match="a part of its picture data has been erased"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jp2", "a.j2k"])
def test_erased_blocks_in_a_jpeg_2000(name):
    """After 0xFF, coded data have a value of at most 0x8F."""
    for data in (b"\xff" * 64, b"\xff\x90", b"\xff\xff"):
        damaged = io.BytesIO(replace(FILES[name], data))
        assert find_jpeg_2000_damage(damaged) == "is damaged: its picture data are corrupt"


@pytest.mark.parametrize(
    ("options", "packets"),
    [
        ({}, 3 * 6),
        ({"quality_layers": [60, 20, 10]}, 3 * 3 * 6),
        ({"num_resolutions": 2, "mct": 1}, 3 * 2),
        # One more in each direction, because tiles need not begin where precincts do.
        ({"num_resolutions": 1, "precinct_size": (64, 64)}, 3 * (5 + 1) * (4 + 1)),
    ],
)
def test_packets_without_data_are_no_damage(options, packets):
    """An empty packet is a zero byte; there is one for each layer, component, resolution and precinct."""
    content = jpeg_2000(**options)
    for more, is_damaged in ((255, False), (256, True)):
        data = b"\1" + bytes(packets + more) + b"\1"
        damage = find_jpeg_2000_damage(io.BytesIO(replace(content, data)))
        assert (damage is not None) == is_damaged


def test_lengths_in_a_heic_must_agree_with_its_data():
    content = bytearray(FILES["a.heic"])
    boxes = read_boxes(bytes(content), 0, len(content))
    mdat = next(box for box in boxes if box.kind == b"mdat")
    length = int.from_bytes(content[mdat.start : mdat.start + 4])
    assert 0 < length <= mdat.end - mdat.start - 4
    for wrong in (0, length - 1, length + 1):
        content[mdat.start : mdat.start + 4] = wrong.to_bytes(4)
        assert find_heif_damage(io.BytesIO(content)) == "is damaged: its picture data are corrupt"


def test_a_damaged_thumbnail_of_a_heic_is_harmless(tmp_path):
    with_thumbnail = pillow_heif.from_pillow(PHOTO)
    with_thumbnail.info["thumbnails"] = [64]
    with_thumbnail.save(tmp_path / "a.heic", quality=80)
    content = (tmp_path / "a.heic").read_bytes()
    assert find_heif_damage(io.BytesIO(content)) is None
    damaged = content[:-200] + bytes(200)  # the thumbnail is stored last
    assert find_heif_damage(io.BytesIO(damaged)) is None
    assert len(content) > len(FILES["a.heic"]) + 200


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def grid_of_tiles(tiles, thumbnail, wide):
    """The boxes of a HEIC as phones write it: a grid (item 1) of tiles (2, 3, ...), and a thumbnail (9)."""
    number = ">I" if wide else ">H"
    parts = {1: b"grid", **dict(enumerate(tiles, 2)), 9: thumbnail}
    kinds = dict.fromkeys(parts, b"hvc1") | {1: b"grid"}
    infos = [
        box(b"infe", bytes([3 if wide else 2, 0, 0, 0]) + struct.pack(number, item) + b"\0\0" + kind + b"\0")
        for item, kind in kinds.items()
    ]
    references = struct.pack(number, 1) + struct.pack(">H", len(tiles))
    references += b"".join(struct.pack(number, item) for item in range(2, 2 + len(tiles)))
    reference = box(b"dimg", references)
    full = bytes([wide, 0, 0, 0])

    def meta(start):
        locations = b""
        for item, data in parts.items():  # method 0, data reference 0, base offset 0, one extent
            locations += struct.pack(number, item) + struct.pack(">HHIHII", 0, 0, 0, 1, start, len(data))
            start += len(data)
        head = bytes([2 if wide else 1, 0, 0, 0, 0x44, 0x40]) + struct.pack(number, len(parts))
        count = struct.pack(number, len(parts))
        content = bytes(4) + box(b"pitm", full + struct.pack(number, 1))
        content += box(b"iinf", full + count + b"".join(infos)) + box(b"iref", full + reference)
        return box(b"ftyp", b"heic\0\0\0\0") + box(b"meta", content + box(b"iloc", head + locations))

    return meta(len(meta(0)) + 8) + box(b"mdat", b"".join(parts.values()))


@pytest.mark.parametrize("wide", [False, True])
def test_each_tile_of_a_heic_is_checked(wide):
    random = np.random.default_rng(0)

    def unit(middle=b""):
        data = random.integers(1, 200, 500).astype(np.uint8).tobytes() + middle + b"\x80"
        return struct.pack(">I", len(data)) + data

    sound, zeros, other = unit(), unit(bytes(300)), unit(b"\0\0\1")
    for tiles, thumbnail, expected in (
        ([sound] * 3, sound, None),
        ([sound] * 3, zeros, None),
        ([sound, sound, zeros], sound, "is damaged: a part of its picture data has been replaced by zeros"),
        ([sound, other, sound], sound, "is damaged: its picture data are corrupt"),
        ([sound, sound + b"rest", sound], sound, "is damaged: its picture data are corrupt"),
        ([sound, unit(b"\0\0\3\1"), sound], sound, None),
    ):
        content = grid_of_tiles(tiles, thumbnail, wide)
        assert find_heif_damage(io.BytesIO(content)) == expected


@pytest.mark.parametrize("name", ["a.heic", "a.avif"])
def test_photos_of_phones_converted_as_text(name):
    content = FILES[name]
    head = len(content) // 3
    damaged = content[:head] + content[head:].replace(b"\n", b"\r\n")
    assert "text mode" in find_heif_damage(io.BytesIO(damaged))
    assert find_heif_damage(io.BytesIO(content + b"a trailer\r\n" * 9)) is None
