"""Reading the decisions of a review."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.errors import UsageError
from carvana_batch.files import table_cell
from carvana_batch.inputs.decisions import (
    Decision,
    is_decisions,
    match_decisions,
    parse_decisions,
    read_decisions,
)

HEADER = b"image,decision,note\n"


def test_rows_in_the_forms_that_programs_write():
    expected = [Decision("a/b", "accept"), Decision("c", "reject", 'roof, "cut"'), Decision("d", "", "dark")]
    plain = HEADER + b'a/b,accept,\nc,reject,"roof, ""cut"""\nd,,dark\n'
    for data in (
        plain,
        b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"),
        plain.replace(b"roof, ", b"roof_ ").replace(b",", b";").replace(b"roof_ ", b"roof, "),
        plain.replace(b"accept", b" Accept ") + b"\n,,\n",
        plain + b"c,reject,second\n" + b'c,reject,"roof, ""cut"""\n',
    ):
        assert is_decisions(data)
        assert parse_decisions(data, "x.csv") == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"in/a.jpg\nin/b.jpg\n", "has no decisions: its first line must be image,decision,note"),
        (b"", "has no decisions"),
        (HEADER + b"a,maybe,\n", "x.csv, row 2: the decision 'maybe' is neither accept nor reject"),
        (HEADER + b"a,accept,\nb,reject,\na,reject,\n", "row 4: a has two different decisions"),
        (HEADER + b",accept,\n", "row 2 must have image, decision, note"),
        (HEADER + b"a,accept,x,y\n", "row 2 must have image, decision, note"),
        (HEADER + b'a,accept,"x', "is not a valid CSV"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(UsageError, match=message):
        parse_decisions(data, "x.csv")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"Cannot read the decisions .*none\.csv: No such file"):
        read_decisions(tmp_path / "none.csv")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1) | st.just("not\udcfftext")


@given(st.dictionaries(NAMES, st.sampled_from(["accept", "reject"]), max_size=5))
def test_any_name_is_found_again(tmp_path_factory, decided):
    """A table of any names, written by another CSV writer, gives the decisions of these names."""
    path = tmp_path_factory.getbasetemp() / "decisions.csv"
    keys = {table_cell(name): name for name in decided}
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["image", "decision", "note"])
        writer.writerows([cell, decided[name], ""] for cell, name in keys.items())
    rows = read_decisions(path)
    matched = match_decisions(rows, keys.values(), "decisions.csv", path)
    assert {name: row.decision for name, row in matched.items()} == {k: decided[k] for k in keys.values()}


def test_rows_of_no_photo_are_named(tmp_path):
    rows = [Decision("a", "accept"), Decision("b", "reject"), Decision("c", "reject")]
    with pytest.raises(UsageError, match=r"d.csv: 2 images of it are not in .* \(b, c\)"):
        match_decisions(rows, ["a"], "d.csv", tmp_path)
