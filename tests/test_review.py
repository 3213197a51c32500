"""``carvana-batch review``: which masks are shown, their pictures, and the content of the page."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import names_below, write_mask, write_photo
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from test_scoring_page import HOSTILE, Document

from carvana_batch.commands import group
from carvana_batch.errors import UsageError
from carvana_batch.files import table_cell
from carvana_batch.inputs.decisions import Decision
from carvana_batch.output.extras import OVERLAY_COLOUR
from carvana_batch.output.journal import Entry, append_entry
from carvana_batch.output.ownership import Stamp
from carvana_batch.output.paths import OutPaths
from carvana_batch.review import page as review_page
from carvana_batch.review.page import write_page
from carvana_batch.review.pictures import HOLE, PART, label_parts, make_picture
from carvana_batch.review.selection import FinishedRun, read_finished_run, select, wilson_interval
from carvana_batch.text import shown


def write_run(folder, doubts, exif="ignore", names=None, size=(96, 64)):
    """An out folder with a mask for each doubt (None: failed), and the photos in ``in``; returns OUT."""
    out = folder / "out"
    paths = OutPaths(out)
    paths.state.mkdir(parents=True)
    paths.settings.write_text(json.dumps({"settings": {"exif": exif}, "chosen": {}}))
    with paths.journal.open("wb") as journal:
        for index, doubt in enumerate(doubts):
            key = names[index] if names else f"{'ab'[index % 2]}/car{index}"
            photo = folder / "in" / f"{key}.png"
            if doubt is None:
                append_entry(journal, Entry(key, str(photo), 1, 1, stage="decode", reason="is <b>torn</b>"))
                continue
            write_photo(photo, seed=index, size=size)
            mask = np.zeros(size[::-1], int)
            mask[20:40, 10 : 40 + index] = 1
            write_mask(paths.mask(key), mask)
            stamp = Stamp.read(paths.mask(key))
            append_entry(
                journal,
                Entry(
                    key,
                    str(photo),
                    photo.stat().st_size,
                    1,
                    width=size[0],
                    height=size[1],
                    car_share=0.25,
                    expected_dice=0.99,
                    doubt=doubt,
                    mask_bytes=stamp.size,
                    mask_checksum=stamp.checksum,
                ),
            )
    return out


def run(*arguments):
    return CliRunner().invoke(group, ["review", *map(str, arguments)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Selection


def test_doubtful_masks_come_first(here):
    out = write_run(here, [0.01, 0.5, None, 0.2, 0.03])
    finished = read_finished_run(out)
    assert [entry.doubt for entry in finished.masked] == [0.5, 0.2, 0.03, 0.01]
    assert [entry.key for entry in finished.failures] == ["a/car2"]
    assert (finished.doubtful, finished.has_doubt, finished.upright) == (2, True, False)
    selection = select(finished.masked, 1, 2)
    assert [entry.doubt for entry in selection.worst] == [0.5]
    assert len(selection.sample) == 2
    assert not {entry.key for entry in selection.sample} & {entry.key for entry in selection.worst}
    assert selection.others == 3
    assert selection.mean_doubt == pytest.approx(0.08)


def test_the_sample_is_random_and_the_same_each_time():
    entries = [Entry(f"{n:04}", "", 1, 1, doubt=1 - n / 2000) for n in range(1000)]
    selection = select(entries, 100, 300)
    assert selection.sample == select(entries, 100, 300).sample
    drawn = [int(entry.key) for entry in selection.sample]
    assert len(set(drawn)) == 300
    assert min(drawn) >= 100
    # The mean of 300 of the numbers 100 to 999, drawn without replacement, has a standard deviation of 12.
    assert np.mean(drawn) == pytest.approx(549.5, abs=4 * 12.3)
    everything = select(entries[:5], 10, 10)
    assert (len(everything.worst), everything.sample, everything.mean_doubt) == (5, [], None)


@pytest.mark.parametrize(
    ("successes", "number", "low", "high"),
    [(10, 10, 0.7225, 1.0), (0, 20, 0.0, 0.1611), (45, 50, 0.7864, 0.9565)],
)
def test_interval_of_the_share(successes, number, low, high):
    """Values of the Wilson score interval from published tables."""
    assert wilson_interval(successes, number) == pytest.approx((low, high), abs=1e-3)


def test_what_is_no_run_is_refused(here):
    (here / "out").mkdir()
    for folder, message in (("out", "no run of predict in out"), ("none", "does not exist")):
        result = run(folder)
        assert isinstance(result.exception, UsageError)
        assert message in str(result.exception)


# Pictures


def flood(mask, corners):
    """The regions of a mask as sets of (row, column), by a slow and simple fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y or x) and (corners or not (y and x))]
    regions = []
    while left:
        region, waiting = set(), [left.pop()]
        while waiting:
            y, x = waiting.pop()
            region.add((y, x))
            for near in [(y + dy, x + dx) for dy, dx in steps]:
                if near in left:
                    left.remove(near)
                    waiting.append(near)
        regions.append(region)
    return regions


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_parts_and_holes(mask):
    height, width = mask.shape
    parts = sorted(flood(mask, corners=True), key=len)
    holes = [
        region
        for region in flood(~mask, corners=False)
        if not any(y in (0, height - 1) or x in (0, width - 1) for y, x in region)
    ]
    labels, spots = label_parts(mask)
    np.testing.assert_array_equal((labels == 1) | (labels == 2), mask)
    assert sorted(spot.pixels for spot in spots if spot.kind == PART) == [len(part) for part in parts[:-1]]
    assert sorted(spot.pixels for spot in spots if spot.kind == HOLE) == sorted(map(len, holes))
    assert (labels == 1).sum() == (len(parts[-1]) if parts else 0)
    assert {(int(y), int(x)) for y, x in np.argwhere(labels == 3)} == set().union(*holes)
    assert [spot.pixels for spot in spots] == sorted((spot.pixels for spot in spots), reverse=True)
    regions = [(PART, part) for part in parts] + [(HOLE, hole) for hole in holes]
    for spot in spots:
        left, top, box_width, box_height = spot.box
        assert any(
            spot.kind == kind
            and spot.pixels == len(region)
            and (top, left) == tuple(map(min, zip(*region, strict=True)))
            and (top + box_height - 1, left + box_width - 1) == tuple(map(max, zip(*region, strict=True)))
            for kind, region in regions
        )


