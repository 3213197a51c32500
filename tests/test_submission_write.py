import contextlib
import csv
import errno
import gzip
import hashlib
import io
import os
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import names_below, write_mask
from PIL import Image

from carvana_batch.errors import ImageError, OutOfSpaceError, UsageError
from carvana_batch.files import atomic_writer
from carvana_batch.masks.values import MaskValues
from carvana_batch.parallel import TASKS_PER_WORKER
from carvana_batch.submission import table
from carvana_batch.submission import write as submission
from carvana_batch.submission.table import read_rows
from carvana_batch.submission.write import write_rows, write_submission
from carvana_batch.values import PackedMask

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
def test_rows_in_every_file_format(masks, tmp_path, name, workers):
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
def test_same_masks_give_the_same_bytes_at_any_time(masks, tmp_path, name, monkeypatch):
    first = write_submission(masks, tmp_path / name, size=None, workers=1)
    later = time.time() + 100_000_000
    monkeypatch.setattr(time, "time", lambda: later)
    assert write_submission(masks, tmp_path / name, size=None, workers=2) == first


def test_true_masks_give_the_names_of_the_photos(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.putpixel((1, 0), 1)
    image.save(folder / "00087a6bd4dc_01_mask.gif")
    write_submission(folder, tmp_path / "s.csv", size=(2, 1))
    assert (tmp_path / "s.csv").read_text() == "img,rle_mask\n00087a6bd4dc_01.jpg,2 1\n"


def test_rows_are_sorted_by_id(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{number:04d}" for number in rng.permutation(300)]
    for name in names:
        write_mask(tmp_path / "out" / f"{name}.png", np.arange(300).reshape(1, 300) == int(name))
    write_submission(tmp_path / "out", tmp_path / "s.csv", size=(300, 1), workers=3)
    lines = (tmp_path / "s.csv").read_text().splitlines()[1:]
    assert lines == [f"{number:04d}.jpg,{number + 1} 1" for number in range(300)]


def test_names_are_quoted_only_where_csv_needs_it(tmp_path):
    names = ["=1+1", "+a", "-a", "@a", "a,b", 'a"b', "a\nb", "ä"]
    escaped = {"=1+1": r"\x3d1+1", "+a": r"\x2ba", "-a": r"\x2da", "@a": r"\x40a", "a\nb": r"a\x0ab"}
    for name in names:
        write_mask(tmp_path / "out" / f"{name}.png", [[1]])
    write_submission(tmp_path / "out", tmp_path / "s.csv", size=(1, 1))
    text = (tmp_path / "s.csv").read_bytes().decode()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [
        ["img", "rle_mask"],
        *([f"{escaped.get(name, name)}.jpg", "1 1"] for name in sorted(names)),
    ]
    assert '"a,b.jpg",1 1\n' in text


def test_undecodable_name_keeps_its_bytes(tmp_path):
    write_mask(tmp_path / "out" / "a.png", [[1]])
    try:
        (tmp_path / "out" / "a.png").rename(tmp_path / "out" / "\udcff.png")
    except OSError:
        pytest.skip("this file system accepts only names that are valid text")
    write_submission(tmp_path / "out", tmp_path / "s.csv", size=None)
    assert (tmp_path / "s.csv").read_bytes() == b"img,rle_mask\n\xff.jpg,1 1\n"


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.zip"])
def test_mask_of_wrong_size_is_named_and_nothing_written(masks, tmp_path, name):
    target = tmp_path / name
    write_rows(target, [("old", "1 1")])
    old = target.read_bytes()
    write_mask(masks / "c.png", [[1, 1]])
    with pytest.raises(ImageError, match=r"c\.png is 2x1 pixels, not 5x3.*--size"):
        write_submission(masks, target, size=(5, 3))
    assert target.read_bytes() == old
    assert names_below(tmp_path) == ["out", name]
    assert write_submission(masks, target, size=None).rows == 4


def test_size_defaults_to_the_competition_size(tmp_path):
    write_mask(tmp_path / "out" / "a.png", np.ones((1280, 1918)))
    assert write_submission(tmp_path / "out", tmp_path / "s.csv").rows == 1
    assert (tmp_path / "s.csv").read_text() == f"img,rle_mask\na.jpg,1 {1280 * 1918}\n"
    write_mask(tmp_path / "out" / "a.png", np.ones((1918, 1280)))
    with pytest.raises(ImageError, match="1280x1918 pixels, not 1918x1280"):
        write_submission(tmp_path / "out", tmp_path / "s.csv")


def test_damaged_mask_is_named_and_nothing_written(masks, tmp_path):
    (masks / "c.png").write_bytes((masks / "a.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"c\.png"):
        write_submission(masks, tmp_path / "s.csv", size=None)
    assert names_below(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["s", "s.gz", "s.txt", "s.png", "csv"])
def test_other_suffixes_are_refused(masks, tmp_path, name):
    with pytest.raises(UsageError, match=r"\*\.csv, \*\.csv\.gz, \*\.zip"):
        write_submission(masks, tmp_path / name)


def test_unusable_folders_are_refused_before_reading_masks(masks, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "read_mask", lambda *_: pytest.fail("read a mask"))
    monkeypatch.setattr(submission, "decide_values", lambda *_, **__: pytest.fail("read a mask"))
    with pytest.raises(UsageError, match="there is no folder"):
        write_submission(masks, tmp_path / "missing" / "s.csv")
    with pytest.raises(UsageError, match="does not exist"):
        write_submission(tmp_path / "missing", tmp_path / "s.csv")
    assert names_below(tmp_path) == ["out"]


class SmallDisk:
    """A file that raises ENOSPC after a number of successful writes."""

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
def test_full_disk_leaves_the_old_file(masks, tmp_path, name, monkeypatch):
    """The N-th write fails, for N = 1, 2, 3 ... until there is no failure."""
    target = tmp_path / name
    write_rows(target, [("old", "1 1")])
    old = target.read_bytes()

    for writes in range(100):

        @contextlib.contextmanager
        def write_on_a_small_disk(path, writes=writes):
            with atomic_writer(path) as file:
                yield SmallDisk(file, writes)

        monkeypatch.setattr(table, "atomic_writer", write_on_a_small_disk)
        try:
            write_submission(masks, target, size=None)
        except OutOfSpaceError:
            assert target.read_bytes() == old
            assert names_below(tmp_path) == ["out", name]
        else:
            break
    assert writes >= 1
    assert read_back(target) == ROWS


@pytest.mark.parametrize("workers", [1, 2])
def test_masks_are_not_read_far_ahead(tmp_path, monkeypatch, workers):
    """No mask is read long before the rows of earlier masks are written, however many there are."""
    count = 5000
    mask = PackedMask.from_bool(np.array([[True, False]]))
    read = []
    max_ahead = 0

    def written(done, total):
        nonlocal max_ahead
        assert total == count
        max_ahead = max(max_ahead, len(read) - done)

    monkeypatch.setattr(submission, "find_masks", lambda _: {f"{n:05}": Path(str(n)) for n in range(count)})
    monkeypatch.setattr(submission, "decide_values", lambda *_, **__: MaskValues())

    def note_and_read(path, _values):
        read.append(path)
        return mask

    monkeypatch.setattr(submission, "read_mask", note_and_read)
    summary = write_submission(tmp_path, tmp_path / "s.csv", (2, 1), workers=workers, on_progress=written)
    assert summary.rows == len(read) == count
    assert max_ahead <= workers * TASKS_PER_WORKER * submission.BATCH


def test_bad_masks_are_named_together(masks, tmp_path):
    (masks / "c.png").write_bytes((masks / "a.png").read_bytes()[:40])
    write_mask(masks / "e.png", [[1, 1]])
    steps = []
    with pytest.raises(ImageError) as caught:
        write_submission(
            masks, tmp_path / "s.csv", size=(5, 3), workers=1, on_progress=lambda *step: steps.append(step)
        )
    first, second, third, advice = str(caught.value).splitlines()
    assert first == "2 masks cannot be used:"
    assert second.startswith(f"  {masks / 'c.png'} is ")
    assert third == f"  {masks / 'e.png'} is 2x1 pixels, not 5x3."
    assert "--size" in advice
    assert steps[-1] == (5, 5)
    assert names_below(tmp_path) == ["out"]


def test_reading_stops_after_five_bad_masks(tmp_path):
    for number in range(300):
        write_mask(tmp_path / "out" / f"{number:03}.png", [[1]])
    steps = []
    with pytest.raises(ImageError) as caught:
        write_submission(
            tmp_path / "out", tmp_path / "s.csv", workers=2, on_progress=lambda *step: steps.append(step)
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "At least 5 masks cannot be used:"
    assert [line.split()[0] for line in lines[1:-1]] == [
        str(tmp_path / "out" / f"{n:03}.png") for n in range(5)
    ]
    assert len(steps) == 4


def test_first_empty_masks_are_named(tmp_path):
    for number in range(9):
        write_mask(tmp_path / "out" / f"{number}.png", [[number % 2 if number < 3 else 0]])
    summary = write_submission(tmp_path / "out", tmp_path / "s.csv", size=(1, 1))
    assert (summary.rows, summary.empty) == (9, 8)
    assert summary.first_empty == ("0.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")


# With a sample


@pytest.mark.parametrize("name", ["sample.csv", "sample.csv.gz", "sample.zip"])
def test_sample_gives_header_names_and_order(masks, tmp_path, name):
    write_rows(tmp_path / "sample.csv", [("d", "1 1"), ("a", "1 1"), ("b/c", "")])
    text = (
        (tmp_path / "sample.csv")
        .read_text()
        .replace("img,rle_mask", "image id,rle")
        .replace("a.jpg", "a.PNG")
    )
    pack(tmp_path / name, text.replace("\n", "\r\n"))
    summary = write_submission(masks, tmp_path / "s.csv", size=(5, 3), sample=tmp_path / name)
    assert (tmp_path / "s.csv").read_text() == "image id,rle\nd.jpg,15 1\na.PNG,1 2 5 1\nb/c.jpg,\n"
    assert (summary.rows, summary.empty, summary.first_empty) == (3, 1, ("b/c.jpg",))


def pack(path, text):
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("sample_submission.csv", text)
    else:
        path.write_text(text, newline="")


def test_sample_names_may_lack_a_suffix(masks, tmp_path):
    pack(tmp_path / "sample.csv", "img,rle_mask\nb/c,\nd,\na,\n")
    write_submission(masks, tmp_path / "s.csv", size=None, sample=tmp_path / "sample.csv")
    assert (tmp_path / "s.csv").read_text() == "img,rle_mask\nb/c,\nd,15 1\na,1 2 5 1\n"


def refuse(masks, tmp_path, sample, target="s.csv"):
    """Return the message with which a sample is refused; check that no mask is read and nothing written."""
    pack(tmp_path / "sample.csv", sample)
    before = names_below(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UsageError) as caught:
        patch.setattr(submission, "read_mask", lambda *_: pytest.fail("read a mask"))
        write_submission(masks, tmp_path / target, size=None, sample=tmp_path / "sample.csv")
    assert names_below(tmp_path) == before
    return str(caught.value)


def test_missing_and_extra_ids_are_refused(masks, tmp_path):
    wanted = "".join(f"{number}.jpg,1 1\n" for number in range(7))
    message = refuse(masks, tmp_path, f"img,rle_mask\nd.jpg,1 1\n{wanted}")
    assert message.startswith(
        f"The masks of {masks} are not those of {tmp_path / 'sample.csv'}, which has 8 ids"
    )
    assert message.splitlines()[1:] == [
        "Ids without a mask: 7",
        *(f"  {number}.jpg" for number in range(5)),
        "  ... and 2 more",
        "Masks whose id is not in the sample: 2",
        "  a",
        "  b/c",
    ]
    message = refuse(masks, tmp_path, "img,rle_mask\nd.jpg,\na.jpg,\nb/c.jpg,\nx.jpg,\n")
    assert message.splitlines()[1:] == ["Ids without a mask: 1", "  x.jpg"]
    message = refuse(masks, tmp_path, "img,rle_mask\nd.jpg,\na.jpg,\n")
    assert message.splitlines()[1:] == ["Masks whose id is not in the sample: 1", "  b/c"]


def test_subfolder_with_the_masks_is_suggested(masks, tmp_path):
    assert f"Did you mean the folder {masks / 'b'}?" in refuse(masks, tmp_path, "img,rle_mask\nc.jpg,\n")
    assert "Did you mean" not in refuse(masks, tmp_path, "img,rle_mask\nx.jpg,\n")


def test_sample_pairs_either_form_of_accents(tmp_path):
    write_mask(tmp_path / "out" / "Citroe\u0308n.png", [[0, 1]])
    (tmp_path / "sample.csv").write_text("img,rle_mask\nCitro\u00ebn.jpg,\n", encoding="utf-8")
    write_submission(tmp_path / "out", tmp_path / "s.csv", (2, 1), sample=tmp_path / "sample.csv")
    assert (tmp_path / "s.csv").read_text(encoding="utf-8") == "img,rle_mask\nCitro\u00ebn.jpg,2 1\n"
    write_submission(tmp_path / "out", tmp_path / "s.csv", (2, 1))
    assert (tmp_path / "s.csv").read_text(encoding="utf-8") == "img,rle_mask\nCitroe\u0308n.jpg,2 1\n"


def test_repeated_sample_ids_are_refused(masks, tmp_path):
    rows = "a.jpg,\na.png,\n" + "".join(f"{number % 5}.jpg,\n" for number in range(10))
    lines = refuse(masks, tmp_path, f"img,rle_mask\n{rows}").splitlines()
    assert lines[1:] == [
        "Rows whose id came before: 6",
        "  a",
        *(f"  {number}" for number in range(4)),
        "  ... and 1 more",
    ]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ("", "is empty"),
        ("a.jpg,1 2\n", "begins with the row 'a.jpg,1 2'"),
        ("img,rle_mask\n", "has a header and no rows"),
        ("img,rle_mask\na.jpg\n", "line 2: a row is <photo>,<runs>, and this one has 1 field"),
        ("img,rle_mask\n,1 1\n", "line 2: .* no name"),
        ('img,rle_mask\n"a.jpg,1 1\n', "line 2: unexpected end of data"),
    ],
)
def test_invalid_samples_are_refused(masks, tmp_path, sample, reason):
    assert re.search(rf"sample\.csv.*{reason}", refuse(masks, tmp_path, sample))


def test_sample_is_not_overwritten(masks, tmp_path):
    sample = "img,rle_mask\nd.jpg,\na.jpg,\nb/c.jpg,\n"
    assert "is the sample itself" in refuse(masks, tmp_path, sample, "sample.csv")
    (tmp_path / "link.csv").symlink_to("sample.csv")
    assert "is the sample itself" in refuse(masks, tmp_path, sample, "link.csv")
    assert (tmp_path / "sample.csv").read_text() == sample


def test_missing_sample_is_named(masks, tmp_path):
    with pytest.raises(UsageError, match=r"none\.csv: No such file"):
        write_submission(masks, tmp_path / "s.csv", size=None, sample=tmp_path / "none.csv")


# Reading rows


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.zip", "s.csv.zip", "S.CSV"])
def test_written_rows_are_read_back(tmp_path, name):
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


TEXT = "img,rle_mask\r\na_01.jpg,1 2\r\nb_01.jpg,\r\nb_02.jpg,3 1\r\n"


def zipped(text):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("s.csv", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"img,rle_mask\r\na_01.jpg,1 2\r\nb_01.png,\r\nb_02,3 1\r\n",
        b"\xef\xbb\xbfimg,rle_mask\na_01.jpg,1 2\n\nb_01.JPG,\nb_02,3 1",
        b'"img","rle_mask"\n"a_01.jpg","1 2"\n"b_01.jpg",""\n"b_02.tiff","3 1"\n',
        b"id,EncodedPixels\na_01.jpg,1 2\nb_01.jpg,\nb_02.jpg,3 1\n",
        b"img,rle_mask\ra_01.jpg,1 2\rb_01.jpg,\rb_02.jpg,3 1\r",
        b"img;rle_mask\r\na_01.jpg;1 2\r\nb_01.jpg;\r\nb_02.jpg;3 1\r\n",
        b"img\trle_mask\na_01.jpg\t1 2\nb_01.jpg\t\nb_02.jpg\t3 1\n",
        b"sep=;\r\nimg;rle_mask\r\na_01.jpg;1 2\r\nb_01.jpg;\r\nb_02.jpg;3 1\r\n",
        b",img,rle_mask\n0,a_01.jpg,1 2\n1,b_01.jpg,\n2,b_02.jpg,3 1\n",
        b"Unnamed: 0\timg\trle_mask\n0\ta_01.jpg\t1 2\n1\tb_01.jpg\t\n2\tb_02.jpg\t3 1\n",
        b"\n  \r\nimg,rle_mask\n   \n./a_01.jpg,1 2\n\n.//b_01.jpg,\n././b_02.jpg,3 1\n \n",
        b"\xff\xfe" + TEXT.encode("utf-16-le"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        gzip.compress(TEXT.encode(), mtime=0),
        gzip.compress(b"\xff\xfe" + TEXT.replace(",", ";").encode("utf-16-le"), mtime=0),
        zipped(TEXT),
    ],
)
def test_files_of_other_tools_are_read(tmp_path, data):
    for name in ("s.csv", "s.csv.gz", "s.tsv"):
        (tmp_path / name).write_bytes(data)
        assert read_rows(tmp_path / name) == {"a_01": "1 2", "b_01": "", "b_02": "3 1"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty: run-length rows begin with the line img,rle_mask"),
        (
            "img,rle_mask\na.jpg,1 2\n".encode("utf-16-le"),
            "which is not text in UTF-8",
        ),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "which is not text in UTF-8"),
        (b"rle_mask,img\n1 2,a.jpg\n", "has its two columns swapped"),
        (b"EncodedPixels,ImageId\n,a.jpg\n", "has its two columns swapped"),
        (b"b,a\n" + b"1 1 " * 999 + b"3 5,a.jpg\n", "has its two columns swapped"),
        (b"img\trle_mask\na.jpg,1 2\n", "line 2: .* 1 field"),
        (b"id,rle_mask,area\na.jpg,1 2,2\n", "begins with 'id,rle_mask,area', not with img,rle_mask"),
        (b"a,1 2\n", "no header, as it begins with the row 'a,1 2'. Put the line img,rle_mask above"),
        (b"1 2,a\n", "no header, as it begins with the row '1 2,a'"),
        (b",rle_mask\n", "begins with ',rle_mask'"),
        (b"a.jpg,1 2\n", "no header, as it begins with the row 'a.jpg,1 2'"),
        (b"img,rle_mask\na.jpg,1 2\nb.jpg\n", "line 3: .* 1 field"),
        (b"img,rle_mask\na.jpg,1 2\nb.jpg,1 2,3\n", "line 3: .* 3 field"),
        (b"img,rle_mask\n,1 2\n", "line 2: .* no name"),
        (b"img,rle_mask\na.jpg,1 2\nb.jpg,1 2\na.png,1 2\n", "line 4: a already has a row"),
        ("img,rle_mask\n\u00eb.jpg,1 2\ne\u0308.jpg,\n".encode(), "line 3: .* already has a row"),
        (b'img,rle_mask\na.jpg,"1 2\nb.jpg,1 2\n', "line 3: unexpected end of data"),
        (b'\n \nimg,rle_mask\n  \na.jpg,"1 2\nb.jpg,1 2\n', "line 6: unexpected end of data"),
        (b"\n\nimg,rle_mask\n  \nb.jpg\n", "line 5: .* 1 field"),
        (b"\n \n", "is empty"),
        (b"sep=,\n", "is empty"),
        (b",img,rle_mask\n0,a.jpg,1 2\n1\n", "line 3: .* 1 field"),
        (b",img,rle_mask\n0,a.jpg,1 2\nb.jpg,1 2\n", "line 3: .* 1 field"),
        (b"img,rle_mask\na.jpg,1 2\n./a.jpg,1 2\n", "line 3: a already has a row"),
    ],
)
def test_bad_rows_are_named(tmp_path, data, reason):
    (tmp_path / "s.csv").write_bytes(data)
    with pytest.raises(UsageError, match=rf"s\.csv.*{reason}") as caught:
        read_rows(tmp_path / "s.csv")
    message = str(caught.value)
    assert len(message) < len(str(tmp_path)) + 200
    assert "\n" not in message


def test_a_long_name_does_not_fill_the_message(tmp_path):
    (tmp_path / "s.csv").write_text("img,rle_mask\n" + f"{'a' * 5000},1 2\n" * 2)
    with pytest.raises(UsageError, match=r"line 3: a{80}\.\.\. already has a row"):
        read_rows(tmp_path / "s.csv")


def test_unreadable_files_are_named(tmp_path):
    for name, reason in [("missing.csv", "No such file"), ("s.txt", r"\*\.csv, \*\.csv\.gz, \*\.zip")]:
        with pytest.raises(UsageError, match=rf"{name}.*{reason}"):
            read_rows(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=r"folder\.csv: Is a directory"):
        read_rows(tmp_path / "folder.csv")


@pytest.mark.parametrize(
    ("name", "damage"),
    [("s.csv.gz", "cut"), ("s.csv.gz", "flip"), ("s.zip", "cut"), ("s.zip", "flip"), ("s.zip", "text")],
)
def test_damaged_archives_are_named(tmp_path, name, damage):
    write_rows(tmp_path / name, [(f"car_{number}", f"{number} 5") for number in range(1, 100)])
    data = bytearray((tmp_path / name).read_bytes())
    middle = len(data) // 2 if damage == "cut" else 100
    data[middle] ^= 0xFF
    (tmp_path / name).write_bytes({"cut": data[:middle], "flip": data, "text": b"img,rle_mask\n"}[damage])
    with pytest.raises(UsageError, match=rf"Cannot read .*{name}: it is damaged"):
        read_rows(tmp_path / name)


def test_archive_must_contain_one_csv(tmp_path):
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
