"""The one rule for names of masks; clashes between photos are tested with the checks of a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.inputs.keys import mask_name_problem


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("a\0b", "NUL"),
        ("../a", "outside of OUT"),
        ("a/../b", "outside of OUT"),
        ("/a", "outside of OUT"),
        ("", "without characters"),
        ("a//b", "without characters"),
        ("a/", "without characters"),
        (".a", "hidden"),
        ("a/.b", "hidden"),
        (".carvana-batch/journal", "hidden"),
        ("a" * 252, "too long"),
        ("a" * 256 + "/b", "too long"),
        ("ä" * 126, "too long"),
        ("/".join(["a" * 200] * 20), "too long"),
        ("_prob/a", "lie in _prob"),
        ("_overlay/a/b", "lie in _overlay"),
        ("report.csv/a", "a folder report.csv"),
        ("Report.CSV/a", "a folder Report.CSV"),
        ("run.json/a", "a folder run.json"),
    ],
)
def test_a_bad_name_has_a_reason(key, words):
    assert words in mask_name_problem(key)


@pytest.mark.parametrize(
    "key",
    [
        *("a", "a/b", "a.b", "a..b", "x../y", "_prob", "a/_prob/b", "_probs/a", "report.csv"),
        *("a/report.csv/b", "a" * 251, "a" * 255 + "/b", "-", "~", "=1", "C:a", "a\\..\\b", "ä b"),
    ],
)
def test_a_good_name_has_no_problem(key):
    assert mask_name_problem(key) == ""


@given(st.lists(st.text("ab._", min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_good_name_stays_below_the_folder_and_visible(parts):
    key = "/".join(parts)
    good = not any(part.startswith(".") for part in parts)
    assert (mask_name_problem(key) == "") == good
