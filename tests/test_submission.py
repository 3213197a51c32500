import contextlib
import csv
import errno
import gzip
import hashlib
import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import names_below, write_mask
from PIL import Image

from carvana_batch import submission
from carvana_batch.atomic import atomic_writer
from carvana_batch.records import ImageError, OutOfSpaceError, UsageError
from carvana_batch.submission import write_submission

ROWS = """\
img,rle_mask
a.jpg,1 2 5 1
b/c.jpg,
d.jpg,15 1
"""


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "out"
    write_mask(folder / "d.png", [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    write_mask(folder / "a.png", [[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    write_mask(folder / "b" / "c.png", [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    write_mask(folder / "_overlay" / "d.png", [[1]])
    (folder / "report.csv").write_text("not a mask")
    return folder


def read_back(path):
    data = path.read_bytes()
    if path.name.endswith(".gz"):
        data = gzip.decompress(data)
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["s.csv"]
            assert archive.testzip() is None
            data = archive.read("s.csv")
    return data.decode()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.zip", "s.csv.zip"])
def test_rows_in_every_kind_of_file(masks, tmp_path, name, workers):
    target = tmp_path / name
    steps = []
    summary = write_submission(
        masks, target, size=(5, 3), workers=workers, on_progress=lambda *step: steps.append(step)
    )
    assert read_back(target) == ROWS
    assert (summary.rows, summary.empty) == (3, 1)
    assert summary.bytes == target.stat().st_size
    assert summary.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert names_below(tmp_path) == ["out", name]


@pytest.mark.parametrize("name", ["s.csv.gz", "s.zip"])
def test_the_same_masks_give_the_same_bytes_at_any_time(masks, tmp_path, name, monkeypatch):
    first = write_submission(masks, tmp_path / name, size=None, workers=1)
    later = time.time() + 100_000_000
    monkeypatch.setattr(time, "time", lambda: later)
    assert write_submission(masks, tmp_path / name, size=None, workers=2) == first


def test_masks_of_truth_give_the_names_of_the_photos(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.putpixel((1, 0), 1)
    image.save(folder / "00087a6bd4dc_01_mask.gif")
    write_submission(folder, tmp_path / "s.csv", size=(2, 1))
    assert (tmp_path / "s.csv").read_text() == "img,rle_mask\n00087a6bd4dc_01.jpg,2 1\n"


def test_rows_are_in_the_order_of_the_ids_however_many(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{number:04d}" for number in rng.permutation(300)]
    for name in names:
        write_mask(tmp_path / "out" / f"{name}.png", np.arange(300).reshape(1, 300) == int(name))
    write_submission(tmp_path / "out", tmp_path / "s.csv", size=(300, 1), workers=3)
    lines = (tmp_path / "s.csv").read_text().splitlines()[1:]
    assert lines == [f"{number:04d}.jpg,{number + 1} 1" for number in range(300)]


def test_odd_names_are_quoted_where_csv_needs_it_and_else_left(tmp_path):
    names = ["=1+1", "+a", "-a", "@a", "a,b", 'a"b', "a\nb", "ä"]
    for name in names:
        write_mask(tmp_path / "out" / f"{name}.png", [[1]])
    write_submission(tmp_path / "out", tmp_path / "s.csv", size=(1, 1))
    text = (tmp_path / "s.csv").read_bytes().decode()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [["img", "rle_mask"], *([f"{name}.jpg", "1 1"] for name in sorted(names))]
    assert '"a,b.jpg",1 1\n' in text
    assert "\n=1+1.jpg,1 1\n" in text


def test_a_name_that_is_not_text_keeps_its_bytes(tmp_path):
    write_mask(tmp_path / "out" / "a.png", [[1]])
    try:
        (tmp_path / "out" / "a.png").rename(tmp_path / "out" / "\udcff.png")
    except OSError:
        pytest.skip("this file system takes only names that are text")
    write_submission(tmp_path / "out", tmp_path / "s.csv", size=None)
    assert (tmp_path / "s.csv").read_bytes() == b"img,rle_mask\n\xff.jpg,1 1\n"


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.zip"])
def test_a_mask_of_another_size_is_named_and_nothing_is_changed(masks, tmp_path, name):
    target = tmp_path / name
    target.write_bytes(b"old")
    write_mask(masks / "c.png", [[1, 1]])
    with pytest.raises(ImageError, match=r"c\.png is 2x1 pixels, not 5x3.*--size"):
        write_submission(masks, target, size=(5, 3))
    assert target.read_bytes() == b"old"
    assert names_below(tmp_path) == ["out", name]
    assert write_submission(masks, target, size=None).rows == 4


def test_the_size_is_that_of_the_competition_unless_said_otherwise(tmp_path):
    write_mask(tmp_path / "out" / "a.png", np.ones((1280, 1918)))
    assert write_submission(tmp_path / "out", tmp_path / "s.csv").rows == 1
    assert (tmp_path / "s.csv").read_text() == f"img,rle_mask\na.jpg,1 {1280 * 1918}\n"
    write_mask(tmp_path / "out" / "a.png", np.ones((1918, 1280)))
    with pytest.raises(ImageError, match="1280x1918 pixels, not 1918x1280"):
        write_submission(tmp_path / "out", tmp_path / "s.csv")


def test_a_broken_mask_ends_it_with_nothing_written(masks, tmp_path):
    (masks / "c.png").write_bytes((masks / "a.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"c\.png"):
        write_submission(masks, tmp_path / "s.csv", size=None)
    assert names_below(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["s", "s.gz", "s.txt", "s.png", "csv"])
def test_other_suffixes_are_refused(masks, tmp_path, name):
    with pytest.raises(UsageError, match=r"\*\.csv, \*\.csv\.gz, \*\.zip"):
        write_submission(masks, tmp_path / name)


def test_folders_that_cannot_be_used_are_refused_before_a_mask_is_read(masks, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "read_mask", lambda _: pytest.fail("read a mask"))
    with pytest.raises(UsageError, match="there is no folder"):
        write_submission(masks, tmp_path / "missing" / "s.csv")
    with pytest.raises(UsageError, match="does not exist"):
        write_submission(tmp_path / "missing", tmp_path / "s.csv")
    assert names_below(tmp_path) == ["out"]


class SmallDisk:
    """A file of which only so many writes succeed."""

    def __init__(self, file, writes):
        self.file = file
        self.writes = writes

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if self.writes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.writes -= 1
        return self.file.write(data)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.zip"])
def test_a_full_disk_leaves_the_old_file(masks, tmp_path, name, monkeypatch):
    """The N-th write fails, for N = 1, 2, 3 ... until all goes well."""
    target = tmp_path / name
    target.write_bytes(b"old")

    for writes in range(100):

        @contextlib.contextmanager
        def write_on_a_small_disk(path, writes=writes):
            with atomic_writer(path) as file:
                yield SmallDisk(file, writes)

        monkeypatch.setattr(submission, "atomic_writer", write_on_a_small_disk)
        try:
            write_submission(masks, target, size=None)
        except OutOfSpaceError:
            assert target.read_bytes() == b"old"
            assert names_below(tmp_path) == ["out", name]
        else:
            break
    assert writes >= 1
    assert read_back(target) == ROWS


@pytest.mark.real
def test_the_published_file_byte_for_byte_but_for_line_ends(tmp_path):
    if "CARVANA_DATA" not in os.environ:
        pytest.skip("CARVANA_DATA names no folder with real photos")
    folder = Path(os.environ["CARVANA_DATA"]) / "val"
    write_submission(folder / "masks", tmp_path / "s.csv")
    published = (folder / "masks.csv").read_bytes().replace(b"\r\n", b"\n")
    assert (tmp_path / "s.csv").read_bytes() == published
