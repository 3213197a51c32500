"""The HTML page of ``score --html`` in headless Chromium: clicks, keys, and screenshots."""

from dataclasses import replace

import numpy as np
import pytest
from devtools import TEXT_COLOURS, contrast, find_chromium, texts
from helpers import is_colour

from carvana_batch.scoring.mistakes import INVENTED_COLOUR, MISSED_COLOUR
from carvana_batch.scoring.page.page import write_page, write_pictures
from carvana_batch.scoring.page.pictures import WorstImage
from carvana_batch.scoring.scores import MASK_COLUMNS, Score, Scores
from carvana_batch.text import shown
from carvana_batch.values import Failure, PackedMask

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium"),
]

NAMES = "#table tbody th bdi"
SHIFT, CONTROL = 8, 2


def make_rows(number):
    """Make rows of views of cars with various values; a third of the images have no thin parts."""
    generator = np.random.default_rng(11)
    rows = []
    for index in range(number):
        dice = 1 - 10 ** -generator.uniform(1, 3)
        area = int(generator.integers(1000, 2000))
        row = Score(
            f"{index // 16:04x}_{index % 16 + 1:02}", dice, dice / (2 - dice), 0.99, 0.98, 0.97, area, area
        )
        recall = generator.random() if index % 3 else None
        rows.append(replace(row, outline_pixels=100, thin_pixels=10, thin_recall=recall, lower_pixels=50))
    return rows


