import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from carvana_batch.errors import CarvanaBatchError
from carvana_batch.masks import rle
from carvana_batch.values import PackedMask


def encode_naively(mask):
    """The format's definition, pixel by pixel."""
    numbers = []
    before = False
    for position, pixel in enumerate(mask.ravel().tolist(), start=1):
        if pixel and not before:
            numbers += [position, 0]
        if pixel:
            numbers[-1] += 1
        before = pixel
    return " ".join(str(number) for number in numbers)


def decode_naively(text, height, width):
    pixels = [False] * (height * width)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for position in range(start, start + length):
            pixels[position - 1] = True
    return np.array(pixels, bool).reshape(height, width)


def corner(height, width, row, column):
    mask = np.zeros((height, width), bool)
    mask[row, column] = True
    return mask


masks = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 35)))

SPECIAL = [
    np.zeros((5, 11), bool),
    np.ones((5, 11), bool),
    np.ones((3, 16), bool),
    corner(5, 11, 0, 0),
    corner(5, 11, 0, -1),
    corner(5, 11, -1, 0),
    corner(5, 11, -1, -1),
    np.tile([True, False], (4, 9)),
    np.tile([False, True], (4, 9)),
    np.arange(7 * 13).reshape(7, 13) % 2 == 0,
    np.ones((1, 1), bool),
    np.ones((1, 1918), bool),
    np.ones((1280, 1), bool),
    np.eye(17, dtype=bool),
    np.fliplr(np.eye(17, dtype=bool)),
]


def test_a_row_counted_by_hand():
    mask = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1], [1, 1, 1, 0, 1]], bool)
    assert rle.encode(mask) == "1 2 5 2 9 5 15 1"


def test_a_run_goes_on_over_the_end_of_a_row():
    mask = np.zeros((3, 1918), bool)
    mask[0, -2:] = True
    mask[1, :3] = True
    assert rle.encode(mask) == "1917 5"


@pytest.mark.parametrize("mask", SPECIAL)
def test_special_masks_as_by_definition(mask):
    text = encode_naively(mask)
    height, width = mask.shape
    assert rle.encode(mask) == text
    assert rle.encode_packed(PackedMask.from_bool(mask)) == text
    np.testing.assert_array_equal(rle.decode(text, height, width), mask)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_no_pixels_are_an_empty_row(shape):
    assert rle.encode(np.zeros(shape, bool)) == ""
    assert rle.decode("", *shape).shape == shape


@given(masks)
def test_encoding_is_as_by_definition(mask):
    assert rle.encode(mask) == encode_naively(mask)


@given(masks)
def test_round_trips_are_exact(mask):
    height, width = mask.shape
    packed = PackedMask.from_bool(mask)
    text = rle.encode_packed(packed)
    decoded = rle.decode_packed(text, height, width)
    assert decoded.width == width
    np.testing.assert_array_equal(decoded.rows, packed.rows)
    np.testing.assert_array_equal(rle.decode(text, height, width), mask)
    np.testing.assert_array_equal(decode_naively(text, height, width), mask)


sizes = st.tuples(st.integers(1, 50), st.integers(1, 70))


@given(sizes, st.booleans())
def test_nothing_and_everything_round_trip(size, value):
    height, width = size
    text = rle.encode(np.full(size, value))
    assert text == (f"1 {height * width}" if value else "")
    assert (rle.decode(text, height, width) == value).all()


@given(sizes, st.sampled_from([0, -1]), st.sampled_from([0, -1]))
def test_a_corner_round_trips(size, row, column):
    height, width = size
    text = rle.encode(corner(height, width, row, column))
    assert text == f"{(row % height) * width + column % width + 1} 1"
    np.testing.assert_array_equal(rle.decode(text, height, width), corner(height, width, row, column))


@given(sizes, st.data())
def test_one_row_and_one_column_round_trip(size, data):
    height, width = size
    row = data.draw(st.integers(0, height - 1))
    column = data.draw(st.integers(0, width - 1))
    mask = np.zeros(size, bool)
    mask[row] = True
    assert rle.encode(mask) == f"{row * width + 1} {width}"
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), height, width), mask)
    mask = np.zeros(size, bool)
    mask[:, column] = True
    starts = range(column + 1, height * width + 1, width)
    expected = f"1 {height}" if width == 1 else " ".join(f"{start} 1" for start in starts)
    assert rle.encode(mask) == expected
    np.testing.assert_array_equal(rle.decode(expected, height, width), mask)


@given(sizes, st.integers(0, 1))
def test_every_second_pixel_round_trips(size, first):
    height, width = size
    mask = (np.arange(height * width) % 2 == first).reshape(size)
    text = rle.encode(mask)
    assert text == " ".join(f"{start} 1" for start in range(first + 1, height * width + 1, 2))
    np.testing.assert_array_equal(rle.decode_packed(text, height, width).to_bool(), mask)


