import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from carvana_batch.masks.png import decode_mask, encode_mask
from carvana_batch.values import PackedMask

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 40)).flatmap(lambda shape: arrays(np.bool_, shape))


def read_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, data) of each chunk; everything that can be checked about the container is."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = [], 8
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        data = content[position + 8 : position + 8 + length]
        assert len(data) == length
        (checksum,) = struct.unpack_from(">I", content, position + 8 + length)
        assert checksum == zlib.crc32(kind + data)
        chunks.append((kind, data))
        position += 12 + length
    return chunks


@settings(deadline=None)
@given(MASKS, st.sampled_from([1, 8]))
def test_pillow_reads_back_the_mask(mask, bits):
    with Image.open(io.BytesIO(encode_mask(PackedMask.from_bool(mask), bits))) as image:
        assert image.format == "PNG"
        assert image.mode == ("1" if bits == 1 else "L")
        assert image.size == (mask.shape[1], mask.shape[0])
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, mask if bits == 1 else mask * np.uint8(255))


@settings(deadline=None)
@given(MASKS, st.sampled_from([1, 8]))
def test_the_chunks_are_those_of_the_specification(mask, bits):
    chunks = read_chunks(encode_mask(PackedMask.from_bool(mask), bits))
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    height, width = mask.shape
    # Width, height, bit depth; colour type grey, compression deflate, filter method 0, not interlaced.
    assert chunks[0][1] == struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    assert chunks[2][1] == b""
    scanlines = zlib.decompress(chunks[1][1])
    assert len(scanlines) == height * (1 + -(-width * bits // 8))
    assert set(scanlines[:: len(scanlines) // height]) == {0}  # no filter


def test_a_mask_by_hand():
    mask = PackedMask.from_bool(np.array([[True, False, True], [False, False, True]]))
    assert zlib.decompress(read_chunks(encode_mask(mask))[1][1]) == bytes([0, 0b10100000, 0, 0b00100000])
    eight = zlib.decompress(read_chunks(encode_mask(mask, bits=8))[1][1])
    assert eight == bytes([0, 255, 0, 255, 0, 0, 0, 255])


@pytest.mark.parametrize("bits", [1, 8])
def test_a_mask_of_full_size(bits):
    mask = np.random.default_rng(0).random((1280, 1918)) < 0.01
    with Image.open(io.BytesIO(encode_mask(PackedMask.from_bool(mask), bits))) as image:
        np.testing.assert_array_equal(np.asarray(image).astype(bool), mask)


# ---- reading


def decode(content, pixel_limit=2**31):
    return decode_mask(io.BytesIO(content), pixel_limit)


def write_chunks(chunks):
    parts = (struct.pack(">I", len(data)) + kind + data for kind, data in chunks)
    sums = (struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(one + other for one, other in zip(parts, sums, strict=True))


@settings(deadline=None)
@given(MASKS)
def test_what_is_written_is_read(mask):
    packed = decode(encode_mask(PackedMask.from_bool(mask)))
    assert packed.width == mask.shape[1]
    np.testing.assert_array_equal(packed.rows, PackedMask.from_bool(mask).rows)


@settings(deadline=None)
@given(MASKS, st.randoms())
def test_several_chunks_and_any_padding_are_accepted(mask, random):
    packed = PackedMask.from_bool(mask)
    rows = np.concatenate([np.zeros((mask.shape[0], 1), np.uint8), packed.rows], axis=1)
    rows[:, -1] |= random.randrange(256) & ~(0xFF << -packed.width % 8)
    header, _, end = read_chunks(encode_mask(packed))
    data = zlib.compress(rows.tobytes())
    cut = random.randrange(len(data))
    content = write_chunks([header, (b"IDAT", data[:cut]), (b"IDAT", data[cut:]), end])
    np.testing.assert_array_equal(decode(content).rows, packed.rows)


def test_all_other_files_are_left_to_pillow():
    mask = PackedMask.from_bool(np.random.default_rng(0).random((6, 21)) < 0.5)
    header, data, end = read_chunks(encode_mask(mask))
    scanlines = zlib.decompress(data[1])

    def with_scanlines(lines):
        return write_chunks([header, (b"IDAT", zlib.compress(lines)), end])

    def with_header(**values):
        fields = {"bits": 1, "colour": 0, "packing": 0, "filter": 0, "interlace": 0} | values
        return write_chunks([(b"IHDR", header[1][:8] + bytes(fields.values())), data, end])

    assert decode(with_scanlines(scanlines)) is not None
    assert decode(with_header()) is not None
    others = {
        "empty": b"",
        "text": b"img,rle_mask\n" * 10,
        "8 bits": encode_mask(mask, 8),
        "filtered": with_scanlines(b"\x02" + scanlines[1:]),
        "a scanline less": with_scanlines(scanlines[:-4]),
        "a scanline more": with_scanlines(scanlines + scanlines[:4]),
        "transparency": write_chunks([header, (b"tRNS", b"\0\0"), data, end]),
        "palette": with_header(colour=3),
        "interlaced": with_header(interlace=1),
        "no data": write_chunks([header, end]),
        "no end": write_chunks([header, data]),
        "two headers": write_chunks([header, header, data, end]),
        "data cut short": write_chunks([header, (b"IDAT", data[1][:-6]), end]),
        "no width": write_chunks([(b"IHDR", bytes(4) + header[1][4:]), data, end]),
        "no height": write_chunks([(b"IHDR", header[1][:4] + bytes(4) + header[1][8:]), data, end]),
        "much behind the end": encode_mask(mask) + bytes(100_000),
    }
    assert [name for name, content in others.items() if decode(content) is not None] == []


def test_a_damaged_file_is_never_read():
    """Every byte changed, and the file cut at every place."""
    content = encode_mask(PackedMask.from_bool(np.random.default_rng(0).random((9, 21)) < 0.5))
    for place in range(len(content)):
        assert decode(content[:place]) is None
        assert decode(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]) is None


def test_the_pixel_limit_is_exact():
    content = encode_mask(PackedMask.from_bool(np.ones((6, 21), bool)))
    assert decode(content, 6 * 21) is not None
    assert decode(content, 6 * 21 - 1) is None


def test_a_small_file_that_claims_to_be_large_costs_nothing():
    header = (b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0))
    bomb = write_chunks([header, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")])
    assert decode(bomb) is None
