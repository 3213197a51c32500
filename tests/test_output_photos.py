"""Finding the photos of a finished run."""

import json

import pytest
from helpers import write_photo

from carvana_batch.errors import UsageError
from carvana_batch.output.journal import Entry
from carvana_batch.output.photos import find_in_folder, locate_photos


@pytest.fixture
def root(tmp_path):
    """``out`` beside ``in``, which holds a/x.png and y.png."""
    write_photo(tmp_path / "in" / "a" / "x.png", size=(9, 6))
    write_photo(tmp_path / "in" / "y.png", size=(12, 7))
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def entry(root, key, source, path):
    return Entry(key, source, (root.parent / path).stat().st_size, 1)


def write_run(root, **values):
    (root / "run.json").write_text(json.dumps(values))


def test_by_the_directory_of_the_run(root, tmp_path, monkeypatch):
    x = entry(root, "a/x", "in/a/x.png", "in/a/x.png")
    assert locate_photos(root, [x])(x) is None
    write_run(root, directory=str(tmp_path), images=None)
    assert locate_photos(root, [x])(x) == tmp_path / "in" / "a" / "x.png"
    assert find_in_folder(root) is None
    write_run(root)
    monkeypatch.chdir(tmp_path)
    assert locate_photos(root, [x])(x).samefile(tmp_path / "in" / "a" / "x.png")


def test_by_the_folder_of_the_run(root, tmp_path):
    write_run(root, images=str(tmp_path / "in"), directory="/nowhere")
    assert find_in_folder(root) == tmp_path / "in"
    y = entry(root, "y", "gone/y.jpg", "in/y.png")
    assert locate_photos(root, [y])(y) == tmp_path / "in" / "y.png"


def test_the_file_of_the_right_size_is_preferred(root, tmp_path, monkeypatch):
    """Seen from the current directory, in/y.png is another photo of the same name."""
    write_photo(tmp_path / "other" / "in" / "y.png", seed=1, size=(40, 30))
    monkeypatch.chdir(tmp_path / "other")
    write_run(root, images=str(tmp_path / "in"))
    y = entry(root, "y", "in/y.png", "in/y.png")
    assert locate_photos(root, [y])(y) == tmp_path / "in" / "y.png"
    (tmp_path / "in" / "y.png").unlink()
    assert locate_photos(root, [y])(y).samefile(tmp_path / "other" / "in" / "y.png")


def test_by_the_folder_that_is_given(root, tmp_path):
    y = entry(root, "y", "in/y.png", "in/y.png")
    assert locate_photos(root, [y], tmp_path / "in")(y) == tmp_path / "in" / "y.png"
    other = Entry("z", "z.png", 1, 1)
    with pytest.raises(UsageError, match="None of the photos in --images"):
        locate_photos(root, [other], tmp_path / "in")
    with pytest.raises(UsageError, match="--images: There is no file or folder"):
        locate_photos(root, [y], tmp_path / "none")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"images": 3, "directory": 4}', "[" * 100_000])
def test_a_damaged_report_tells_nothing(root, content):
    (root / "run.json").write_text(content)
    x = entry(root, "a/x", "gone/x.png", "in/a/x.png")
    assert find_in_folder(root) is None
    assert locate_photos(root, [x])(x) is None
