"""Pictures of a training run: contact sheets and panels of wrong pixels."""

import numpy as np
import pytest
from helpers import is_colour, names_in
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from carvana_batch.errors import UsageError
from carvana_batch.masks.counts import SizeError
from carvana_batch.scoring.mistakes import INVENTED_COLOUR, MISSED_COLOUR, busiest_window
from carvana_batch.training.pictures import (
    BACKGROUND_COLOUR,
    GAP,
    LINE_HEIGHT,
    OUTLINE_COLOUR,
    TINT_STRENGTH,
    UNKNOWN_COLOUR,
    Panel,
    draw_panels,
    draw_samples,
    write_picture,
)
from carvana_batch.values import PackedMask

RED, GREEN, BLUE = (200, 0, 0), (0, 180, 0), (0, 0, 160)


def flat(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


def masks(true, predicted) -> tuple[PackedMask, PackedMask]:
    return PackedMask.from_bool(np.asarray(true, bool)), PackedMask.from_bool(np.asarray(predicted, bool))


def known_all(mask):
    return np.full_like(mask, 255)


# Samples


def test_samples_of_different_shapes_form_a_grid():
    """At width 40, 80x40 becomes 40x20 and 20x30 becomes 40x60; a row is as high as its highest cell."""
    empty = [np.zeros(shape, np.uint8) for shape in ((40, 80), (40, 40), (30, 20))]
    samples = [
        (flat(*mask.shape, c), mask, known_all(mask))
        for mask, c in zip(empty, (RED, GREEN, BLUE), strict=True)
    ]
    sheet = draw_samples(samples, columns=2, width=40)
    assert sheet.size == (40 + GAP + 40, 40 + GAP + 60)
    expected = np.full((sheet.height, sheet.width, 3), BACKGROUND_COLOUR, np.uint8)
    expected[:20, :40] = RED
    expected[:40, 40 + GAP :] = GREEN
    expected[40 + GAP :, :40] = BLUE
    np.testing.assert_array_equal(np.asarray(sheet), expected)


def test_the_car_is_tinted_and_outlined():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:22] = 255
    picture = np.asarray(draw_samples([(flat(20, 30, (100, 100, 100)), mask, known_all(mask))], width=30))
    tinted = [round(100 + TINT_STRENGTH * (channel - 100)) for channel in OUTLINE_COLOUR]
    expected = flat(20, 30, (100, 100, 100))
    expected[5:15, 8:22] = OUTLINE_COLOUR
    expected[6:14, 9:21] = tinted
    np.testing.assert_array_equal(picture, expected)


def test_the_outline_is_where_the_soft_mask_crosses_half():
    mask = np.tile(np.array([0, 60, 127, 128, 200, 255, 255], np.uint8), (5, 1))
    picture = draw_samples([(flat(5, 7, (90, 90, 90)), mask, known_all(mask))], width=7)
    np.testing.assert_array_equal(is_colour(picture, OUTLINE_COLOUR), np.tile(np.arange(7) == 3, (5, 1)))


def test_a_car_has_no_outline_at_the_edge_of_the_crop():
    full = np.full((8, 8), 255, np.uint8)
    picture = draw_samples([(flat(8, 8, (90, 90, 90)), full, full)], width=8)
    assert not is_colour(picture, OUTLINE_COLOUR).any()


def test_unknown_pixels_have_their_own_colour():
    known = np.full((8, 8), 255, np.uint8)
    known[2:4, 3:7] = 0
    picture = draw_samples([(flat(8, 8, (90, 90, 90)), known, known)], width=8)
    np.testing.assert_array_equal(is_colour(picture, UNKNOWN_COLOUR), known == 0)


def test_a_thin_antenna_stays_visible():
    """It is one pixel wide, and the photo is eight times as wide as its cell."""
    mask = np.zeros((240, 320), np.uint8)
    mask[80:160, 101] = 255
    sample = flat(240, 320, (90, 90, 90)), mask, known_all(mask)
    outline = is_colour(draw_samples([sample], width=40), OUTLINE_COLOUR)
    expected = np.zeros((30, 40), bool)
    expected[10:20, 12] = True  # 101 // 8
    np.testing.assert_array_equal(outline, expected)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_samples([])
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_panels([])


# Panels


def columns_of(picture, width, height):
    """Return the three pictures of the only row."""
    top = LINE_HEIGHT + GAP + LINE_HEIGHT
    assert picture.size == (3 * width + 2 * GAP, top + height)
    pixels = np.asarray(picture)[top:]
    return [pixels[:, start : start + width] for start in (0, width + GAP, 2 * (width + GAP))]


