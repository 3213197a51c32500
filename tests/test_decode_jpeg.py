"""JPEGs with damaged picture data are refused, and those with harmless oddities are not."""

import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from carvana_batch.decode.jpeg import find_damage
from carvana_batch.decode.jpeg_markers import read_segments
from carvana_batch.decode.photo import decode_image, read_image
from carvana_batch.errors import DamageError, ImageError
from carvana_batch.masks.read import read_mask
from carvana_batch.notes import Note

RANDOM = np.random.default_rng(0)
COARSE = RANDOM.integers(0, 256, (30, 40, 3)).astype(np.uint8)
PHOTO = Image.fromarray(COARSE).resize((320, 240), Image.Resampling.BICUBIC)


def jpeg(image=PHOTO, **options):
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), quality=options.pop("quality", 90), **options)
    return buffer.getvalue()


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def insert(content, extra, before=b"\xff\xdb"):
    start = content.index(before)
    return content[:start] + extra + content[start:]


def set_scan_parameters(content):
    """What some cameras write into the scan header of a sequential JPEG, where it has no meaning."""
    start = content.index(b"\xff\xda") + 4
    start += 1 + 2 * content[start]
    return content[:start] + bytes(3) + content[start + 3 :]


WHOLE = {
    "baseline": jpeg(),
    "optimised": jpeg(optimize=True),
    "progressive": jpeg(progressive=True),
    "restart markers": jpeg(restart_marker_rows=1),
    "grey": jpeg(PHOTO.convert("L")),
    "CMYK": jpeg(PHOTO.convert("CMYK")),
    "MPO": jpeg(format="MPO", save_all=True, append_images=[PHOTO.resize((160, 120))]),
}

ODDITIES = {
    "zeros before the end": lambda content: insert(content, bytes(300), b"\xff\xd9"),
    "fill bytes before the end": lambda content: insert(content, b"\xff" * 300, b"\xff\xd9"),
    "fill bytes before a segment": lambda content: insert(content, b"\xff" * 5),
    "zeros before a segment": lambda content: insert(content, bytes(7)),
    "other bytes before a scan": lambda content: insert(content, b"abc", b"\xff\xda"),
    "no end marker": lambda content: content[:-2],
    "half an end marker": lambda content: content[:-1],
    "a trailer": lambda content: content + RANDOM.bytes(3000) + b"SEFT",
    "zeros after the end": lambda content: content + bytes(3000),
    "another JPEG": lambda content: content + jpeg(),
    "a wrong profile": lambda content: insert(content, segment(0xE2, b"ICC_PROFILE\0\3\2" + bytes(9))),
    "a short profile": lambda content: insert(content, segment(0xE2, b"ICC_PROFILE\0")),
    "a short colour model": lambda content: insert(content, segment(0xEE, b"Adobe")),
    "a short JFIF": lambda content: insert(content, segment(0xE0, b"JFIF\0")),
    "a short preview": lambda content: insert(content, segment(0xE2, b"MPF\0")),
    "another version of JFIF": lambda content: content.replace(b"JFIF\0\1", b"JFIF\0\2"),
    "wrong EXIF": lambda content: insert(content, segment(0xE1, b"Exif\0\0nonsense")),
    "zeros in metadata": lambda content: insert(content, segment(0xE1, bytes(3000))),
    "a thumbnail": lambda content: insert(content, segment(0xE1, b"Exif\0\0" + jpeg(PHOTO.resize((40, 30))))),
    "line ends in a comment": lambda content: insert(content, segment(0xFE, b"\r\n" * 30)),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("oddity", ODDITIES)
def test_oddities_are_harmless(tmp_path, kind, oddity):
    (tmp_path / "whole.jpg").write_bytes(WHOLE[kind])
    (tmp_path / "odd.jpg").write_bytes(ODDITIES[oddity](WHOLE[kind]))
    image = decode_image(tmp_path / "odd.jpg", accept_damage=True)
    assert (image.notes, image.damage) == ((), "")
    np.testing.assert_array_equal(image.pixels, read_image(tmp_path / "whole.jpg"))


def test_short_metadata_do_not_cost_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(insert(jpeg(exif=exif), segment(0xEE, b"Adobe")))
    assert decode_image(tmp_path / "a.jpg").orientation == 6


def test_kinds_of_jpeg_that_are_not_read_are_named(tmp_path):
    pixels = np.asarray(PHOTO)
    contents = {
        "a JPEG of 12 bits": imagecodecs.jpeg8_encode(pixels.astype(np.uint16) * 16, 90, bitspersample=12),
        "a JPEG-LS": imagecodecs.jpegls_encode(pixels),
    }
    for name, content in contents.items():
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ImageError, match=f"is {name}, which is not read; save it as"):
            read_image(tmp_path / "a.jpg")


def test_parameters_without_meaning_are_harmless():
    assert find_damage(set_scan_parameters(jpeg())) is None
    assert find_damage(set_scan_parameters(insert(jpeg(), bytes(20), b"\xff\xd9"))) is None


