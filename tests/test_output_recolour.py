"""Giving the paint of a car another colour."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.colours import srgb_to_lab
from carvana_batch.demo import draw_photo
from carvana_batch.output.recolour import find_paint, recolour

RED, BLUE, GREEN = (176, 0, 32), (20, 60, 200), (10, 120, 50)


def paint_car(colour, shape=(60, 90)):
    """A car of one colour with light and shade, grey and black parts and an orange light; and its mask."""
    generator = np.random.default_rng(4)
    pixels = generator.integers(0, 256, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, bool)
    mask[10:50, 10:80] = True
    light = np.linspace(0.3, 1, 70)[None, :, None]
    pixels[10:50, 10:80] = (np.array(colour) * light).astype(np.uint8)
    parts = {"glass": (120, 122, 124), "tyre": (25, 25, 27), "light": (250, 150, 20)}
    for index, part in enumerate(parts.values()):
        pixels[15 + 10 * index : 20 + 10 * index, 20:40] = part
    return pixels, mask


def hue_of(pixels):
    lab = srgb_to_lab(pixels.astype(float).reshape(-1, 3)).mean(axis=0)
    return np.degrees(np.arctan2(lab[2], lab[1])) % 360


@pytest.mark.parametrize("old", [BLUE, GREEN, (150, 20, 120)])
def test_paint_is_recoloured_and_nothing_else(old):
    pixels, mask = paint_car(old)
    before = pixels.copy()
    changed, has_paint = recolour(pixels, mask, RED)
    assert has_paint
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(changed[~mask], pixels[~mask])
    for top in (15, 25, 35):  # glass, tyre, light
        np.testing.assert_array_equal(changed[top : top + 5, 20:40], pixels[top : top + 5, 20:40])
    body = (slice(42, 48), slice(20, 78))
    wanted = hue_of(np.array([[RED]]))
    assert (hue_of(changed[body]) - wanted + 180) % 360 - 180 == pytest.approx(0, abs=4)


@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(0, 30))
def test_lightness_stays(colour, seed):
    """To within the rounding of 8 bits, for any colours."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 256, 3)
    pixels = np.clip(base * generator.uniform(0.1, 1.2, (20, 30, 1)), 0, 255).astype(np.uint8)
    mask = generator.random((20, 30)) < 0.7
    changed, _ = recolour(pixels, mask, colour)
    before, after = (srgb_to_lab(each.astype(float))[..., 0] for each in (pixels, changed))
    assert np.abs(before - after).max() < 0.6
    np.testing.assert_array_equal(changed[~mask], pixels[~mask])


@pytest.mark.parametrize("grey", [(30, 30, 32), (128, 130, 133), (245, 245, 240)])
def test_a_car_without_a_colour_stays(grey):
    pixels, mask = paint_car(grey)
    pixels[35:40, 20:40] = 250, 150, 20  # lights are no paint
    changed, has_paint = recolour(pixels, mask, RED)
    assert not has_paint
    np.testing.assert_array_equal(changed, pixels)
    assert find_paint(pixels[:0].reshape(-1, 3)) is None
    assert not recolour(pixels, np.zeros_like(mask), RED)[1]


def test_the_same_colour_changes_little():
    pixels, mask = paint_car(BLUE)
    changed, _ = recolour(pixels, mask, BLUE)
    assert np.abs(changed.astype(int) - pixels)[mask].mean() < 12


def test_a_drawn_photo():
    """The studio around the car stays; the hue of what was paint becomes that of the new colour."""
    for seed in range(8):
        pixels, mask = draw_photo(seed, 5, (480, 320))
        mask = np.asarray(mask, bool)
        paint = find_paint(pixels[mask])
        if paint is None:
            continue
        changed, _ = recolour(pixels, mask, GREEN)
        assert find_paint(changed[mask]).hue == pytest.approx(hue_of(np.array([[GREEN]])), abs=10)
        np.testing.assert_array_equal(changed[~mask], pixels[~mask])
        return
    pytest.fail("none of the drawn cars has a colour")
