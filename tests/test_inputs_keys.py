"""Names of masks and their pairing; clashes between photos are tested with the checks of a request."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.inputs.keys import mask_name_problem, match_ids


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


def test_names_pair_whatever_the_encoding_of_their_accents():
    composed, decomposed = "\u0160koda_01", "S\u030ckoda_01"
    assert match_ids([composed, "x", "a"], ["a", decomposed]) == {composed: decomposed, "a": "a"}
    assert match_ids([decomposed], [composed]) == {decomposed: composed}
    assert match_ids(["Skoda_01", "\u0161koda_01"], [composed]) == {}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_form_of_a_name_pairs_with_every_other(name):
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    for one in forms:
        for other in forms:
            assert match_ids([one], [other]) == {one: other}
