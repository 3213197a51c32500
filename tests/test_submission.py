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

from carvana_batch import rle, submission
from carvana_batch.atomic import atomic_writer
from carvana_batch.masks import find_masks
from carvana_batch.records import ImageError, OutOfSpaceError, UsageError
from carvana_batch.submission import read_rows, write_rows, write_submission

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


# ---- reading rows


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.zip", "s.csv.zip", "S.CSV"])
def test_what_is_written_is_read(tmp_path, name):
    rows = [("a", "1 2 5 1"), ("b/c", ""), ("d.v2", "15 1"), ('e,"f', "3 1"), ("\udcff", "7 7")]
    write_rows(tmp_path / name, rows)
    assert read_rows(tmp_path / name) == dict(rows)


def test_rows_of_a_million_characters_are_read(tmp_path):
    runs = " ".join(f"{start} 1" for start in range(1, 400_000, 3))
    assert len(runs) > 1_000_000
    (tmp_path / "s.csv").write_text(f"img,rle_mask\na.jpg,{runs}\nb.jpg,2 1\n")
    before = csv.field_size_limit(2**30)
    try:
        assert read_rows(tmp_path / "s.csv") == {"a": runs, "b": "2 1"}
        assert csv.field_size_limit() == 2**30
        csv.field_size_limit(2**17)
        assert read_rows(tmp_path / "s.csv")["a"] == runs
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    "data",
    [
        b"img,rle_mask\r\na_01.jpg,1 2\r\nb_01.png,\r\nb_02,3 1\r\n",
        b"\xef\xbb\xbfimg,rle_mask\na_01.jpg,1 2\n\nb_01.JPG,\nb_02,3 1",
        b'"img","rle_mask"\n"a_01.jpg","1 2"\n"b_01.jpg",""\n"b_02.tiff","3 1"\n',
    ],
)
def test_files_of_other_tools_are_read(tmp_path, data):
    (tmp_path / "s.csv").write_bytes(data)
    assert read_rows(tmp_path / "s.csv") == {"a_01": "1 2", "b_01": "", "b_02": "3 1"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "begins with '', not with img,rle_mask"),
        (b"id,rle_mask\na.jpg,1 2\n", "begins with 'id,rle_mask', not with img,rle_mask"),
        (b"a.jpg,1 2\n", "begins with 'a.jpg,1 2'"),
        (b"img,rle_mask\na.jpg,1 2\nb.jpg\n", "line 3: .* 1 field"),
        (b"img,rle_mask\na.jpg,1 2\nb.jpg,1 2,3\n", "line 3: .* 3 field"),
        (b"img,rle_mask\n,1 2\n", "line 2: .* no name"),
        (b"img,rle_mask\na.jpg,1 2\nb.jpg,1 2\na.png,1 2\n", "line 4: a already has a row"),
        (b'img,rle_mask\na.jpg,"1 2\nb.jpg,1 2\n', "line 3: unexpected end of data"),
    ],
)
def test_bad_rows_are_named(tmp_path, data, reason):
    (tmp_path / "s.csv").write_bytes(data)
    with pytest.raises(UsageError, match=rf"s\.csv.*{reason}"):
        read_rows(tmp_path / "s.csv")


def test_a_field_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    before = csv.field_size_limit(1000)
    monkeypatch.setattr(submission, "FIELD_LIMIT", 1000)
    (tmp_path / "s.csv").write_text('img,rle_mask\na.jpg,"' + "1 2\n" * 1000)
    try:
        with pytest.raises(UsageError, match=r"s\.csv, line \d+: field larger"):
            read_rows(tmp_path / "s.csv")
    finally:
        csv.field_size_limit(before)


def test_files_of_rows_that_cannot_be_read_are_named(tmp_path):
    for name, reason in [("missing.csv", "No such file"), ("s.txt", r"\*\.csv, \*\.csv\.gz, \*\.zip")]:
        with pytest.raises(UsageError, match=rf"{name}.*{reason}"):
            read_rows(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=r"folder\.csv: Is a directory"):
        read_rows(tmp_path / "folder.csv")


@pytest.mark.parametrize("name", ["s.csv.gz", "s.zip"])
@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_damaged_archives_are_named(tmp_path, name, damage):
    write_rows(tmp_path / name, [(f"car_{number}", f"{number} 5") for number in range(1, 100)])
    data = bytearray((tmp_path / name).read_bytes())
    middle = len(data) // 2 if damage == "cut" else 100
    data[middle] ^= 0xFF
    (tmp_path / name).write_bytes({"cut": data[:middle], "flip": data, "text": b"img,rle_mask\n"}[damage])
    with pytest.raises(UsageError, match=rf"Cannot read .*{name}: it is damaged"):
        read_rows(tmp_path / name)


def test_an_archive_must_hold_one_table(tmp_path):
    table = "img,rle_mask\na.jpg,1 2\n"
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        archive.writestr("train_masks.csv", table)
        archive.writestr("__MACOSX/._train_masks.csv", b"\0\5\26\7")
        archive.writestr("readme.txt", "")
    assert read_rows(tmp_path / "mac.zip") == {"a": "1 2"}
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", table)
        archive.writestr("b.csv", table)
    with pytest.raises(UsageError, match=r"two\.zip holds 2 CSV files"):
        read_rows(tmp_path / "two.zip")
    with zipfile.ZipFile(tmp_path / "train_masks.zip", "w") as archive:
        archive.writestr("a_01_mask.gif", b"GIF89a")
    with pytest.raises(UsageError, match=r"train_masks\.zip holds 0 CSV files"):
        read_rows(tmp_path / "train_masks.zip")


@pytest.mark.real
def test_published_rows_are_the_published_masks():
    if "CARVANA_DATA" not in os.environ:
        pytest.skip("CARVANA_DATA names no folder with real photos")
    folder = Path(os.environ["CARVANA_DATA"]) / "val"
    rows = read_rows(folder / "masks.csv")
    masks = find_masks(folder / "masks")
    assert rows.keys() == masks.keys()
    for mask_id in list(masks)[::40]:
        with Image.open(masks[mask_id]) as image:
            np.testing.assert_array_equal(rle.decode(rows[mask_id], 1280, 1918), np.asarray(image) == 1)
