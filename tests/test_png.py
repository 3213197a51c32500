import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from carvana_batch.png import encode_mask
from carvana_batch.records import PackedMask

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
