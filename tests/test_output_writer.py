import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import names_in, store, with_orientation
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carvana_batch.errors import ImageError, OutOfSpaceError
from carvana_batch.files import WriteError, write_file
from carvana_batch.masks import rle
from carvana_batch.masks.folder import MaskFolder
from carvana_batch.masks.read import read_mask
from carvana_batch.notes import Note
from carvana_batch.options import EXTRA_FILES
from carvana_batch.orientation import ORIENTATIONS
from carvana_batch.output.extras import (
    ENCODERS,
    OVERLAY_COLOUR,
    Drawing,
    draw_overlay,
    draw_panel,
    encode_extra,
)
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import read_entries
from carvana_batch.output.writer import MaskWriter, compare
from carvana_batch.values import ImageRef, PackedMask, Photo, Prediction

EXTRAS = ("cutout", "overlay", "panel", "prob")
HEIGHT, WIDTH = 21, 35


def make_prediction(key="a/b", threshold=0.5, size=(HEIGHT, WIDTH), seed=0):
    rng = np.random.default_rng(seed)
    probability = rng.random(size, np.float32)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    mask = PackedMask.from_bool(probability > np.float32(threshold))
    photo = Photo(ImageRef(key, Path(f"in/{key}.jpg")), pixels, file_bytes=77, file_time=2**62)
    return Prediction(photo, mask, 0.75, probability)


@pytest.fixture
def out(tmp_path):
    with OutFolder(tmp_path / "out", {}, (1, 1), False) as folder:
        yield folder


def open_image(source):
    """Load an image and close its file."""
    with Image.open(source) as image:
        image.load()
        return image


def write_truth(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def failing(number):
    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("bits", [1, 8])
def test_mask_and_its_journal_entry(out, bits):
    prediction = make_prediction()
    written = MaskWriter(out.paths, mask_bits=bits).write(prediction)
    path = out.root / "a" / "b.png"
    image = open_image(path)
    assert (image.mode, image.size) == ({1: "1", 8: "L"}[bits], (WIDTH, HEIGHT))
    expected = prediction.mask.to_bool()
    assert np.array_equal(np.asarray(image) > 0, expected)
    assert set(np.unique(image)) == {1: {False, True}, 8: {0, 255}}[bits]
    entry = written.entry
    assert (entry.key, entry.source) == ("a/b", "in/a/b.jpg")
    assert (entry.source_bytes, entry.source_time) == (77, 2**62)
    assert (entry.width, entry.height) == (WIDTH, HEIGHT)
    assert entry.car_share == expected.mean()
    assert entry.expected_dice == 0.75
    assert (entry.dice, entry.reason, entry.failed) == (None, "", False)
    assert entry.mask_bytes == path.stat().st_size
    assert written.runs is None
    assert written.seconds > 0
    assert [name for name in names_in(out.root) if not name.startswith(".")] == ["a", "a/b.png"]


def test_run_length_row(out):
    prediction = make_prediction()
    written = MaskWriter(out.paths, encode_runs=True).write(prediction)
    assert written.runs == rle.encode_packed(prediction.mask)
    assert np.array_equal(rle.decode(written.runs, HEIGHT, WIDTH), prediction.mask.to_bool())


def test_extra_files_are_written_before_the_mask(out, monkeypatch):
    names = []
    real_rename = os.rename

    def rename(source, target, **options):
        names.append(str(Path(target).relative_to(out.root)))
        real_rename(source, target, **options)

    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "rename", rename)
    MaskWriter(out.paths, EXTRAS).write(make_prediction())
    assert names == ["_cutout/a/b.png", "_overlay/a/b.jpg", "_panel/a/b.jpg", "_prob/a/b.tif", "a/b.png"]


def test_each_kind_of_extra_file_has_an_encoder():
    assert ENCODERS.keys() == EXTRA_FILES.keys() == {*EXTRAS, "recolour", "background"}


