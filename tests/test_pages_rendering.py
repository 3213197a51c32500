"""Pages from templates: what is escaped, and which scripts and styles may run."""

import base64
import hashlib
import json
import re

import pytest
from jinja2 import UndefinedError

from carvana_batch.pages.rendering import data_uri, encode_json, render_fragment, render_page

PAGE = "carvana_batch.scoring.page"
HOSTILE = "</script><script>alert(1)</script><!-- \"' &amp; \u2028"


def test_text_is_escaped():
    row = {"name": HOSTILE, "filter": HOSTILE, "long": False, "images": 1}
    numbers = dict.fromkeys(
        ("mean", "mean_x", "lowest", "low", "first_quartile", "third_quartile", "high"), 0.5
    )
    html = render_fragment(
        PAGE, "spreads.html", heading=HOSTILE, rows=[row | numbers], grid=[], ticks=[], tick_y=1
    )
    assert html.count("&lt;script&gt;") == 3
    assert "<script" not in html
    assert "\"'" not in html


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="heading"):
        render_fragment(PAGE, "spreads.html", rows=[], grid=[], ticks=[], tick_y=1)


def test_styles_and_scripts_are_those_that_the_policy_allows():
    html = render_page(
        PAGE,
        "score.html",
        ["base.css", "score.css"],
        ["viewer.js"],
        predicted="<b>",
        truth="gt",
        summary=None,
        means=[],
        problems=[],
        histogram="",
        groups=[],
        meanings=[],
        table=encode_json({}),
        pictures=[],
        picture_data=[],
        picture_rows=[],
        all_shown=True,
    )
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    texts = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", html, re.DOTALL)
    assert len(texts) == 3
    allowed = re.findall(r"'sha256-(.*?)'", policy)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    assert sorted(allowed) == sorted(hashes)
    assert "Masks in <bdi>&lt;b&gt;</bdi>" in html


def test_json_cannot_end_its_element():
    encoded = encode_json([HOSTILE, 1.5, None])
    assert not re.search("[<>&\u2028]", encoded)
    assert json.loads(encoded) == [HOSTILE, 1.5, None]
    with pytest.raises(ValueError, match="JSON"):
        encode_json(float("nan"))


def test_data_uri():
    assert data_uri("png", b"\x89P") == "data:image/png;base64,iVA="
