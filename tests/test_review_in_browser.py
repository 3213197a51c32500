"""The page of ``review`` in headless Chromium: keys, decisions, the saved CSV, filters, screen readers."""

import csv
import json
import shutil
import time

import numpy as np
import pytest
from devtools import TEXT_COLOURS, contrast, find_chromium, texts
from helpers import is_colour, write_mask
from test_review import write_run

from carvana_batch.inputs.decisions import Decision, match_decisions, read_decisions
from carvana_batch.review import page as review_page
from carvana_batch.review.page import write_page
from carvana_batch.review.selection import read_finished_run, select, wilson_interval
from carvana_batch.text import shown

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium"),
]

OUTLINE, PART, HOLE = (255, 96, 0), (212, 0, 140), (0, 114, 178)
DOUBTS = [0.01, 0.5, None, 0.2, 0.02, 0.03, 0.04, 0.015]
ORDER = ["b/car1", "b/car3", "a/car6", "b/car5"]
"""The four most doubtful; the other three, a/car0, a/car4 and b/car7, are drawn at random."""


@pytest.fixture
def out(tmp_path):
    return write_run(tmp_path, DOUBTS)


def make_page(out, worst=4, sample=10, **options):
    finished = read_finished_run(out)
    written = write_page(
        out.parent / "review.html", finished, select(finished.masked, worst, sample), **options
    )
    return written.page


@pytest.fixture
def page(show_page, out):
    return show_page(make_page(out))


def wait_for_picture(page):
    page.wait_for("document.getElementById('viewer').open")
    page.wait_for("!document.getElementById('stage').hasAttribute('aria-busy')")
    page.wait_for_frame()


def begin(page):
    page.click("#begin")
    wait_for_picture(page)


def text(page, name):
    return page.evaluate(f"document.getElementById({name!r}).textContent")


def visible(page):
    return page.evaluate(
        "[...document.querySelectorAll('#cards li:not([hidden]) .name')].map((it) => it.textContent)"
    )


def save(page, folder):
    """Save the CSV by the keyboard, once the closed viewer has given the focus back; return its path."""
    page.wait_for("document.activeElement.classList.contains('card')")
    folder.mkdir(exist_ok=True)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
    page.evaluate("document.getElementById('save').focus()")
    page.press("Enter")
    path = folder / "decisions.csv"
    page.wait_for(lambda: path.exists() and path.stat().st_size)
    return path


def test_judging_by_keyboard(page, tmp_path):
    begin(page)
    assert page.evaluate("document.activeElement.id") == "stage"
    seen = []
    for key in "arar":
        wait_for_picture(page)
        seen.append(text(page, "viewer-name"))
        page.press(key)
    assert seen == ORDER
    assert text(page, "said") == "b/car5 rejected. 4 of 7 decided."
    page.press("p")
    assert text(page, "viewer-name") == "b/car5"
    assert page.evaluate("document.getElementById('reject').ariaPressed") == "true"
    page.press("u")
    assert text(page, "said") == "b/car5 undecided. 3 of 7 decided."
    page.press("t", *"=roof; cut", "Enter")
    assert page.evaluate("document.activeElement.id") == "stage"
    page.press("r", "Escape")
    assert not page.evaluate("document.getElementById('viewer').open")
    assert text(page, "progress") == "4 of 7 masks decided: 2 accepted, 2 rejected"
    assert texts(page, "[data-decision=reject] .decided") == ["rejected", "rejected “=roof; cut”"]
    path = save(page, tmp_path / "saved")
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "decision", "note"],
            ["b/car1", "accept", ""],
            ["b/car3", "reject", ""],
            ["a/car6", "accept", ""],
            ["b/car5", "reject", "'=roof; cut"],
        ]


def test_keys_in_the_note_decide_nothing(page):
    begin(page)
    page.press("t", *"ar u1", "Tab")
    assert text(page, "viewer-name") == "b/car1"
    assert page.evaluate("document.getElementById('note').value") == "ar u1"
    page.press("Escape")
    assert text(page, "progress").startswith("0 of 7")
    assert texts(page, "[data-card='0'] .decided") == ["“ar u1”"]