@given(masks, st.integers(0, 255))
def test_padding_bits_are_not_looked_at(mask, garbage):
    packed = PackedMask.from_bool(mask)
    rows = packed.rows.copy()
    rows[:, -1] |= garbage & ~(0xFF << -packed.width % 8)
    assert rle.encode_packed(PackedMask(rows, packed.width)) == encode_naively(mask)


def test_the_mask_is_not_changed_and_need_not_be_contiguous():
    mask = np.random.default_rng(0).random((40, 37)) < 0.5
    packed = PackedMask.from_bool(mask)
    packed.rows.flags.writeable = False
    every_second = PackedMask(packed.rows[::2], packed.width)
    assert rle.encode_packed(every_second) == encode_naively(mask[::2])


@given(st.lists(st.tuples(st.integers(-3, 30), st.integers(-3, 30)), max_size=4))
@example([(1, 24)])
@example([(24, 1)])
@example([(25, 1)])
@example([(1, 3), (4, 2)])
@example([(1, 3), (3, 2)])
def test_a_row_is_accepted_exactly_if_it_describes_a_mask(pairs):
    last_end, fine = 1, True
    for start, length in pairs:
        fine = fine and start >= last_end and length >= 1 and start + length <= 4 * 6 + 1
        last_end = start + length
    text = " ".join(f"{start} {length}" for start, length in pairs)
    if fine:
        np.testing.assert_array_equal(rle.decode(text, 4, 6), decode_naively(text, 4, 6))
    else:
        with pytest.raises(rle.RunLengthError, match=r"^Pair \d"):
            rle.decode(text, 4, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 5", "Pair 2 has a start (5) but no length."),
        ("1 2 0 3", "Pair 2 (0 3) starts below 1"),
        ("1 2 9 0", "Pair 2 (9 0) has no length."),
        ("1 2 9 -3", "Pair 2 holds '-3', not a positive whole number"),
        ("1 4 4 2", "Pair 2 (4 2) overlaps the pair before it or is out of order."),
        ("7 2 9 1 1 2", "Pair 3 (1 2) overlaps the pair before it or is out of order."),
        ("20 5 25 1", "Pair 2 (25 1) ends beyond the image of 6x4 = 24 pixels."),
        ("20 6", "Pair 1 (20 6) ends beyond"),
        ("1 2 3.5 1", "Pair 2 holds '3.5'"),
        ("1 x", "Pair 1 holds 'x'"),
        ("1 1_0", "Pair 1 holds '1_0'"),
        ("1 ٣", "Pair 1 holds '٣'"),
        ("nan nan", "Pair 1 holds 'nan'"),
        ("1 " + "9" * 5000, "Pair 1 holds '9999999999999999999999999999999999999999...'"),
        (
            "999999999999999999 999999999999999999",
            "Pair 1 (999999999999999999 999999999999999999) ends beyond",
        ),
    ],
)
def test_a_bad_row_is_refused_with_the_pair_named(text, message):
    for decode in (rle.decode, rle.decode_packed):
        with pytest.raises(rle.RunLengthError) as caught:
            decode(text, 4, 6)
        assert str(caught.value).startswith(message)
    assert isinstance(caught.value, CarvanaBatchError)


@given(st.text(alphabet="0123456789 -+.eax\n\t_٣", max_size=30))
def test_no_text_raises_anything_else(text):
    try:
        mask = rle.decode(text, 4, 6)
    except rle.RunLengthError:
        return
    np.testing.assert_array_equal(mask, decode_naively(text, 4, 6))


def test_white_space_does_not_matter():
    np.testing.assert_array_equal(rle.decode(" 1  2\t9 1\n", 4, 6), rle.decode("1 2 9 1", 4, 6))


def test_runs_that_touch_are_taken():
    assert rle.encode(rle.decode("1 6 7 2", 4, 6)) == "1 8"


@pytest.mark.parametrize(
    ("text", "pixel"),
    [
        ("", 0),
        ("5", 0),
        ("3 1", 3),
        ("1 2 30 4 ", 33),
        ("1 -2", 0),
        ("12 3\t", 14),
        ("1 " * 999 + "8 5", 12),
    ],
)
def test_last_pixel(text, pixel):
    assert rle.find_last_pixel(text) == pixel


@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_rows_are_decoded_down_the_columns(mask):
    columns = rle.encode(mask.T)
    height, width = mask.shape
    np.testing.assert_array_equal(rle.decode(columns, height, width, "columns"), mask)
    np.testing.assert_array_equal(rle.decode_packed(columns, height, width, "columns").to_bool(), mask)