def test_an_error_of_one_pixel_stays_visible():
    true, predicted = np.zeros((2, 1280, 1918), bool)
    true[300:700, 500:1200] = predicted[300:700, 500:1200] = True
    predicted[401, 777] = False
    predicted[1279, 1917] = True
    photo = flat(1280, 1918, (120, 60, 200))
    picture = draw_panels([Panel("car", photo, *masks(true, predicted), dice=1.0)], width=640)
    plain, marked, _ = columns_of(picture, 640, 427)  # 1280 * 640 / 1918 = 427.1
    assert (plain == (120, 60, 200)).all()
    # Pixel x of 1918 is covered by pixel x * 640 / 1918 of 640.
    assert np.argwhere(is_colour(marked, MISSED_COLOUR)).tolist() == [[133, 259]]
    assert np.argwhere(is_colour(marked, INVENTED_COLOUR)).tolist() == [[426, 639]]


def test_the_more_frequent_error_in_a_pixel_is_shown():
    true, predicted = np.zeros((2, 100, 600), bool)
    true[10:20, 10:13] = True  # 30 missed in the cell of 10x10, and 10 invented
    predicted[10:20, 15] = True
    true[50:60, 55] = True
    predicted[50:60, 51:53] = True
    panel = Panel("car", flat(100, 600, (99, 99, 99)), *masks(true, predicted), dice=0.0)
    _, marked, _ = columns_of(draw_panels([panel], width=60), 60, 10)
    assert np.argwhere(is_colour(marked, MISSED_COLOUR)).tolist() == [[1, 1]]
    assert np.argwhere(is_colour(marked, INVENTED_COLOUR)).tolist() == [[5, 5]]


def test_the_third_column_enlarges_the_area_with_most_errors():
    rng = np.random.default_rng(0)
    true, predicted = np.zeros((2, 600, 900), bool)
    true[20, ::3] = True  # 300 errors, but scattered
    blob = rng.random((20, 30)) < 0.5
    predicted[400:420, 600:630] = blob
    true[400:420, 600:630] = rng.random((20, 30)) < 0.3
    photo = rng.integers(0, 256, (600, 900, 3), np.uint8)
    panel = Panel("car", photo, *masks(true, predicted), dice=0.0)
    _, marked, enlarged = columns_of(draw_panels([panel], width=640), 640, 427)
    # Twice as large, so 320x214 pixels around (615, 410).
    left, top = 615 - 160, 410 - 107
    part = np.s_[top : top + 214, left : left + 320]
    for colour, wrong in ((MISSED_COLOUR, true & ~predicted), (INVENTED_COLOUR, predicted & ~true)):
        expected = np.kron(wrong[part], np.ones((2, 2), bool))[:427]
        np.testing.assert_array_equal(is_colour(enlarged, colour), expected)
    grey = np.asarray(Image.fromarray(photo).convert("L"), int)[part]
    right = ~(true ^ predicted)[part]
    np.testing.assert_array_equal(enlarged[::2, ::2, 0][right], (255 - (255 - grey) // 2)[right])
    black = np.argwhere(is_colour(marked, (0, 0, 0)))
    frame = np.array([[top, left], [top + 214, left + 320]]) * 640 / 900
    np.testing.assert_allclose([black.min(axis=0), black.max(axis=0) + 1], frame, atol=1)


def test_a_small_photo_is_enlarged_whole():
    true = np.zeros((10, 16), bool)
    true[4, 4] = True
    panel = Panel("car", flat(10, 16, (50, 50, 50)), *masks(true, ~true), dice=0.0)
    _, marked, enlarged = columns_of(draw_panels([panel], width=40), 40, 25)
    # The pixels of 40x25 with centres (0.5, 1.5, ...) in 10 <= x < 12.5 and 10 <= y < 12.5.
    assert np.argwhere(is_colour(marked, MISSED_COLOUR)).tolist() == [[10, 10], [10, 11], [11, 10], [11, 11]]
    np.testing.assert_array_equal(
        is_colour(enlarged[:20, :32], MISSED_COLOUR), np.kron(true, np.ones((2, 2), bool))
    )
    assert (enlarged[20:] == BACKGROUND_COLOUR).all()
    assert (enlarged[:, 32:] == BACKGROUND_COLOUR).all()


@pytest.mark.parametrize("shape", [(3, 1918), (70, 3), (1, 1), (1280, 1918)])
@pytest.mark.parametrize("width", [1, 40, 333])
def test_photos_of_any_shape_can_be_drawn(shape, width):
    """Every pixel is missed, so the whole second column has that colour, including the frame."""
    photo = flat(shape[0], shape[1], (50, 50, 50))
    full = np.full(shape, 255, np.uint8)
    height = max(1, round(shape[0] * width / shape[1]))
    assert draw_samples([(photo, full, full)], width=width).size == (width, height)
    picture = draw_panels([Panel("car", photo, *masks(full, full == 0), dice=0.0)], width=width)
    _, marked, enlarged = columns_of(picture, width, height)
    assert is_colour(marked, MISSED_COLOUR).all()
    assert is_colour(enlarged, MISSED_COLOUR)[0, 0]


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    data=st.data(),
)
def test_the_busiest_window_holds_the_spot_with_most_errors(seed, shape, share, data):
    flags = np.random.default_rng(seed).random(shape) < share
    width = data.draw(st.integers(1, shape[1]))
    height = data.draw(st.integers(1, shape[0]))
    left, top = busiest_window(flags, (width, height))
    assert 0 <= left <= shape[1] - width
    assert 0 <= top <= shape[0] - height
    spot = max(1, height // 2), max(1, width // 2)
    most = sliding_window_view(flags, spot).sum(axis=(2, 3)).max()
    inside = sliding_window_view(flags[top : top + height, left : left + width], spot)
    assert inside.sum(axis=(2, 3)).max() == most


def test_without_errors_only_the_legend_has_colours():
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:60] = True
    panel = Panel("car", flat(60, 90, (50, 50, 50)), *masks(mask, mask), dice=1.0)
    picture = draw_panels([panel, panel], width=400)
    legend, rest = np.split(np.asarray(picture), [LINE_HEIGHT])
    assert picture.height == LINE_HEIGHT + 2 * (GAP + LINE_HEIGHT + 267)
    for colour in (MISSED_COLOUR, INVENTED_COLOUR):
        assert is_colour(legend, colour).sum() > 100
        assert not is_colour(rest, colour).any()


def test_the_caption_has_title_dice_and_counts(monkeypatch):
    written = []

    def note(_image, x, text):
        written.append(text)
        return x

    monkeypatch.setattr("carvana_batch.training.pictures.write_text", note)
    true, predicted = np.zeros((2, 40, 60), bool)
    true[:30, :50] = predicted[:1, :1] = True
    predicted[35, :3] = True
    draw_panels([Panel("a\nb", flat(40, 60, (0, 0, 0)), *masks(true, predicted), dice=0.00133)], width=60)
    assert written[-1].split("    ") == [r"a\nb", "Dice 0.0013", "missed 1,499 px, invented 3 px"]


def test_captions_are_dark_on_light():
    panel = [
        Panel(title, flat(9, 9, RED), *masks(np.zeros((9, 9)), np.zeros((9, 9))), dice=1.0)
        for title in ("a", "b")
    ]
    first, second = (np.asarray(draw_panels([one], width=200))[LINE_HEIGHT + GAP :] for one in panel)
    for caption in (first[:LINE_HEIGHT], second[:LINE_HEIGHT]):
        assert 0.01 < (caption.mean(axis=2) < 128).mean() < 0.5
    assert (first[:LINE_HEIGHT] != second[:LINE_HEIGHT]).any()


def test_the_error_colours_differ_in_lightness():
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (MISSED_COLOUR, INVENTED_COLOUR)]
    assert lightness[1] - lightness[0] > 50