def test_decisions_stay_in_the_browser(page, show_page, out):
    begin(page)
    page.press("a")
    wait_for_picture(page)
    page.press("r", "Escape")
    again = show_page(make_page(out, worst=5, sample=0))
    assert text(again, "progress") == "2 of 5 masks decided: 1 accepted, 1 rejected"
    # A mask that is another one now is not decided.
    write_mask(out / "b" / "car1.png", np.eye(64, 96))
    again = show_page(make_page(out))
    assert text(again, "progress") == "1 of 7 masks decided: 0 accepted, 1 rejected"
    assert "1 earlier decision left out: made on masks that have changed since" in text(again, "status")


def test_decisions_that_are_given(show_page, out):
    decisions = {"b/car3": Decision("b/car3", "reject", "antenna"), "a/car0": Decision("a/car0", "accept")}
    page = show_page(make_page(out, decisions=decisions))
    assert text(page, "progress") == "2 of 7 masks decided: 1 accepted, 1 rejected"
    assert texts(page, "[data-decision=reject] .decided") == ["rejected “antenna”"]
    page.click("#begin")  # begins with the first that is not decided
    assert text(page, "viewer-name") == "b/car1"


def test_estimate_of_the_rest(page, show_page, tmp_path):
    assert text(page, "estimate") == "You have not decided on any of them yet."
    many = write_run(tmp_path / "many", [n / 100 for n in range(30)])
    page = show_page(make_page(many, worst=5, sample=10))
    page.evaluate("document.getElementById('filter-group').value = 'sample'")
    page.evaluate(
        "document.getElementById('filter-group').dispatchEvent(new Event('input', {bubbles: true}))"
    )
    begin(page)
    for key in "aaaaaaar":
        page.press(key)
        wait_for_picture(page)
    page.press("Escape")
    low, high = wilson_interval(7, 8)
    assert text(page, "estimate") == (
        "Of those drawn at random, you accepted 7 and rejected 1, with 2 to go. That is 87.5 % good ones; of"
        f" all 25 masks of the rest, {100 * low:.1f} % to {100 * high:.1f} % are (95 % interval)."
    )


def test_estimate_is_exact_if_all_were_seen(page):
    page.evaluate("document.getElementById('filter-group').value = 'sample'")
    page.evaluate(
        "document.getElementById('filter-group').dispatchEvent(new Event('input', {bubbles: true}))"
    )
    begin(page)
    page.press("a", "a", "r")
    assert text(page, "said").endswith("That was the last one.")
    assert text(page, "estimate").endswith("you accepted 2 and rejected 1: these are all of the rest.")


