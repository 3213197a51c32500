"""sRGB, CIELAB, and colours as users write them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.colours import format_colour, lab_to_srgb, parse_colour, srgb_to_lab

CHANNEL = st.integers(0, 255)


@given(st.tuples(CHANNEL, CHANNEL, CHANNEL))
def test_round_trip(colour):
    values = np.array([colour], float)
    np.testing.assert_allclose(lab_to_srgb(srgb_to_lab(values)), values, atol=0.1)


@given(st.floats(0, 100), st.floats(0, 360), st.floats(0, 200))
def test_what_srgb_lacks_keeps_lightness_and_hue(lightness, hue, chroma):
    angle = np.radians(hue)
    lab = np.array([[lightness, chroma * np.cos(angle), chroma * np.sin(angle)]])
    rgb = lab_to_srgb(lab)
    assert ((rgb >= 0) & (rgb <= 255)).all()
    found = srgb_to_lab(rgb)[0]
    # Half a level of 8 bits changes the lightness of black by 0.14.
    assert found[0] == pytest.approx(lightness, abs=0.14)
    found_chroma = np.hypot(*found[1:])
    assert found_chroma <= chroma + 0.14
    if found_chroma > 1:
        turned = np.degrees(np.arctan2(found[2], found[1])) - hue
        assert (turned + 180) % 360 - 180 == pytest.approx(0, abs=60 / found_chroma)


@pytest.mark.parametrize(
    ("text", "colour"),
    [("#b00020", (176, 0, 32)), ("#fff", (255, 255, 255)), ("DarkRed", (139, 0, 0))],
)
def test_colours_of_the_user(text, colour):
    assert parse_colour(text) == colour
    assert parse_colour(format_colour(colour)) == colour


@pytest.mark.parametrize("text", ["", "#12345", "reddish", "#11223344", "12,34,56"])
def test_what_is_no_colour(text):
    with pytest.raises(ValueError):
        parse_colour(text)
