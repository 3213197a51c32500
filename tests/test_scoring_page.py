"""The content of the HTML page of ``score --html``; how browsers show it is tested elsewhere."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from helpers import is_colour, write_mask
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carvana_batch.errors import ImageError
from carvana_batch.masks.counts import SizeError
from carvana_batch.scoring.compare import compare_masks
from carvana_batch.scoring.mistakes import INVENTED_COLOUR, MISSED_COLOUR
from carvana_batch.scoring.page.charts import TICKS, DiceAxis, draw_histogram
from carvana_batch.scoring.page.page import write_page
from carvana_batch.scoring.page.pictures import WorstImage, encode_pictures, read_worst
from carvana_batch.scoring.page.quantities import QUANTITIES, UNDEFINED, describe, to_json_value
from carvana_batch.scoring.scores import COLUMNS, MEANINGS, PIXEL_COUNT_COLUMNS, Score, Scores, Summary
from carvana_batch.text import shown
from carvana_batch.values import Failure, PackedMask

HOSTILE = (
    "<img src=x onerror=alert(1)>_01",
    "</script><script>alert(2)</script>_02",
    "<!--<script>_03",
    "a\"b'c&amp;`_04",
    "right\u202eleft_05",
    "line\nbreak\r_06",
    "not\udcfftext\udc80_07",
    "separators\u2028\u2029_08",
    "nul\0_09",
    "$style ${data} $$_10",
    "\\u003c_11",
    "שלום/日本語_12",
)
VOID = {"meta", "link", "img", "input", "br"}


class Document(HTMLParser):
    """The elements of a page: [tag, attributes, text in it and in its descendants]."""

    def __init__(self, path):
        super().__init__()
        self.elements = []
        self._open = []
        self.feed(path.read_bytes().decode("utf-8"))
        assert not self._open

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def find(self, tag, **wanted):
        """Return (attributes, text) of the elements with this tag and these attributes.

        ``class_`` must be one of the classes of the element.
        """
        wanted_class = wanted.pop("class_", None)
        return [
            (attributes, text)
            for name, attributes, text in self.elements
            if name == tag
            and all(attributes.get(key) == value for key, value in wanted.items())
            and (wanted_class is None or wanted_class in attributes.get("class", "").split())
        ]

    def json(self, name):
        ((_, text),) = self.find("script", id=name)
        return json.loads(text)


def make_score(image="car_01", dice=0.9, **fields):
    return Score(image, dice, dice / (2 - dice), 0.95, 0.9, 0.9, 100, 100, **fields)


def make_scores(*rows, **fields):
    return Scores(rows, **{"missing": (), "extra": (), "unusable": (), **fields})


def make_image(true, predicted, image="car_01", photo=None, **fields):
    true, predicted = (PackedMask.from_bool(np.asarray(mask, bool)) for mask in (true, predicted))
    return WorstImage(image, 0.9, true, predicted, photo, **fields)


def render(tmp_path, scores, worst=()):
    path = tmp_path / "report.html"
    write_page(path, scores, predicted=tmp_path / "out", truth=tmp_path / "gt", worst=worst)
    return Document(path)


def decode(uri, kind):
    start, _, content = uri.partition(",")
    assert start == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image.convert("RGB"))


# The page as a whole


def test_only_own_scripts_run_and_nothing_is_fetched(tmp_path):
    masks = np.eye(4), np.zeros((4, 4))
    page = render(
        tmp_path, make_scores(make_score()), [make_image(*masks, photo=np.zeros((4, 4, 3), np.uint8))]
    )
    ((policy, _),) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"

    def hash_of(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    scripts = [
        text for attributes, text in page.find("script") if attributes.get("type") != "application/json"
    ]
    assert rules["script-src"].split() == [hash_of(text) for text in scripts]
    assert rules["style-src"].split() == [hash_of(text) for _, text in page.find("style")]
    for _, attributes, _ in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert not [text for _, text in page.find("style") if re.search(r"@import|url\(", text)]
    assert not [
        script for script in scripts if re.search(r"fetch\(|XMLHttp|innerHTML|eval\(|import\(", script)
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_escaped_everywhere(tmp_path, name):
    car = name.rpartition("_")[0]
    rows = make_score(name), make_score(car + "_99"), make_score("other_01"), make_score("other_02")
    scores = make_scores(
        *rows,
        missing=(name,),
        extra=(name,),
        unusable=(Failure(name, "read", name),),
        unseen=(Failure(name, "decode", name),),
    )
    path = tmp_path / "report.html"
    worst = [make_image(np.eye(4), np.ones((4, 4)), name, without_photo=name)]
    write_page(path, scores, predicted=tmp_path / name, truth=tmp_path / name, worst=worst)
    page = Document(path)
    folder, plain = shown(tmp_path / name), shown(name)
    assert plain.isprintable()
    names = [text for _, text in page.find("bdi")]
    # In four lists, two of them with reasons, and in the card of the picture.
    assert names.count(folder) == 2
    assert names.count(plain) == 7
    assert shown(car) in names
    assert f"car:{shown(car)}" in [attributes.get("data-filter") for attributes, _ in page.find("a")]
    assert page.json("data")["rows"][0][0] == plain
    assert page.json("picture-0")["image"] == plain
    assert page.json("picture-0")["note"].endswith(plain)
    assert len(page.find("script")) == 5
    assert len(page.find("img")) == 2
    for _, text in page.find("script", type="application/json"):
        assert not re.search("[<>&\u2028\u2029]", text)


def test_failure_leaves_the_old_page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail():
        yield make_image([[1]], [[1]])
        raise ImageError("gone")

    with pytest.raises(ImageError):
        write_page(path, make_scores(make_score()), predicted=tmp_path, truth=tmp_path, worst=fail())
    assert path.read_text() == "old"


@pytest.mark.slow
def test_page_of_5000_images_and_noisy_photos_is_small(tmp_path):
    """Noise compresses worst: at the highest quality, twelve such photos would take 40 MB."""
    generator = np.random.default_rng(1)
    rows = [
        make_score(
            f"{car:012x}_{view:02}", generator.random(), **dict.fromkeys(COLUMNS[8:], generator.random())
        )
        for car in range(313)
        for view in range(1, 17)
    ][:5000]
    noise = generator.integers(0, 256, (1280, 1918, 3), np.uint8)
    mask = np.zeros((1280, 1918), bool)
    mask[400:900, 300:1500] = True
    worst = (make_image(mask, np.roll(mask, 3), row.image, photo=noise) for row in rows[:12])
    page = render(tmp_path, make_scores(*rows, columns=COLUMNS), worst)
    assert (tmp_path / "report.html").stat().st_size < 20_000_000
    assert len(page.json("data")["rows"]) == 5000
    sizes = {decode(page.json(f"picture-{number}")["photo"], "jpeg").shape for number in range(12)}
    assert len(sizes) == 1
    assert page.json("picture-0")["note"] in ("", "The photo was reduced to 959x640 to keep this page small.")


# Figures


def test_summary_has_every_mean(tmp_path):
    rows = (
        make_score("a_01", 0.9, boundary_mean=1.5, thin_pixels=10, thin_recall=0.5),
        make_score("a_02", 1.0, boundary_mean=2.5),
    )
    page = render(tmp_path, make_scores(*rows, columns=COLUMNS))
    assert page.find("p", class_="headline")[0][1] == "0.9500 mean Dice of 2 images"
    figures = page.find("dl", class_="figures")
    texts = [text for attributes, text in page.find("div") if not attributes]
    assert "Outline distance2.00 px" in texts
    assert "Recall of thin parts0.5000in 1 of 2 images" in texts
    assert f"Error at similar colours{UNDEFINED}in 0 of 2 images" in texts
    # Percentiles are interpolated linearly between 0.9 and 1.0.
    assert "Dice at 5\u00a0%0.9050" in figures[0][1]


def test_missing_images_are_named_up_to_a_limit(tmp_path):
    scores = make_scores(
        make_score(),
        missing=tuple(f"lost{number}" for number in range(1200)),
        unusable=(Failure("torn", "read", "cannot be read"),),
    )
    page = render(tmp_path, scores)
    items = [text for _, text in page.find("li")]
    assert items[0] == "lost0"
    assert items[500] == "and 700 more"
    assert items[501] == "torn: cannot be read"
    summaries = [text for _, text in page.find("summary")]
    assert "1,200 images without a predicted mask: not scored" in summaries
    assert "1 image with masks that cannot be compared: not scored" in summaries
    assert not page.find("section", class_="problems")[0][1].count("without a true mask")
    assert not render(tmp_path, make_scores(make_score())).find("section", class_="problems")


def test_page_without_any_score(tmp_path):
    page = render(tmp_path, make_scores(missing=("a",)))
    assert "No mask could be scored." in [text for _, text in page.find("p")]
    assert page.json("data") == {
        "columns": [
            {"heading": QUANTITIES[n].heading, "kind": QUANTITIES[n].kind} for n in PIXEL_COUNT_COLUMNS
        ],
        "rows": [],
        "dice": 1,
        "links": [],
    }
    assert not page.find("svg")


def test_table_has_the_values_of_the_rows(tmp_path):
    row = make_score("a/b_01", 2 / 3, boundary_mean=float("inf"), thin_recall=0.25, thin_pixels=4)
    data = render(
        tmp_path, make_scores(row, columns=("image", "dice", "boundary_mean", "thin_recall", "area_true"))
    ).json("data")
    assert data["rows"] == [["a/b_01", 0.66666667, None, 0.25, 100]]
    assert [column["heading"] for column in data["columns"]] == [
        "Image",
        "Dice",
        "Outline distance",
        "Recall of thin parts",
        "True area",
    ]
    assert [column["kind"] for column in data["columns"]] == ["text", "ratio", "pixels", "ratio", "count"]
    assert data["dice"] == 1


def test_every_field_is_known_and_explained():
    assert set(COLUMNS) <= set(QUANTITIES)
    assert set(Summary.__slots__) <= set(QUANTITIES)
    assert all(QUANTITIES[name].meaning == MEANINGS[name] for name in COLUMNS)
    headings = [quantity.heading for quantity in QUANTITIES.values()]
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], "count"),
        ([0.5, 1.0], "ratio"),
        ([0.5, 1.5], "pixels"),
        (["a", None], "text"),
        ([None], "count"),
    ],
)
def test_kind_of_unknown_field_follows_from_its_values(values, kind):
    quantity = describe("surface_dice", values)
    assert (quantity.heading, quantity.kind) == ("Surface dice", kind)


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (1 / 3, 0.33333333),
        (7, 7),
        ("a\nb", "a\\nb"),
        (None, None),
    ],
)
def test_values_are_converted_for_json(value, cleaned):
    assert to_json_value(value) == cleaned


# Charts

DICE = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(DICE, st.floats(4, 30))
def test_axis_contains_all_dice_and_ticks_keep_their_gap(dice, gap):
    axis = DiceAxis.around(dice)
    assert axis.low <= min(dice) <= max(dice) <= axis.high
    positions = [axis.position(value) for value in sorted(dice)]
    assert positions == sorted(positions)
    assert 0 <= positions[0] <= positions[-1] <= 100
    assert (axis.position(axis.low), axis.position(axis.high)) == (0, 100)
    ticks = axis.ticks(gap)
    assert set(ticks) <= set(TICKS)
    assert (ticks[0], ticks[-1]) == (axis.low, axis.high)
    assert all(axis.position(b) - axis.position(a) >= gap for a, b in pairwise(ticks))


def test_axis_is_stretched_towards_one():
    """Ten times the error takes the same distance, up to the offset that gives 1 a position."""
    axis = DiceAxis(0, 1)
    assert axis.position(0.9) == pytest.approx(25, abs=0.1)
    assert axis.position(0.99) == pytest.approx(50, abs=0.2)
    assert axis.position(0.999) == pytest.approx(74, abs=0.2)


@given(DICE)
def test_histogram_counts_every_image_once(dice):
    html = draw_histogram(dice, DiceAxis.around(dice))
    counts = [int(number) for number in re.findall(r"</td><td>(\d+)</td>", html)]
    assert sum(counts) == len(dice)
    bars = re.findall(r'<rect .*?x="([\d.]+)%" y="([\d.]+)" width="([\d.]+)%" height="([\d.]+)"', html)
    assert len(bars) == len(counts)
    heights = [float(bar[3]) for bar in bars]
    for count, height in zip(counts, heights, strict=True):
        assert height == pytest.approx(max(138 * count / max(counts), 1.5), abs=0.06)


def test_bars_are_at_the_position_of_their_values():
    values = [0.991] * 3 + [0.9981] * 5
    axis = DiceAxis.around(values)
    bars = re.findall(
        r'x="([\d.]+)%" y="[\d.]+" width="([\d.]+)%".*?: (\d+) image', draw_histogram(values, axis)
    )
    assert [int(count) for *_, count in bars] == [3, 5]
    for (left, width, _), value in zip(bars, (0.991, 0.9981), strict=True):
        assert float(left) <= axis.position(value) <= float(left) + float(width)


def test_groups_are_listed_with_mean_and_lowest(tmp_path):
    rows = [
        make_score(f"{car}_{view}", dice)
        for car, view, dice in (("a", "1", 0.9), ("a", "2", 1), ("b", "1", 0.8))
    ]
    page = render(tmp_path, make_scores(*rows))
    lines = [text for _, text in page.find("tr")]
    assert "10.85000.80002" in lines  # view 1: a_1 and b_1
    assert "21.00001.00001" in lines
    assert "a0.95000.90002" in lines
    assert "b0.80000.80001" in lines
    assert {attributes.get("data-filter") for attributes, _ in page.find("a")} >= {"view:1", "car:b"}


def test_only_the_lowest_of_many_groups_are_listed(tmp_path):
    rows = [
        make_score(f"car{car:02}_{view}", 0.5 + car / 100) for car in reversed(range(30)) for view in (1, 2)
    ]
    page = render(tmp_path, make_scores(*rows))
    cars = [
        attributes["data-filter"]
        for attributes, _ in page.find("a")
        if "car:" in attributes.get("data-filter", "")
    ]
    assert cars == [f"car:car{car:02}" for car in range(12)]
    assert "The 12 lowest of 30 cars" in [text for _, text in page.find("p")]


def test_no_table_of_groups_without_groups(tmp_path):
    page = render(tmp_path, make_scores(make_score("one"), make_score("two")))
    assert not page.find("table", class_="groups")


# Pictures


def test_picture_contains_the_exact_masks(tmp_path):
    generator = np.random.default_rng(3)
    true, predicted = generator.random((2, 37, 53)) < 0.4
    page = render(tmp_path, make_scores(make_score()), [make_image(true, predicted)])
    picture = page.json("picture-0")
    pixels = decode(picture["masks"], "png")
    np.testing.assert_array_equal(pixels[:, :, 0] == 255, true)
    np.testing.assert_array_equal(pixels[:, :, 1] == 255, predicted)
    assert set(np.unique(pixels)) == {0, 255}
    assert (picture["width"], picture["height"]) == (53, 37)
    assert picture["missed"] == (true & ~predicted).sum()
    assert picture["invented"] == (predicted & ~true).sum()
    assert picture["photo"] == picture["note"] == ""
    assert "With --images the photos are shown, too." in [text for _, text in page.find("p")]
    ((card, _),) = page.find("button", class_="card")
    assert (card["data-picture"], card["data-row"]) == ("0", "0")


def test_thumbnail_shows_single_wrong_pixels(tmp_path):
    """Single pixels keep their colour in a picture that is reduced to a third."""
    true, predicted = np.zeros((2, 1280, 1918), bool)
    true[100, 200] = predicted[1279, 1917] = True
    photo = np.full((1280, 1918, 3), 40, np.uint8)
    page = render(tmp_path, make_scores(make_score()), [make_image(true, predicted, photo=photo)])
    background, marks = (attributes["src"] for attributes, _ in page.find("img"))
    pale = decode(background, "jpeg").astype(int)
    assert pale.shape == (427, 640, 3)
    assert np.abs(pale - (255 - 215 // 2)).max() <= 2
    start, _, content = marks.partition(",")
    assert start == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))
    expected = np.zeros((427, 640), bool)
    expected[33, 66] = expected[426, 639] = True
    np.testing.assert_array_equal(pixels[:, :, 3] == 255, expected)
    assert pixels[33, 66, :3].tolist() == list(MISSED_COLOUR)
    assert pixels[426, 639, :3].tolist() == list(INVENTED_COLOUR)
    assert set(np.unique(pixels[:, :, 3])) == {0, 255}
    style = "".join(text for _, text in page.find("style"))
    for name, colour in (("--missed", MISSED_COLOUR), ("--invented", INVENTED_COLOUR)):
        assert f"{name}: #{bytes(colour).hex()};" in style


def test_worst_spot_contains_the_most_mistakes():
    true = np.zeros((400, 600), bool)
    true[300:320, 500:520] = True
    true[10, 10] = True
    (picture,), complete = encode_pictures([make_image(true, np.zeros_like(true))], 10**7)
    left, top, width, height = picture.spot
    assert complete
    assert (width, height) == (240, 160)
    assert left <= 500 <= 520 <= left + width
    assert top <= 300 <= 320 <= top + height


def test_all_photos_are_reduced_alike_before_masks_are_dropped():
    generator = np.random.default_rng(5)
    mask = np.zeros((160, 240), bool)
    mask[40:80, 60:120] = True
    worst = [
        make_image(mask, ~mask, f"car_{n}", photo=generator.integers(0, 256, (160, 240, 3), np.uint8))
        for n in range(4)
    ]
    full, complete = encode_pictures(worst, 10**7)
    assert complete
    assert decode(full[0].photo, "jpeg").shape == (160, 240, 3)

    def total(pictures):
        return sum(len(one.masks + one.photo + one.background + one.marks) for one in pictures)

    states = []
    pictures, limit = full, total(full)
    while pictures:
        shapes = {decode(one.photo, "jpeg").shape[:2] if one.photo else None for one in pictures}
        assert len(shapes) == 1
        states.append((len(pictures), *shapes))
        limit = total(pictures) - 1
        pictures, complete = encode_pictures(worst, limit)
        assert total(pictures) <= limit
        assert complete == (len(pictures) == 4)
        assert [one.image for one in pictures] == [f"car_{n}" for n in range(len(pictures))]
        assert {one.masks for one in pictures} <= {full[0].masks}
    large, small = (160, 240), (80, 120)
    assert states == [
        (4, large), (4, large), (4, small), (4, (40, 60)), (4, None), (3, None), (2, None), (1, None)
    ]  # fmt: skip


def test_full_page_says_that_pictures_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("carvana_batch.scoring.page.page.MAX_PAGE_BYTES", 0)
    page = render(tmp_path, make_scores(make_score()), [make_image([[1]], [[1]])])
    texts = [text for _, text in page.find("p")]
    assert "More pictures would have made this page too large." in texts


def test_masks_and_photo_must_have_the_same_size():
    with pytest.raises(SizeError, match="car_01"):
        make_image(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(SizeError, match="car_01"):
        make_image(np.ones((2, 3)), np.ones((2, 3)), photo=np.zeros((3, 2, 3), np.uint8))


def test_worst_images_are_read_from_the_scored_files(tmp_path):
    predicted, truth, photos = (tmp_path / name for name in ("out", "gt", "photos"))
    photos.mkdir()
    for name, row in (
        ("good", [1, 1, 1]),
        ("half", [1, 0, 1]),
        ("lost", [0, 0, 1]),
        ("odd", [1, 1, 0]),
        ("torn", [0, 1, 1]),
    ):
        write_mask(predicted / f"{name}.png", [row])
        write_mask(truth / f"{name}_mask.png", [[1, 1, 1]])
    for name, width in (("good", 3), ("half", 3), ("odd", 4), ("torn", 3)):
        Image.fromarray(np.full((1, width, 3), 90, np.uint8)).save(photos / f"{name}.png")
    torn = photos / "torn.png"
    torn.write_bytes(torn.read_bytes()[:50])
    scores = compare_masks(predicted, truth)
    worst = list(read_worst(scores, 4, photos))
    assert [image.image for image in worst] == ["lost", "half", "odd", "torn"]
    lost, half, odd, damaged = worst
    assert half.predicted.to_bool().tolist() == [[True, False, True]]
    assert half.true.to_bool().tolist() == [[True, True, True]]
    assert half.photo.tolist() == [[[90, 90, 90]] * 3]
    assert half.without_photo == ""
    assert [image.photo for image in (lost, odd, damaged)] == [None] * 3
    assert "no photo" in lost.without_photo
    assert "4x1" in odd.without_photo
    assert "torn.png" in damaged.without_photo
    assert [image.photo for image in read_worst(scores, 9)] == [None] * 5
    assert [image.without_photo for image in read_worst(scores, 9)] == [""] * 5


def test_unusable_photo_is_explained(tmp_path):
    page = render(
        tmp_path, make_scores(make_score()), [make_image([[1]], [[1]], without_photo="It is gone.")]
    )
    assert page.json("picture-0")["note"] == "Without photo. It is gone."


def test_picture_without_a_row_has_no_link(tmp_path):
    page = render(tmp_path, make_scores(make_score()), [make_image([[1]], [[1]], "other")])
    ((card, _),) = page.find("button", class_="card")
    assert card["data-row"] == ""


def test_same_scores_give_the_same_page(tmp_path):
    row = replace(make_score(), dice=0.5)
    render(tmp_path, make_scores(row), [make_image([[1]], [[0]])])
    first = (tmp_path / "report.html").read_bytes()
    render(tmp_path, make_scores(row), [make_image([[1]], [[0]])])
    assert (tmp_path / "report.html").read_bytes() == first


def test_mask_colours_are_exact_without_a_photo(tmp_path):
    true, predicted = np.zeros((2, 8, 8), bool)
    true[:4] = predicted[:, :4] = True
    page = render(tmp_path, make_scores(make_score()), [make_image(true, predicted)])
    pixels = decode(page.json("picture-0")["masks"], "png")
    assert is_colour(pixels, (255, 255, 0))[:4, :4].all()
