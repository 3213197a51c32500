"""Whether images in an out folder are noticed that a run has not made."""

import pytest
from helpers import write_mask, write_photo

from carvana_batch.output.other_images import describe_other_images


@pytest.fixture
def out(tmp_path):
    """An out folder with the masks of the photos a and b/c, and files that nobody takes for masks."""
    out = tmp_path / "out"
    for name in ("a.png", "b/c.png", "_overlay/x.png", ".carvana-batch/x.png", ".hidden.png"):
        write_mask(out / name, [[1]])
    for name in ("report.csv", "photo.heic", "notes.txt"):
        (out / name).write_text("")
    return out


def test_masks_of_the_run_are_no_other_images(out):
    assert describe_other_images(out, ["a", "b/c", "not masked yet"]) == ""
    assert describe_other_images(out / "missing", ["a"]) == ""


@pytest.mark.parametrize("name", ["photo.jpg", "b/photo.JPEG", "a.gif", "a_mask.png", "c.png"])
def test_other_images_are_named(out, name):
    write_photo(out / name)
    line = describe_other_images(out, ["a", "b/c"])
    assert line.startswith(f"{out} holds 1 other image, such as {name}: submit and score will take them for")


def test_other_images_are_counted(out):
    assert "holds 2 other images, such as a.png:" in describe_other_images(out, [])
