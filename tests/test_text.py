import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.text import escape_name, escape_row_name, unescape_name

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = {"\u200e", "\u200f", "\u061c"}
PARTS = [
    "a",
    "\\",
    "x",
    "u",
    "1b",
    "85",
    "202e",
    "5c",
    "x1b",
    "u202e",
    "\x1b",
    "\x85",
    "\u202e",
    "\n",
    "x41",
    "\udcff",
]


def test_harmful_characters_and_no_others_are_escaped():
    for code in range(0x110000):
        letter = chr(code)
        harmful = (
            unicodedata.category(letter) in {"Cc", "Zl", "Zp"}
            or unicodedata.bidirectional(letter) in BIDI_CONTROLS
            or letter in MARKS
        )
        assert (escape_name(letter) != letter) == harmful, hex(code)


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\x85b\u202ec\n", r"a\x85b\u202ec\x0a"),
        (r"a\b", r"a\b"),
        (r"a\x1b", r"a\x5cx1b"),
        ("Bild\u202f1.jpg", "Bild\u202f1.jpg"),
    ],
)
def test_names_are_escaped(name, escaped):
    assert escape_name(name) == escaped
    assert unescape_name(escaped) == name


@pytest.mark.parametrize("text", [r"a\x41", r"a\u0041", r"\u001b", r"\X1B", r"\x1", "\\"])
def test_other_escapes_stay(text):
    assert unescape_name(text) == text


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("=1+1", r"\x3d1+1"),
        ("-a", r"\x2da"),
        ("a;@b", r"a;\x40b"),
        ("\uff1da", r"\uff1da"),
        (r"\x3da", r"\x5cx3da"),
        ("\t=a", r"\x09=a"),
        ("a-b_01", "a-b_01"),
    ],
)
def test_what_begins_a_formula_is_escaped_in_rows(name, escaped):
    assert escape_row_name(name) == escaped
    assert unescape_name(escaped) == name


@given(st.text() | st.lists(st.sampled_from([*PARTS, "=", ";", "-", "x3d"])).map("".join))
def test_names_of_rows_can_be_read_back(name):
    assert unescape_name(escape_row_name(name)) == name


@given(st.text() | st.lists(st.sampled_from(PARTS)).map("".join))
def test_escaped_names_can_be_read_back(name):
    assert unescape_name(escape_name(name)) == name