def test_content_of_extra_files(out):
    prediction = make_prediction()
    mask, pixels = prediction.mask.to_bool(), prediction.photo.pixels
    MaskWriter(out.paths, EXTRAS).write(prediction)

    values = tifffile.imread(out.root / "_prob/a/b.tif")
    assert (values.dtype, values.shape) == (np.uint16, (HEIGHT, WIDTH))
    assert np.array_equal(values / 65535 > 0.5, mask)
    assert np.abs(values / 65535 - prediction.probability).max() < 1.1 / 65535

    cutout = open_image(out.root / "_cutout/a/b.png")
    assert cutout.mode == "RGBA"
    assert np.array_equal(np.asarray(cutout)[..., :3], pixels)
    assert np.array_equal(np.asarray(cutout)[..., 3], mask * 255)

    overlay, panel = (open_image(out.root / f"_{kind}/a/b.jpg") for kind in ("overlay", "panel"))
    assert (overlay.size, overlay.mode) == ((WIDTH, HEIGHT), "RGB")
    assert (panel.size, panel.mode) == ((2 * WIDTH, HEIGHT), "RGB")


@pytest.mark.parametrize(("kind", "draw"), [("overlay", draw_overlay), ("panel", draw_panel)])
def test_jpeg_shows_what_was_drawn(kind, draw):
    """Compare away from edges, where JPEG changes almost nothing."""
    mask = np.zeros((64, 64), np.bool_)
    mask[:, :32] = True
    photo = Photo(ImageRef("a", Path("a.jpg")), np.full((64, 64, 3), 100, np.uint8))
    content = encode_extra(kind, Prediction(photo, PackedMask.from_bool(mask), 1.0), Drawing()).content
    difference = np.abs(np.asarray(open_image(io.BytesIO(content)), np.int16) - draw(photo.pixels, mask))
    flat = np.arange(difference.shape[1]) % 32
    assert difference[:, (flat > 8) & (flat < 24)].max() <= 3


def test_overlay_tints_only_the_car():
    prediction = make_prediction()
    pixels, mask = prediction.photo.pixels, prediction.mask.to_bool()
    before = pixels.copy()
    tinted = draw_overlay(pixels, mask)
    assert np.array_equal(pixels, before)
    assert np.array_equal(tinted[~mask], pixels[~mask])
    distance = np.abs(pixels[mask].astype(int) - OVERLAY_COLOUR).sum()
    assert np.abs(tinted[mask].astype(int) - OVERLAY_COLOUR).sum() < 0.6 * distance


def test_panel_has_a_black_and_white_mask_on_the_right():
    prediction = make_prediction()
    mask = prediction.mask.to_bool()
    panel = draw_panel(prediction.photo.pixels, mask)
    assert np.array_equal(panel[:, :WIDTH], prediction.photo.pixels)
    assert all(np.array_equal(panel[:, WIDTH:, channel], mask * 255) for channel in range(3))


@given(st.floats(0, 1, width=32), st.floats(0, 1))
def test_stored_probability_gives_the_mask_at_any_threshold(probability, threshold):
    """Include values next to the threshold, which rounding to 16 bits alone would move across it."""
    steps = [np.float32(threshold)]
    for direction in (0, 1):
        steps.append(np.nextafter(np.float32(threshold), np.float32(direction)))
    values = np.clip(np.array([[probability, *steps, 0, 1]], np.float32), 0, 1)
    mask = values > np.float32(threshold)
    photo = Photo(ImageRef("a", Path("a.jpg")), np.zeros((1, 6, 3), np.uint8))
    prediction = Prediction(photo, PackedMask.from_bool(mask), 1.0, values)
    stored = tifffile.imread(io.BytesIO(encode_extra("prob", prediction, Drawing(threshold)).content))
    if threshold < 1:
        assert np.array_equal(stored / 65535 > threshold, mask)
    assert np.abs(stored / 65535 - values).max() < 1.1 / 65535


def test_probability_map_that_was_not_kept():
    prediction = make_prediction()
    with pytest.raises(ValueError, match="not told to keep"):
        encode_extra("prob", Prediction(prediction.photo, prediction.mask, 1.0), Drawing())