def make_masks(height, width, seed):
    """Make two masks of random blocks, with all four combinations of pixels."""
    blocks = np.random.default_rng(seed).random((2, -(-height // 5), -(-width // 5))) < 0.3
    return blocks.repeat(5, axis=1).repeat(5, axis=2)[:, :height, :width]


def make_image(row, true, predicted, *photo):
    return WorstImage(
        row.image, row.dice, PackedMask.from_bool(true), PackedMask.from_bool(predicted), *photo
    )


@pytest.fixture(scope="module")
def scores():
    return Scores(tuple(make_rows(320)), ("lost_01",), (), (), columns=MASK_COLUMNS)


@pytest.fixture(scope="module")
def worst(scores):
    """A small image with a photo, one without, and a large one with three wrong pixels."""
    first, second, third = scores.find_worst(3)
    colours = np.random.default_rng(2).integers(0, 256, (96, 150, 3), np.uint8)
    large, wrong = np.zeros((2, 1280, 1918), bool)
    large[300:900, 400:1500] = True
    wrong[100, 101] = wrong[1003, 1700] = wrong[600, 700] = True
    return [
        make_image(first, *make_masks(96, 150, 1), colours),
        make_image(second, *make_masks(97, 151, 2)),
        make_image(third, large, large ^ wrong, np.full((1280, 1918, 3), 60, np.uint8)),
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory, scores, worst):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, scores, predicted=path.parent / "out", truth=path.parent / "gt", worst=worst)
    return path


@pytest.fixture
def show(show_page, path):
    return lambda file=path, **options: show_page(file, **options)


@pytest.fixture
def page(show):
    return show()


def status(page):
    return page.evaluate("document.getElementById('status').textContent")


def sort_by(page, heading):
    page.evaluate(
        "[...document.querySelectorAll('#table thead button')]"
        f".find((it) => it.textContent === {heading!r}).setAttribute('id', 'wanted')"
    )
    page.click("#wanted")
    page.evaluate("document.getElementById('wanted').removeAttribute('id')")


def open_picture(page, number):
    page.click(f"[data-picture='{number}']")
    page.wait_for("document.getElementById('viewer').open")
    page.wait_for("!document.getElementById('stage').hasAttribute('aria-busy')")


def zoom_level(page):
    """Return the zoom level in percent."""
    page.wait_for_frame()
    return int(page.evaluate("document.getElementById('zoom-level').textContent").split()[0])


def crop(kinds):
    """Crop (H, W) to the bounding box of its non-zero values."""
    rows, columns = np.flatnonzero(kinds.any(axis=1)), np.flatnonzero(kinds.any(axis=0))
    return kinds[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def see_errors(page):
    """Read the errors from a screenshot of the stage: 1 for a missed pixel, 2 for an invented one."""
    page.wait_for_frame()
    stage = page.screenshot("#stage")
    return is_colour(stage, MISSED_COLOUR) + 2 * is_colour(stage, INVENTED_COLOUR)


def errors_of(image):
    """Compute the errors from the masks: 1 for a missed pixel, 2 for an invented one."""
    true, predicted = image.true.to_bool(), image.predicted.to_bool()
    return (true & ~predicted) + 2 * (predicted & ~true)


def enlarge(kinds, factor):
    return np.kron(kinds, np.ones((factor, factor), int))


# The table


def test_table_starts_with_the_lowest_dice(page, scores):
    assert texts(page, NAMES) == [row.image for row in scores.find_worst(50)]
    assert status(page) == "All 320 images, sorted by Dice, lowest first"
    cells = texts(page, "#table tbody tr:first-child > *")
    row = scores.find_worst(1)[0]
    assert cells[:8] == [
        row.image, f"{row.dice:.5f}", f"{row.iou:.5f}", "0.99000", "0.98000", "0.97000",
        f"{row.area_true:,}", f"{row.area_true:,}",
    ]  # fmt: skip


def test_sorting_by_clicks(page, scores):
    sort_by(page, "Image")
    assert texts(page, NAMES) == [row.image for row in scores.rows[:50]]
    sort_by(page, "Image")
    assert texts(page, NAMES) == [row.image for row in scores.rows[:-51:-1]]
    assert page.evaluate("document.querySelector('#table thead th').ariaSort") == "descending"
    sort_by(page, "Recall of thin parts")
    known = sorted(
        (row for row in scores.rows if row.thin_recall is not None), key=lambda row: row.thin_recall
    )
    assert texts(page, NAMES) == [row.image for row in known[:50]]
    sort_by(page, "Recall of thin parts")
    assert texts(page, NAMES) == [row.image for row in known[:-51:-1]]
    assert len(page.evaluate("[...document.querySelectorAll('[aria-sort]')].map((it) => it.ariaSort)")) == 1
    sort_by(page, "Dice")
    assert texts(page, NAMES) == [row.image for row in scores.find_worst(50)]


def test_sorting_and_filtering_by_keyboard(page, scores):
    page.evaluate("document.getElementById('filter-name').focus()")
    page.press(*"00f_")
    assert texts(page, NAMES) == [row.image for row in scores.find_worst(320) if "00f_" in row.image][:50]
    page.press("Tab")
    page.press(*"0.97")
    low = [row for row in scores.rows if "00f_" in row.image and row.dice < 0.97]
    assert len(low) > 3
    assert status(page) == f"{len(low)} of 320 images, sorted by Dice, lowest first"
    page.press("Tab", "Tab", "Tab", "Tab", "Tab")  # "Show all", the table, and three of its column headings
    assert page.evaluate("document.activeElement.textContent") == "IoU"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press("Enter", "Enter")
    low.sort(key=lambda row: -row.iou)
    assert texts(page, NAMES) == [row.image for row in low]
    page.press("Tab", modifiers=SHIFT)
    page.press(" ")
    low.sort(key=lambda row: row.dice)
    assert texts(page, NAMES) == [row.image for row in low]


def test_filters_without_matches(page):
    page.evaluate("document.getElementById('filter-name').focus()")
    page.press(*"<script>")
    assert status(page) == "No image of 320 fits the filters"
    assert texts(page, NAMES) == []
    page.click("#filters button")
    assert page.wait_for("document.getElementById('status').textContent.startsWith('All')")


def test_turning_pages(page, scores):
    names = [row.image for row in scores.find_worst(320)]
    page.click("#page-after")
    assert texts(page, NAMES) == names[50:100]
    assert texts(page, "#page-shown") == ["51 to 100"]
    page.click("#page-before")
    assert texts(page, NAMES) == names[:50]
    assert page.evaluate("document.getElementById('page-before').disabled")
    assert page.evaluate("document.activeElement !== document.body")


@pytest.mark.parametrize(("table", "part"), [(0, 1), (1, 0)], ids=["view", "car"])
def test_chart_links_filter_the_table(page, scores, table, part):
    links = f"document.querySelectorAll('.groups')[{table}].querySelectorAll('a')"
    name = page.evaluate(f"(() => {{ const it = {links}[6]; it.id = 'link'; return it.textContent; }})()")
    page.click("#link")
    names = [row.image for row in scores.find_worst(320)]
    expected = [image for image in names if image.split("_")[part] == name]
    assert len(expected) in (16, 20)
    assert texts(page, NAMES) == expected


# The viewer


def test_error_map_matches_the_masks(page, worst):
    """At integer zoom levels, each pixel of the masks is a square of exactly one colour."""
    open_picture(page, 0)
    true_errors = errors_of(worst[0])
    factor = zoom_level(page) // 100
    assert factor >= 4
    np.testing.assert_array_equal(crop(see_errors(page)), crop(enlarge(true_errors, factor)))


def test_pictures_without_a_photo(page, worst):
    open_picture(page, 1)
    factor = zoom_level(page) // 100
    np.testing.assert_array_equal(crop(see_errors(page)), crop(enlarge(errors_of(worst[1]), factor)))
    assert page.evaluate("document.querySelector('[value=photo]').disabled")
    page.press("1")
    assert page.evaluate("document.querySelector('[value=errors]').checked")
    for key, mask in (("2", worst[1].true), ("3", worst[1].predicted)):
        page.press(key)
        page.wait_for_frame()
        seen = is_colour(page.screenshot("#stage"), (245, 245, 245))
        np.testing.assert_array_equal(crop(seen), crop(enlarge(mask.to_bool(), factor).astype(bool)))


def test_truth_and_prediction_show_the_photo_inside_the_mask(page, worst):
    """The JPEG changes the colours of the photo, so the mask is recognised by the blue veil around it."""
    open_picture(page, 0)
    shown_layers = {}
    for name in ("photo", "truth", "prediction"):
        page.click(f"[value={name}]")
        page.wait_for_frame()
        shown_layers[name] = page.screenshot("#stage").astype(int)
    factor = zoom_level(page) // 100
    for name, mask in (("truth", worst[0].true), ("prediction", worst[0].predicted)):
        same = (shown_layers[name] == shown_layers["photo"]).all(axis=2)
        height, width = (length * factor for length in (96, 150))
        top, left = (same.shape[0] - height + 1) // 2, (same.shape[1] - width + 1) // 2
        within = same[top : top + height, left : left + width]
        # Not 1, because the noise of the photo may contain the colour of the veil.
        assert (within == enlarge(mask.to_bool(), factor)).mean() > 0.999


def test_reduced_picture_shows_single_wrong_pixels(page):
    page.resize(700, 500)
    open_picture(page, 2)
    seen = see_errors(page)
    spots = [crop(seen == kind) for kind in (1, 2)]
    assert (seen == 1).sum() >= 1  # the pixel (600, 700) was missed
    assert (seen == 2).sum() >= 2  # the other two were invented
    assert spots[0].size <= 16
    height, width = spots[1].shape
    scale = zoom_level(page) / 100
    assert (height, width) == pytest.approx((903 * scale, 1599 * scale), rel=0.03, abs=3)


def test_zooming_by_buttons_keys_and_wheel(page):
    open_picture(page, 2)
    assert page.evaluate("document.activeElement.id") == "stage"
    start = zoom_level(page)
    assert 25 < start < 50
    page.press("+")
    assert zoom_level(page) == 50
    page.press("+")
    assert zoom_level(page) == 100
    page.press("+")
    assert zoom_level(page) == 200
    page.click("#zoom-out")
    assert zoom_level(page) == 100
    page.press("0")
    assert zoom_level(page) == start
    page.press("=", modifiers=CONTROL)  # a shortcut of the browser
    assert zoom_level(page) == start
    page.press("w")
    factor = zoom_level(page) // 100
    assert factor >= 3
    # The worst spot contains one of the three single pixels, which is now a square of one colour.
    assert crop(see_errors(page)).shape == (factor, factor)
    page.press("0", "+", "+")
    assert zoom_level(page) == 100
    # The wheel zooms around the mouse position: here a wrong pixel.
    left, top, width, height = page.box("#stage")
    x, y = left + width / 2 + (700.5 - 959), top + height / 2 + (600.5 - 640)
    for _ in range(12):
        page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-120)
    page.wait_for(lambda: zoom_level(page) > 1500)
    rows, columns = np.nonzero(see_errors(page) == 1)
    # Browsers round the mouse position to whole pixels, and a pixel of the picture is now many.
    assert np.hypot(rows - (y - top), columns - (x - left)).min() <= 1.5 * zoom_level(page) / 100


def test_panning_by_arrows_mouse_and_touch(page):
    open_picture(page, 2)
    page.press("w")

    def find():
        rows, columns = np.nonzero(see_errors(page))
        return np.array([columns.min(), rows.min()])

    start = find()
    left, top, width, height = page.box("#stage")
    page.press("ArrowRight", "ArrowDown")
    np.testing.assert_allclose(start - find(), [0.15 * width, 0.15 * height], atol=3)
    page.press("ArrowLeft", "ArrowUp")
    x, y = left + width / 2, top + height / 2
    for kind, moved in (("mousePressed", 0), ("mouseMoved", -60), ("mouseReleased", -60)):
        where = {"x": x + moved, "y": y + moved / 2, "button": "left", "buttons": 1, "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type=kind, **where)
    np.testing.assert_allclose(find() - start, [-60, -30], atol=3)
    before = zoom_level(page)
    for kind, distance in (("touchStart", 40), ("touchMove", 50), ("touchMove", 60), ("touchEnd", None)):
        points = [{"x": x - distance, "y": y}, {"x": x + distance, "y": y}] if distance else []
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    assert zoom_level(page) == pytest.approx(1.5 * before, rel=0.02)


def test_opening_turning_and_closing_by_keyboard(page, worst):
    page.evaluate("document.querySelectorAll('#table .open')[2].focus()")
    page.press("Enter")
    name = "document.getElementById('viewer-name').textContent"
    assert page.evaluate(name) == worst[2].image
    for key, image in (("n", worst[0]), ("p", worst[2]), ("p", worst[1])):
        page.press(key)
        assert page.evaluate(name) == image.image
    missed, invented = ((errors_of(worst[1]) == kind).sum() for kind in (1, 2))
    assert texts(page, "#viewer-missed, #viewer-invented") == [
        f"{missed:,} px missed",
        f"{invented:,} px invented",
    ]
    page.press("Escape")
    assert not page.evaluate("document.getElementById('viewer').open")
    assert page.evaluate("document.activeElement.textContent") == worst[2].image


def test_pictures_of_all_images(show_page, tmp_path):
    """Rows without a card open pages of single pictures, which lead to their neighbours by the same keys."""
    rows = make_rows(20)
    masks = {row.image: make_masks(40, 60, number) for number, row in enumerate(rows)}

    def read(image):
        true, predicted = masks[image]
        return PackedMask.from_bool(predicted), PackedMask.from_bool(true)

    scores = Scores(tuple(rows), (), (), (), reader=read)
    order = [row.image for row in scores.find_worst(20)]
    path, folder = tmp_path / "s.html", tmp_path / "pictures #1"
    links = write_pictures(folder, path, scores)
    write_page(path, scores, predicted=tmp_path, truth=tmp_path, links=links)
    files = sorted(folder.iterdir())
    page = show_page(path, allowed=files)
    assert texts(page, "#table .open") == order
    page.click("#table tbody tr:nth-child(3) a")
    page.wait_for("document.getElementById('viewer')?.open")
    page.wait_for("!document.getElementById('stage').hasAttribute('aria-busy')")
    assert page.evaluate("document.getElementById('viewer-name').textContent") == order[2]
    image = make_image(rows[0], *masks[order[2]])
    factor = zoom_level(page) // 100
    np.testing.assert_array_equal(crop(see_errors(page)), crop(enlarge(errors_of(image), factor)))
    for key, number in (("n", 3), ("p", 2), ("p", 1)):
        page.press(key)
        page.wait_for(f"document.getElementById('viewer-name')?.textContent === {order[number]!r}")
    page.press("Escape")
    page.click(".against a")
    page.wait_for("document.querySelector('#table .open') !== null")


# Accessibility


def test_all_controls_have_accessible_names(page):
    open_picture(page, 0)
    for _ in range(2):
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        usable = {
            "button",
            "link",
            "textbox",
            "searchbox",
            "spinbutton",
            "radio",
            "dialog",
            "img",
            "image",
            "region",
        }
        seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in usable]
        assert len(seen) > 10
        assert [node for node in seen if not node.get("name", {}).get("value")] == []
        page.press("Escape")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_enough_contrast(show, dark):
    page = show(dark=dark)
    ground = np.asarray(page.screenshot())[5, 5]
    assert (ground.max() < 40) if dark else (ground.min() > 240)
    page.evaluate("document.querySelectorAll('details').forEach((it) => (it.open = true))")
    found = page.evaluate(TEXT_COLOURS)
    open_picture(page, 0)
    found += page.evaluate(TEXT_COLOURS)
    assert len(found) > 300
    faint = {name for name, ink, paper in found if contrast(ink, paper) < 4.5}
    assert faint == set()


def test_page_fits_a_phone_without_horizontal_scrolling(show):
    page = show(width=360, height=740)
    page.evaluate("document.querySelectorAll('details').forEach((it) => (it.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    outside = page.evaluate(
        "[...document.querySelectorAll('main *')].filter((it) => !it.closest('.scroll, .visually-hidden')"
        " && it.getBoundingClientRect().right > 361).map((it) => it.outerHTML.slice(0, 80))"
    )
    assert outside == []
    open_picture(page, 0)
    for selector in ("#viewer button", "#viewer .layers span", "#stage"):
        boxes = page.evaluate(
            f"[...document.querySelectorAll({selector!r})].map((it) => it.getBoundingClientRect().toJSON())"
        )
        for box in boxes:
            assert 0 <= box["left"] < box["right"] <= 360
            assert 0 <= box["top"] < box["bottom"] <= 740
            assert box["height"] >= 38


def test_figures_and_charts_need_no_scripts(show, scores):
    page = show(scripts=False, height=1400)
    content = page.call("DOMSnapshot.captureSnapshot", computedStyles=[])
    strings = "\n".join(content["strings"])
    assert f"{scores.summary.dice:.4f}" in strings
    picture = page.screenshot()
    bars = is_colour(picture, (79, 156, 134))
    assert bars.sum() > 5000


def test_preference_for_reduced_motion_is_respected(show):
    for still, behaviour in ((False, "smooth"), (True, "auto")):
        page = show(still=still)
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour


def test_hostile_names_remain_text(show, tmp_path):
    names = (
        "<img src=x onerror=alert(1)>_01",
        "</script><script>alert(2)</script>_02",
        "right\u202eleft_03",
        "line\nbreak_04",
        "not\udcfftext_05",
        "a\"b'c&amp;\u2028`_06",
    )
    rows = tuple(Score(name, 0.9 - index / 100, 0.8, 0.9, 0.9, 0.9, 9, 9) for index, name in enumerate(names))
    scores = Scores(rows, names, names, tuple(Failure(name, "read", name) for name in names))
    worst = [make_image(row, *make_masks(40, 60, 1)) for row in rows]
    path = tmp_path / "report.html"
    write_page(path, scores, predicted=tmp_path / names[0], truth=tmp_path / names[1], worst=worst)
    page = show(path)
    assert texts(page, NAMES) == [shown(name) for name in reversed(names)]
    open_picture(page, 1)
    assert page.evaluate("document.querySelector('#viewer-name').textContent") == names[1]
    assert len(page.evaluate("[...document.images].map((it) => it.src.slice(0, 5))")) == 2 * len(names)


def test_page_of_5000_images_opens_quickly(show, worst, tmp_path):
    """The time limits are generous, for busy machines."""
    path = tmp_path / "report.html"
    scores = Scores(tuple(make_rows(5000)), (), (), (), columns=MASK_COLUMNS)
    write_page(path, scores, predicted=tmp_path, truth=tmp_path, worst=worst)
    page = show(path)
    assert page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 5000
    took = page.evaluate(
        "(() => { const start = performance.now();"
        " document.querySelector('#table thead button').click(); return performance.now() - start; })()"
    )
    assert took < 1000
    assert texts(page, NAMES) == [row.image for row in scores.rows[:50]]
    assert texts(page, "#page-shown") == ["1 to 50"]