def test_filters(page):
    def choose(name, value):
        page.evaluate(
            f"(() => {{ const it = document.getElementById('filter-{name}'); it.value = {value!r};"
            " it.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    assert visible(page)[:4] == ORDER
    assert text(page, "status") == "All 7 masks, the most doubtful first"
    choose("folder", "/a")
    assert sorted(visible(page)) == ["a/car0", "a/car4", "a/car6"]
    choose("doubt", "0.02")
    assert sorted(visible(page)) == ["a/car4", "a/car6"]
    choose("group", "worst")
    assert visible(page) == ["a/car6"]
    assert text(page, "status") == "1 of 7 masks"
    page.click("#filters button")
    page.wait_for("document.getElementById('status').textContent.startsWith('All')")
    choose("size", "96×64")
    assert len(visible(page)) == 7
    begin(page)
    page.press("r", "Escape")
    choose("decision", "reject")
    assert visible(page) == ["b/car1"]
    choose("decision", "open")
    assert visible(page)[:3] == ORDER[1:]
    assert len(visible(page)) == 6
    page.evaluate("document.getElementById('filter-name').focus()")
    page.press(*"zebra")
    assert visible(page) == []
    assert page.evaluate("document.getElementById('begin').disabled")


def test_filtered_masks_alone_are_turned(page):
    page.evaluate("document.getElementById('filter-name').focus()")
    page.press(*"a/")
    page.click("[data-card='2']")
    wait_for_picture(page)
    names = []
    for _ in range(3):
        names.append(text(page, "viewer-name"))
        page.press("n")
    assert sorted(names) == ["a/car0", "a/car4", "a/car6"]
    assert text(page, "viewer-name") == "a/car6"


def test_thumbnails_show_the_whole_photo(show_page, tmp_path):
    page = show_page(make_page(write_run(tmp_path, [0.1], size=(64, 120))))
    frame, picture = (page.box(f"[data-card='0'] {name}") for name in (".thumbnail", "img"))
    assert picture == pytest.approx(frame, abs=1)
    assert frame[2] / frame[3] == pytest.approx(1.5, abs=0.02)
    assert page.evaluate("getComputedStyle(document.querySelector('.card img')).objectFit") == "contain"


def stage(page):
    page.wait_for_frame()
    return page.screenshot("#stage")


def test_outline_parts_and_holes_have_their_colours(show_page, out):
    """At an integer zoom, each pixel of an outline is a square of one colour."""
    mask = np.zeros((64, 96), int)
    mask[10:50, 20:80] = 1
    mask[20:30, 30:40] = 0
    mask[55:60, 85:92] = 1
    write_mask(out / "b" / "car1.png", mask)
    page = show_page(make_page(out), width=1000, height=800)
    begin(page)
    page.press("2")
    factor = int(text(page, "zoom-level").split()[0]) // 100
    assert factor >= 4
    seen = stage(page)
    lines = {
        # Outer outline of the largest part only: the hole has its own.
        OUTLINE: 2 * (40 + 60) - 4,
        PART: 2 * (5 + 7) - 4,
        HOLE: 2 * (10 + 10) - 4,
    }
    for colour, pixels in lines.items():
        squares = is_colour(seen, colour).sum() / factor**2
        boxes = 0 if colour == OUTLINE else 0.5 * pixels + 12  # thin lines around further parts and holes
        assert pixels <= squares <= pixels + boxes, colour
    page.press("1")
    assert not any(is_colour(stage(page), colour).any() for colour in lines)
    page.press("3")
    tinted = stage(page)
    page.press("4")
    veil = (47, 81, 128)
    cut = stage(page).astype(int)
    left, top = (cut.shape[1] - 96 * factor) // 2, (cut.shape[0] - 64 * factor) // 2

    def at(picture, x, y):
        return picture[top + y * factor + factor // 2, left + x * factor + factor // 2].astype(int)

    for x, y, inside in ((50, 40, True), (35, 25, False), (88, 57, True), (5, 5, False)):
        assert (np.abs(at(cut, x, y) - veil).max() < 25) != inside
    # The tint moves the colour of the car towards the outline's.
    page.press("1")
    photo = stage(page)
    change = at(tinted, 50, 40) - at(photo, 50, 40)
    assert change @ (np.array(OUTLINE) - at(photo, 50, 40)) > 0
    np.testing.assert_array_equal(at(tinted, 5, 5), at(photo, 5, 5))
    assert text(page, "viewer-spots") == "1 further part, 1 hole"
    page.press("m")
    assert text(page, "said") == "Hole 1 of 2, 100 pixels"
    page.press("m")
    assert text(page, "said") == "Further part 2 of 2, 35 pixels"


def test_photos_in_a_folder_are_shown(show_page, out, monkeypatch):
    path = make_page(out)
    inside = show_page(path)
    begin(inside)
    inside.press("1")
    expected = stage(inside)
    monkeypatch.setattr(review_page, "MAX_PHOTO_BYTES", 3000)
    path = make_page(out)
    photos = [path.parent / "review_photos" / f"{number:04}.jpg" for number in range(1, 8)]
    assert all(photo.exists() for photo in photos)
    page = show_page(path, allowed=photos)
    begin(page)
    page.press("1")
    np.testing.assert_array_equal(stage(page), expected)


def test_decisions_of_hostile_names_are_read_again(show_page, tmp_path):
    names = ['=1+1,"x"', "</script><script>alert(1)<", "line\nbreak", "שלום", "__proto__", "constructor"]
    out = write_run(tmp_path, [0.5] * len(names), names=names)
    page = show_page(make_page(out, worst=9))
    begin(page)
    for _ in names:
        page.press("r")
        wait_for_picture(page)
    page.press("Escape")
    assert sorted(visible(page)) == sorted(map(shown, names))
    rows = read_decisions(save(page, tmp_path / "saved"))
    matched = match_decisions(rows, names, "decisions.csv", out)
    assert {name: row.decision for name, row in matched.items()} == dict.fromkeys(names, "reject")
    again = show_page(make_page(out, worst=9))
    assert text(again, "progress").startswith(f"{len(names)} of {len(names)}")


def answer_dialog(page, accept):
    """Answer as soon as there is a dialog; while there is one, the page evaluates nothing."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return page.call("Page.handleJavaScriptDialog", accept=accept)
        except RuntimeError:
            time.sleep(0.02)
    raise TimeoutError("there was no dialog")


def test_forgetting_asks_first(chromium, out):
    page = chromium.open(make_page(out))
    begin(page)
    page.press("a", "Escape")
    for accept, decided in ((False, 1), (True, 0)):
        page.evaluate("setTimeout(() => document.getElementById('forget').click())")
        answer_dialog(page, accept)
        assert text(page, "progress").startswith(f"{decided} of 7")
    assert page.log == []
    page.close()


def test_all_controls_have_accessible_names(page):
    for _ in range(2):
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        usable = {
            "button",
            "link",
            "textbox",
            "searchbox",
            "spinbutton",
            "radio",
            "combobox",
            "dialog",
            "image",
        }
        seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in usable]
        assert len(seen) > 10
        assert [node for node in seen if not node.get("name", {}).get("value")] == []
        begin(page)
    live = page.evaluate("[...document.querySelectorAll('[role=status]')].map((it) => it.id)")
    assert live == ["estimate", "progress", "status", "said"]


def test_focus_order_and_return(page):
    page.evaluate("document.querySelector('.skip').focus()")
    order = []
    for _ in range(11):
        page.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.card"))
    filters = ["name", "doubt", "group", "decision", "folder", "size"]
    assert [name for name in order if name] == ["begin", *(f"filter-{name}" for name in filters), "0", "1"]
    page.press("Enter")
    wait_for_picture(page)
    assert text(page, "viewer-name") == "b/car3"
    page.press("n", "Escape")
    assert page.wait_for("document.activeElement.dataset.card === '2'")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_enough_contrast(show_page, out, dark):
    page = show_page(make_page(out), dark=dark)
    begin(page)
    page.press("a")
    wait_for_picture(page)
    page.press("r", "p")
    wait_for_picture(page)
    found = page.evaluate(TEXT_COLOURS)
    page.press("Escape")
    found += page.evaluate(TEXT_COLOURS)
    assert len(found) > 60
    assert {name for name, ink, paper in found if contrast(ink, paper) < 4.5} == set()


def test_page_fits_a_phone(show_page, out):
    page = show_page(make_page(out), width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    begin(page)
    for selector in ("#viewer button", "#viewer .layers span", "#stage", "#note"):
        boxes = json.loads(
            page.evaluate(
                f"JSON.stringify([...document.querySelectorAll({selector!r})]"
                ".map((it) => it.getBoundingClientRect().toJSON()))"
            )
        )
        for box in boxes:
            assert 0 <= box["left"] < box["right"] <= 360
            assert 0 <= box["top"] < box["bottom"] <= 740
            assert box["height"] >= 38
    assert boxes and page.box("#stage")[3] > 200


def test_a_browser_without_storage_says_so(chromium, out):
    page = chromium.open(make_page(out))
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }})",
    )
    page.events.clear()
    page.call("Page.reload")
    page.wait_for(lambda: any(event["method"] == "Page.loadEventFired" for event in page.events))
    assert not page.evaluate("document.getElementById('storage').hidden")
    begin(page)
    page.press("a", "Escape")
    assert text(page, "progress").startswith("1 of 7")
    assert page.log == []
    page.close()


def test_a_photo_that_is_gone_is_said(chromium, out, monkeypatch):
    monkeypatch.setattr(review_page, "MAX_PHOTO_BYTES", 3000)
    path = make_page(out)
    shutil.rmtree(path.parent / "review_photos")
    page = chromium.open(path)
    begin(page)
    assert text(page, "viewer-note") == "The photo review_photos/0001.jpg cannot be shown."
    page.close()