@pytest.mark.parametrize(("kind", "width"), [("overlay", 65501), ("panel", 32751)])
def test_photo_that_is_too_large_for_a_jpeg(out, kind, width):
    with pytest.raises(ImageError, match=f"too large for --save {kind}: a JPEG cannot have 655.*x1 pixels"):
        MaskWriter(out.paths, (kind,)).write(make_prediction(size=(1, width)))
    assert not out.paths.mask("a/b").exists()
    MaskWriter(out.paths, (kind,)).write(make_prediction(size=(1, width - 1)))
    assert out.paths.mask("a/b").exists()


def test_dice_with_the_true_mask(out, tmp_path):
    prediction = make_prediction("b_mask")
    mask = prediction.mask.to_bool()
    true_mask = np.zeros_like(mask)
    true_mask[:, : WIDTH // 2] = True
    truth = {
        "b": write_truth(tmp_path / "b.png", true_mask),
        "same": write_truth(tmp_path / "same.png", mask),
        "small": write_truth(tmp_path / "small.png", mask[1:]),
        "broken": tmp_path / "broken.png",
    }
    truth["broken"].write_bytes(b"text")
    writer = MaskWriter(out.paths, truth=MaskFolder(tmp_path, truth))
    entry = writer.write(prediction).entry
    assert entry.dice == pytest.approx(
        2 * (mask & true_mask).sum() / (mask.sum() + true_mask.sum()), abs=1e-12
    )
    assert entry.reason == ""
    assert writer.write(make_prediction("same")).entry.dice == 1
    for key, reason in (("c", "no true mask"), ("small", "35x20"), ("broken", "broken.png is not an image")):
        entry = writer.write(make_prediction(key)).entry
        assert (entry.dice, entry.failed) == (None, False)
        assert reason in entry.reason
        assert out.paths.mask(key).exists()


def test_same_prediction_gives_the_same_bytes(tmp_path):
    contents = []
    for number in range(2):
        with OutFolder(tmp_path / f"out{number}", {}, (1, 1), False) as out:
            MaskWriter(out.paths, EXTRAS, encode_runs=True).write(make_prediction())
            files = sorted(out.root.rglob("b.*"))
            contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


@pytest.mark.parametrize("call", ["os.replace", "os.mkdir"])
@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, OutOfSpaceError), (errno.EIO, WriteError)])
def test_file_that_the_disk_cannot_store(tmp_path, monkeypatch, call, number, error):
    target = tmp_path / "new" / "file"
    with monkeypatch.context() as patch:
        patch.setattr(call, failing(number))
        with pytest.raises(error, match="new"):
            write_file(target, b"content")
    assert not target.exists()
    write_file(target, b"content")
    assert target.read_bytes() == b"content"


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"file")
    with pytest.raises(WriteError, match=r"Cannot write .*a: "):
        write_file(tmp_path / "a" / "b.png", b"content")


def test_entry_and_mask_can_be_read_back(out):
    entry = MaskWriter(out.paths).write(make_prediction()).entry
    out.commit(entry)
    assert list(read_entries(out.paths.state).values()) == [entry]
    assert np.array_equal(read_mask(out.paths.mask("a/b")).rows, make_prediction().mask.rows)


@pytest.mark.parametrize("orientation", [each for each in ORIENTATIONS if each > 1])
@pytest.mark.parametrize("predicted_is_upright", [False, True])
def test_true_masks_that_fit_far_better_if_turned_are_noted(tmp_path, orientation, predicted_is_upright):
    """The sides of a square photo never tell how a mask lies."""
    upright = Image.new("L", (20, 20))
    upright.paste(255, (3, 4, 18, 9))
    stored = store(upright, orientation)
    stored.save(tmp_path / "a.png", exif=with_orientation(upright, orientation).getexif())
    (tmp_path / "gt").mkdir()
    true, predicted = (stored, upright) if predicted_is_upright else (upright, stored)
    true.save(tmp_path / "gt" / "a.png")
    truth = MaskFolder(tmp_path / "gt", {"a": tmp_path / "gt" / "a.png"})
    ref = ImageRef("a", tmp_path / "a.png")
    for picture, note in ((predicted, Note.TRUE_MASK_OTHERWISE), (true, Note.TRUE_MASK_UNCLEAR)):
        mask = PackedMask.from_bool(np.asarray(picture) > 0)
        assert compare(ref, mask, (Note.TURNED,), truth).notes == (note,)