@pytest.mark.parametrize("which", ["true", "predicted"])
def test_a_mask_of_another_size_is_named(which):
    true, predicted = masks(np.zeros((4, 6)), np.zeros((4, 6)))
    wrong, _ = masks(np.zeros((6, 4)), np.zeros((6, 4)))
    pair = (wrong, predicted) if which == "true" else (true, wrong)
    with pytest.raises(SizeError, match=rf"car_07.*6x4.*{which} mask 4x6"):
        draw_panels([Panel("car_07", flat(4, 6, RED), *pair, dice=0.0)])


# Files


def test_a_png_has_exactly_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    write_picture(tmp_path / "a.PNG", Image.fromarray(pixels))
    with Image.open(tmp_path / "a.PNG") as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), pixels)
    assert names_in(tmp_path) == ["a.PNG"]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg"])
def test_a_jpeg_keeps_the_colour_of_a_thin_line(tmp_path, name):
    pixels = flat(32, 32, (128, 128, 128))
    pixels[:, 15] = OUTLINE_COLOUR
    write_picture(tmp_path / name, Image.fromarray(pixels).convert("RGBA"))
    with Image.open(tmp_path / name) as read:
        assert read.format == "JPEG"
        assert np.abs(np.asarray(read)[:, 15].astype(int) - OUTLINE_COLOUR).max() < 40


def test_other_suffixes_and_huge_jpegs_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a\.bmp.*\.jpg or \.png"):
        write_picture(tmp_path / "a.bmp", Image.new("RGB", (2, 2)))
    with pytest.raises(UsageError, match=r"a\.jpg.*1x65501.*\.png"):
        write_picture(tmp_path / "a.jpg", Image.new("RGB", (1, 65501)))
    assert names_in(tmp_path) == []