@pytest.mark.parametrize("quality", [1, 10, 50, 90, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_flat_areas_of_a_photo_are_not_damage(quality, progressive):
    """With Huffman tables made for such a photo, they are coded as thousands of zeros."""
    pixels = np.full((1200, 900, 3), 255, np.uint8)
    pixels[900:, 300:620] = np.asarray(PHOTO)[:, :].repeat(2, axis=0)[:300]
    content = jpeg(Image.fromarray(pixels), quality=quality, optimize=True, progressive=progressive)
    assert bytes(256) in content
    assert find_damage(content) is None
    assert find_damage(content, is_clean=True) is None


def taller(content):
    """The header claims 100 rows more than there are."""
    start = next(
        content.index(bytes([0xFF, marker])) for marker in (0xC0, 0xC2) if bytes([0xFF, marker]) in content
    )
    return content[: start + 5] + (340).to_bytes(2) + content[start + 7 :]


def middle(content):
    return len(content) * 45 // 100


DAMAGE = {
    "zeros": lambda content: content[: middle(content)] + bytes(900) + content[middle(content) + 900 :],
    "missing block": lambda content: content[: middle(content)] + content[middle(content) + 900 :],
    "cut, with an end": lambda content: content[: middle(content)] + b"\xff\xd9",
    "cut": lambda content: content[: middle(content)],
    "more rows in the header": taller,
}


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind != "MPO"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_or_noted(tmp_path, kind, damage):
    path = tmp_path / "a.jpg"
    path.write_bytes(DAMAGE[damage](WHOLE[kind]))
    reason = "is cut short" if damage == "cut" else "is damaged"
    with pytest.raises(DamageError, match=reason):
        read_image(path)
    if kind != "CMYK":
        with pytest.raises(DamageError, match=reason):
            read_mask(path)
    image = decode_image(path, accept_damage=True)
    assert image.notes == (Note.DAMAGED,)
    assert image.damage
    assert image.pixels.shape == (340 if damage == "more rows in the header" else 240, 320, 3)


def test_harmless_oddities_do_not_hide_damage():
    """The decoder only tells its last warning, and that of a missing end would come after the others."""
    damaged = DAMAGE["zeros"](jpeg())
    for change in ODDITIES.values():
        assert find_damage(change(damaged)) is not None


def test_text_mode_is_named():
    assert "text mode" in find_damage(jpeg().replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("scans", [1, 3, 5])
def test_missing_scans_of_a_progressive_jpeg_are_noticed(scans):
    """Cut between two scans, it decodes without a warning, only less sharply."""
    content = jpeg(progressive=True)
    starts = [start for start in range(len(content)) if content[start : start + 2] == b"\xff\xda"]
    cut = content.rindex(b"\xff\xc4", 0, starts[scans])
    shortened = content[:cut] + b"\xff\xd9"
    assert find_damage(shortened, is_clean=True) == "is damaged: the last part of its picture data is missing"
    assert find_damage(content, is_clean=True) is None


def test_zeros_that_the_decoder_does_not_notice_are_refused():
    """Zeros that stand for coefficients, by the usual Huffman tables."""
    content = DAMAGE["zeros"](jpeg())
    assert find_damage(content, is_clean=True) == (
        "is damaged: a part of its picture data has been replaced by zeros"
    )
    assert find_damage(jpeg(), is_clean=True) is None


def with_separate_scans(horizontal):
    """A JPEG with a scan for each component; chroma is ``horizontal`` times as coarse in x.

    Neither Pillow nor simplejpeg writes such files, so it is put together from three grey ones.
    """
    size = (320 // horizontal, 240)
    planes = [
        plane if number == 0 else plane.resize(size)
        for number, plane in enumerate(PHOTO.convert("YCbCr").split())
    ]
    greys = [list(read_segments(jpeg(plane))) for plane in planes]
    parts = [b"\xff\xd8"]
    for marker, body, _ in greys[0]:
        if marker == 0xC0:
            factors = [(1, 16 * horizontal + 1), (2, 0x11), (3, 0x11)]
            body = body[:5] + b"\3" + b"".join(bytes([id_, factor, 0]) for id_, factor in factors)
        if marker not in {0xDA, 0xD9}:
            parts.append(segment(marker, body))
    for id_, segments in enumerate(greys, 1):
        (data,) = (rest for marker, _, rest in segments if marker == 0xDA)
        parts.append(segment(0xDA, bytes([1, id_, 0, 0, 63, 0])) + data)
    return b"".join([*parts, b"\xff\xd9"])


@pytest.mark.parametrize("horizontal", [1, 2, 3])
def test_scans_for_each_component(tmp_path, horizontal):
    """libjpeg-turbo's own interface refuses a factor of 3; Pillow and the headers of the scans have to do."""
    path = tmp_path / "a.jpg"
    content = with_separate_scans(horizontal)
    path.write_bytes(content)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image))
    last = content.rindex(b"\xff\xda")
    for damaged in (
        content[:last] + b"\xff\xd9",
        content[: last // 2] + bytes(900) + content[last // 2 + 900 :],
        content[: last // 2],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=r"is damaged|is cut short"):
            read_image(path)