def picture_of(out, key, upright=False, **changes):
    (entry,) = (entry for entry in read_finished_run(out).masked if entry.key == key)
    photo = out.parent / "in" / f"{key}.png"
    return make_picture(replace(entry, **changes), OutPaths(out), photo if photo.exists() else None, upright)


def read_png(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def test_picture_has_the_mask_and_the_photo(here):
    out = write_run(here, [0.1])
    mask = np.zeros((64, 96), int)
    mask[10:50, 20:80] = 1
    mask[20:22, 30:33] = 0
    mask[60, 90] = 1
    write_mask(out / "a" / "car0.png", mask)
    picture = picture_of(out, "a/car0")
    pixels = read_png(picture.labels)
    expected = np.zeros((64, 96, 3), int)
    expected[..., 0] = 255 * mask
    expected[60, 90] = 0, 255, 0
    expected[20:22, 30:33] = 0, 0, 255
    np.testing.assert_array_equal(pixels, expected)
    assert [(spot.kind, spot.pixels, spot.box) for spot in picture.spots] == [
        (HOLE, 6, (30, 20, 3, 2)),
        (PART, 1, (90, 60, 1, 1)),
    ]
    assert (picture.parts, picture.holes) == (2, 1)
    with Image.open(here / "in" / "a" / "car0.png") as photo:
        original = np.asarray(photo.convert("RGB")).astype(int)
    assert np.abs(read_png(picture.photo) - original).mean() < 4
    tinted = read_png(picture.thumbnail).astype(int)[12:18, 40:70]
    wanted = 0.55 * original[12:18, 40:70] + 0.45 * np.array(OVERLAY_COLOUR)
    assert np.abs(tinted - wanted).mean() < 12
    assert "changed since the run" in picture.note  # it was drawn anew after the journal was written


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_picture_stands_upright(here, orientation, exif):
    """The photo has a red upper half when it is seen upright, and the mask is exactly that half."""
    out = write_run(here, [0.1], exif=exif)
    upright = np.full((64, 96, 3), 40, np.uint8)
    upright[:32] = 220, 20, 20
    turns = {1: 0, 3: 2, 6: 1}[orientation]
    stored = np.rot90(upright, turns)
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    image.save(here / "in" / "a" / "car0.png", exif=image.getexif())
    is_red = (upright if exif == "apply" else stored)[..., 0] > 128
    write_mask(out / "a" / "car0.png", is_red)
    picture = picture_of(out, "a/car0", upright=read_finished_run(out).upright)
    assert (picture.width, picture.height) == (96, 64)
    np.testing.assert_array_equal(read_png(picture.labels)[..., 0] == 255, upright[..., 0] > 128)
    assert np.abs(read_png(picture.photo).astype(int) - upright).mean() < 6


def test_what_is_missing_is_said(here):
    out = write_run(here, [0.1, 0.2, 0.3])
    (here / "in" / "a" / "car0.png").unlink()
    write_photo(here / "in" / "b" / "car1.png", size=(40, 30))
    (out / "a" / "car2.png").write_bytes(b"torn")
    first, second, third = (picture_of(out, key) for key in ("a/car0", "b/car1", "a/car2"))
    assert "car0.png was not found. --images names the folder" in first.note
    assert "is 40x30 pixels, the mask 96x64, so they do not belong together" in second.note
    assert "The mask cannot be read" in third.note
    assert first.photo == second.photo == third.photo == third.labels == b""
    assert len(first.labels) > 50
    (out / "a" / "car2.png").unlink()
    assert "The mask cannot be read: No such file" in picture_of(out, "a/car2").note


def test_changed_photos_and_empty_masks_are_said(here):
    out = write_run(here, [0.1])
    assert picture_of(out, "a/car0").note == ""
    assert picture_of(out, "a/car0", source_bytes=1).note == "The photo has been changed since it was masked."
    write_mask(out / "a" / "car0.png", np.zeros((64, 96), int))
    assert picture_of(out, "a/car0").note.endswith("The mask is empty.")


def test_large_pictures_are_reduced_without_losing_marks(here, monkeypatch):
    monkeypatch.setattr("carvana_batch.review.pictures.LONGEST_SIDE", 40)
    out = write_run(here, [0.1])
    mask = np.zeros((64, 96), int)
    mask[10:40, 12:60] = 1
    mask[20, 30] = 0
    mask[62, 95] = 1
    write_mask(out / "a" / "car0.png", mask)
    picture = picture_of(out, "a/car0")
    assert (picture.width, picture.height) == (32, 22)
    kinds = read_png(picture.labels)
    assert kinds[6, 10].tolist() == [0, 0, 255]
    assert kinds[20, 31].tolist() == [0, 255, 0]
    assert {spot.box for spot in picture.spots} == {(10, 6, 1, 1), (31, 20, 1, 1)}
    assert (kinds[..., 0] == 255).sum() == pytest.approx(30 * 48 / 9, abs=20)
    assert read_png(picture.photo).shape == (22, 32, 3)


# The page


def render(out, worst=10, sample=10, **options):
    finished = read_finished_run(out)
    page = out.parent / "review.html"
    written = write_page(page, finished, select(finished.masked, worst, sample), **options)
    return Document(page), written


def test_page_has_the_masks_the_failures_and_the_rest(here):
    out = write_run(here, [0.01, 0.5, None, 0.2, 0.02])
    page, written = render(out, worst=2, sample=1)
    assert (written.pictures, written.photos, written.without_photo, written.left_out) == (3, None, 0, 0)
    assert page.find("p", class_="headline")[0][1] == "2 of 4 masks are doubtful"
    assert "a/car2: decode: is <b>torn</b>" in [text for _, text in page.find("li")]
    data = page.json("data")
    assert [card["doubt"] for card in data["cards"][:2]] == [0.5, 0.2]
    assert [card["worst"] for card in data["cards"]] == [True, True, False]
    assert {card["folder"] for card in data["cards"][:2]} == {"b"}
    assert data["others"] == 2
    assert "mean doubt is 0.0150, an estimated mean Dice of 0.9850" in "".join(
        text for _, text in page.find("p")
    )
    picture = page.json("picture-0")
    assert picture["photo"].startswith("data:image/jpeg;base64,")
    content = base64.b64decode(picture["labels"].partition(",")[2])
    assert (read_png(content)[..., 0] == 255).sum() == 20 * 31
    options = [attributes["value"] for attributes, _ in page.find("option")]
    assert options.count("/b") == 1
    assert options.count("96×64") == 1


def test_the_estimate_says_so_if_there_was_no_second_network(here):
    finished = FinishedRun(here, [Entry("a", "", 1, 1, expected_dice=0.9)], [], [])
    assert (finished.has_doubt, finished.doubtful) == (False, 1)
    write_page(here / "x.html", finished, select(finished.masked, 1, 0))
    assert "computed from the probability map alone" in (here / "x.html").read_text()


@pytest.mark.parametrize("name", [name for name in HOSTILE if not set("/\0\udcff") & set(name)])
def test_names_are_escaped_everywhere(here, name):
    out = write_run(here, [0.5, None], names=[f"{name}/{name}", f"{name}2"])
    key = f"{name}/{name}"
    decisions = {key: Decision(key, "reject", name)}
    page, _ = render(out, decisions=decisions)
    data = page.json("data")
    assert data["cards"][0]["name"] == shown(key)
    assert data["decisions"] == [[table_cell(key), "reject", shown(name)]]
    assert shown(key) in [text for _, text in page.find("bdi")]
    assert [tag for tag, *_ in page.elements].count("script") == 4
    assert [tag for tag, *_ in page.elements].count("img") == 1
    for _, text in page.find("script", type="application/json"):
        assert not re.search("[<>&\u2028\u2029]", text)
    for _, attributes, _ in page.elements:
        assert not [one for one in attributes if one.startswith("on") or one == "style"]
        assert attributes.get("src", "data:").startswith("data:")


def test_many_photos_lie_in_a_folder(here, monkeypatch):
    monkeypatch.setattr(review_page, "MAX_PHOTO_BYTES", 3000)
    out = write_run(here, [0.3, 0.2, 0.1])
    page, written = render(out)
    assert written.photos == here / "review_photos"
    assert names_below(written.photos) == ["0001.jpg", "0002.jpg", "0003.jpg"]
    sources = [page.json(f"picture-{number}")["photo"] for number in range(3)]
    assert sources == [f"review_photos/000{number}.jpg" for number in (1, 2, 3)]
    for number, key in enumerate(("a/car0", "b/car1", "a/car2"), start=1):
        assert (written.photos / f"000{number}.jpg").read_bytes() == picture_of(out, key).photo
    (written.photos / "mine.txt").write_text("mine")
    result = run(out)
    assert isinstance(result.exception, UsageError)
    assert "review_photos, which holds other files" in str(result.exception)


def test_a_page_that_would_be_too_large_leaves_masks_out(here, monkeypatch):
    monkeypatch.setattr(review_page, "MAX_PAGE_BYTES", 12_000)
    out = write_run(here, [0.3, 0.2, 0.1, 0.05])
    page, written = render(out)
    assert written.left_out == 4 - written.pictures > 0
    assert f"{written.left_out} more masks would have made" in "".join(text for _, text in page.find("p"))


# The command


def test_command(here):
    out = write_run(here, [0.3, 0.2, 0.01, None])
    result = run(out, "--worst", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "3 masks, 2 of them doubtful, 1 failed; shown: the 2 most doubtful and 1 of the others at random",
        "Page: review.html",
    ]
    first = (here / "review.html").read_bytes()
    run(out, "--worst", 2)
    assert (here / "review.html").read_bytes() == first
    assert sorted(names_below(here)) == ["in", "out", "review.html"]


def test_photos_elsewhere(here):
    out = write_run(here, [0.3, 0.2])
    shutil.move(here / "in", here / "moved")
    result = run(out)
    assert result.exit_code == 0
    assert "2 masks without photo; give --images IN" in result.stderr
    result = run(out, "--images", "moved")
    assert result.stderr == ""
    assert Document(here / "review.html").json("picture-0")["photo"]
    (here / "empty").mkdir()
    assert isinstance(run(out, "--images", "empty").exception, UsageError)


def test_masks_that_are_gone_are_counted(here):
    out = write_run(here, [0.3, 0.2])
    (out / "a" / "car0.png").unlink()
    result = run("out")
    assert result.stderr == (
        "1 mask cannot be read; `carvana-batch verify out` names what is missing or damaged\n"
    )
    assert "1 mask cannot be read" in (here / "review.html").read_text()


def test_decisions_are_counted(here):
    out = write_run(here, [0.3, 0.2, 0.01, 0.02, None])
    (here / "d.csv").write_text(
        "image,decision,note\na/car0,reject,roof\nb/car1,accept,\na/car2,accept,\nb/car3,,dark\n"
    )
    result = run(out, "--decisions", "d.csv", "--worst", 2)
    assert result.stdout.splitlines() == [
        "2 accepted, 1 rejected, 1 undecided",
        "1 note without a decision",
        "Of 1 mask drawn at random from the 2 less doubtful, 1 accepted: 100.0%, 95 % interval 20.7% to"
        " 100.0%",
    ]
    assert not (here / "review.html").exists()
    result = run(out, "--decisions", "d.csv", "-o", "again.html", "--json")
    described = json.loads(result.stdout)
    assert described["decisions"] == {"accepted": 2, "rejected": 1, "only_notes": 1}
    assert described["page"] == "again.html"
    assert len(Document(here / "again.html").json("data")["decisions"]) == 4
    result = run(out, "--decisions", "d.csv", "--worst", 1, "--sample", 0)
    assert result.stdout.splitlines()[-1] == "1 note without a decision"
    assert "2 decisions on masks that were not selected as here" in result.stderr
    (here / "d.csv").write_text("image,decision,note\nbus,accept,\n")
    assert "1 image of it is not in" in str(run(out, "--decisions", "d.csv").exception)


@pytest.mark.parametrize(("page", "message"), [("x.png", "ends in .html"), ("none/x.html", "no folder none")])
def test_pages_that_cannot_be_written(here, page, message):
    out = write_run(here, [0.3])
    result = run(out, "-o", page)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
