import errno
import gzip
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import names_below, names_in, write_mask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from carvana_batch.errors import OutOfSpaceError, UsageError
from carvana_batch.files import TEMPORARY_PREFIX, WriteError
from carvana_batch.inputs.keys import mask_name_problem
from carvana_batch.inputs.masks import find_masks
from carvana_batch.masks import rle
from carvana_batch.parallel import TASKS_PER_WORKER
from carvana_batch.submission import unpack
from carvana_batch.submission.unpack import decode_submission
from carvana_batch.submission.write import write_rows, write_submission
from carvana_batch.values import Failure

ROWS = """\
img,rle_mask
a.jpg,1 2 5 1
b/c.jpg,
d.jpg,15 1
"""

MASKS = {
    "a": [[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "b/c": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "d": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]],
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def write(path, text):
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("s.csv", text)
    else:
        path.write_bytes(text.encode(errors="surrogateescape"))
    return path


def decode(tmp_path, rows, size=(5, 3), **options):
    """Decode a CSV of these lines below the header."""
    return decode_submission(
        write(tmp_path / "s.csv", "img,rle_mask\n" + rows), tmp_path / "out", size, **options
    )


def lines_and_names(failures):
    """The line number and the name of each failed row."""
    return [(int(failure.source.rpartition(" ")[2]), failure.id) for failure in failures]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).tolist()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.zip"])
def test_masks_from_every_file_format(tmp_path, out, name, workers):
    steps = []
    summary = decode_submission(
        write(tmp_path / name, ROWS),
        out,
        (5, 3),
        workers=workers,
        on_progress=lambda *step: steps.append(step),
    )
    assert (summary.masks, summary.empty, summary.failures) == (3, 1, ())
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert names_in(out) == ["a.png", "b", "b/c.png", "d.png"]
    for name, rows in MASKS.items():
        with Image.open(out / f"{name}.png") as image:
            assert image.mode == "1"
            np.testing.assert_array_equal(np.asarray(image), rows)


def test_masks_with_8_bits(tmp_path, out):
    decode_submission(write(tmp_path / "s.csv", ROWS), out, (5, 3), mask_bits=8)
    with Image.open(out / "a.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), np.array(MASKS["a"]) * 255)


def test_size_defaults_to_the_competition_size(tmp_path, out):
    decode_submission(write(tmp_path / "s.csv", "img,rle_mask\na.jpg,1918 1\n"), out)
    with Image.open(out / "a.png") as image:
        assert image.size == (1918, 1280)
        assert np.argwhere(np.asarray(image)).tolist() == [[0, 1917]]


def car(width, height):
    """A mask that is round below and flat above."""
    y, x = np.mgrid[:height, :width]
    return ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2 < 0.16) & (y > height / 3)


def list_rows(masks):
    """Lines of photos 0.jpg, 1.jpg, ... with their masks."""
    return "".join(f"{number}.jpg,{rle.encode(mask)}\n" for number, mask in enumerate(masks))


def test_assumed_size_must_hold_all_pixels(tmp_path, out):
    rows = f"a.jpg,1 5\nb.jpg,9 1 {1918 * 1280} 2\n"
    with pytest.raises(UsageError, match=r"s\.csv, line 3: the runs reach pixel 2,455,041, .* by --size W"):
        decode(tmp_path, rows, None)
    assert not out.exists()
    summary = decode(tmp_path, rows, (1918, 1280))
    assert lines_and_names(summary.failures) == [(3, "b.jpg")]


@pytest.mark.parametrize("size", [None, (1918, 1280)])
def test_rows_of_another_size_are_refused(tmp_path, out, size):
    rows = f"a.jpg,{rle.encode(car(960, 640))}\n"
    with pytest.raises(UsageError, match=r"1 of 1 .* 960 pixels apart, so give .* --size 960xHEIGHT"):
        decode(tmp_path, rows, size)
    assert not out.exists()
    assert decode(tmp_path, rows, (960, 640)).masks == 1
    np.testing.assert_array_equal(pixels(out / "a.png"), car(960, 640))


def test_rows_one_pixel_too_wide_are_refused(tmp_path, out):
    rows = list_rows(np.roll(car(1919, 1280), 9 * number) for number in range(3))
    with pytest.raises(UsageError, match=r"3 of 3 .* 1919 pixels apart, .* --size 1919xHEIGHT"):
        decode(tmp_path, rows, size=None)
    assert not out.exists()


def test_small_rows_down_the_columns_are_refused_with_both_readings(tmp_path):
    with pytest.raises(UsageError, match=r"--size 320xHEIGHT .* or, .* --size WIDTHx320 --rle-order columns"):
        decode(tmp_path, list_rows([car(480, 320).T]), size=None)


def test_names_may_begin_with_a_dot_and_a_slash(tmp_path, out):
    summary = decode(tmp_path, "./a.jpg,1 1\n./b/c.jpg,1 1\na.png,1 1\n")
    assert lines_and_names(summary.failures) == [(4, "a.png")]
    assert names_in(out) == ["a.png", "b", "b/c.png"]


@pytest.mark.parametrize("order", [None, "rows"])
def test_single_rows_of_another_size_fail(tmp_path, out, order):
    rows = list_rows([car(96, 64), car(96, 64), car(60, 50), car(96, 64)])
    summary = decode(tmp_path, rows, size=(96, 64), order=order)
    assert summary.masks == (4 if order else 3)
    if order:
        return
    (failure,) = summary.failures
    assert (failure.id, failure.stage) == ("2.jpg", "decode")
    assert failure.reason.startswith(
        "it does not look like a mask of 96x64: the lines of the mask are 60 pixels apart."
    )
    np.testing.assert_array_equal(pixels(out / "3.png"), car(96, 64))


def test_rows_down_the_columns_are_refused_or_read_so(tmp_path, out):
    mask = car(96, 64)
    rows = f"a.jpg,{rle.encode(mask.T)}\n"
    with pytest.raises(UsageError, match=r"column-major.* --rle-order columns.* --size 64xHEIGHT"):
        decode(tmp_path, rows, (96, 64))
    assert not out.exists()
    assert decode(tmp_path, rows, (96, 64), order="columns").masks == 1
    np.testing.assert_array_equal(pixels(out / "a.png"), mask)
    assert decode(tmp_path, rows, (96, 64), order="rows", overwrite=True).masks == 1
    np.testing.assert_array_equal(np.ravel(pixels(out / "a.png")), mask.T.ravel())


ids = st.text("abcXYZ 0.,\"'=ä日\n_-", min_size=1, max_size=12).filter(
    lambda name: not (name.startswith(".") or name.endswith("_mask") or name.endswith("\r"))
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(ids, hnp.arrays(bool, (3, 5)), min_size=1, max_size=6),
    st.sampled_from([1, 8]),
    st.randoms(),
)
def test_submission_round_trip_is_byte_identical(tmp_path_factory, masks, mask_bits, random):
    folded = {name.casefold() for name in masks}
    if len(folded) < len(masks):
        return
    folder = tmp_path_factory.mktemp("round")
    names = list(masks)
    random.shuffle(names)
    write_rows(folder / "one.csv", ((name, rle.encode(masks[name])) for name in names))
    summary = decode_submission(folder / "one.csv", folder / "out", (5, 3), mask_bits=mask_bits, workers=1)
    assert (summary.masks, summary.failures) == (len(masks), ())
    assert list(find_masks(folder / "out")) == sorted(masks)
    write_submission(folder / "out", folder / "two.csv", (5, 3), sample=folder / "one.csv", workers=1)
    assert (folder / "two.csv").read_bytes() == (folder / "one.csv").read_bytes()


def test_bad_rows_do_not_stop_the_others(tmp_path, out):
    rows = [
        "a.jpg,1 2",
        "b.jpg,1 2 3",
        "c.jpg,3 1 1 1",
        "d.jpg,15 2",
        "e.jpg",
        "f.jpg,1 1,1",
        ",1 1",
        "a.png,2 2",
        "b.jpg,2 2",
        "",
        "g.jpg,",
    ]
    summary = decode(tmp_path, "\n".join(rows))
    assert (summary.masks, summary.empty) == (2, 1)
    assert names_below(out) == ["a.png", "g.png"]
    assert pixels(out / "a.png")[0] == [True, True, False, False, False]
    repeated = "has the same id, or one that many disks take for the same."
    expected = (
        (3, "b.jpg", "decode", "Pair 2 has a start (3) but no length."),
        (4, "c.jpg", "decode", "Pair 2 (1 1) overlaps the pair before it or is out of order."),
        (5, "d.jpg", "decode", "Pair 1 (15 2) ends beyond the image of 5x3 = 15 pixels."),
        (6, "e.jpg", "read", "a row is <photo>,<runs>, and this one has 1 field(s)."),
        (7, "f.jpg", "read", "a row is <photo>,<runs>, and this one has 3 field(s)."),
        (8, "", "read", "a row is <photo>,<runs>, and this one has no name."),
        (9, "a.png", "read", f"line 2 {repeated}"),
        (10, "b.jpg", "read", f"line 3 {repeated}"),
    )
    assert summary.failures == tuple(
        Failure(name, stage, reason, f"{tmp_path / 's.csv'}, line {line}")
        for line, name, stage, reason in expected
    )


OUTSIDE = ["../x", "a/../../x", "..", "/x", "/", "//x", "a/..", "../out/x"]
HIDDEN = [".x", "a/.x", ".carvana-batch/journal", ".", "a/./x"]


@pytest.mark.parametrize("name", [*OUTSIDE, *HIDDEN, "a//x", "a/", "_overlay/x", "_prob/a/x", "x\0", "\0"])
def test_names_that_have_no_place_in_the_folder(tmp_path, name):
    for suffix in ("", ".jpg"):
        (tmp_path / "s.csv").unlink(missing_ok=True)
        before = names_in(tmp_path)
        summary = decode(tmp_path, f"{name}{suffix},1 1\n")
        assert summary.masks == 0
        assert lines_and_names(summary.failures) == [(2, f"{name}{suffix}")]
        assert names_in(tmp_path) == sorted([*before, "s.csv"])
    if name in OUTSIDE:
        assert mask_name_problem(name).endswith("so its mask would lie outside of OUT.")


@pytest.mark.parametrize("name", ["x..", "a..b/x", "\\x", "C:x", "a\\..\\x", "~", "-", "%2e%2e"])
def test_names_that_only_look_as_if_they_led_out(name):
    assert mask_name_problem(name) == ""


def test_too_long_names_fail(tmp_path, out):
    limit = 255 - len(".png")
    rows = [
        f"{'a' * limit}.jpg,1 1",
        f"{'b' * (limit + 1)}.jpg,1 1",
        f"{'ä' * (limit // 2 + 1)}.jpg,1 1",
        f"{'c' * 255}/x.jpg,1 1",
        f"{'d' * 256}/x.jpg,1 1",
        f"{'e/' * 3000}x.jpg,1 1",
        f"{('f' * 200 + '/') * 19}x.jpg,1 1",
        "z.jpg,1 1",
    ]
    summary = decode(tmp_path, "\n".join(rows))
    too_long = [failure for failure in summary.failures if "name is too long" in failure.reason]
    assert [line for line, _ in lines_and_names(too_long)] == [3, 4, 6, 7]
    assert summary.masks + len(summary.failures) == len(rows)
    assert (out / f"{'a' * limit}.png").exists()
    assert (out / "z.png").exists()
    assert max(len(failure.id) for failure in summary.failures) <= unpack.MAX_NAME_CHARACTERS + 3


def test_names_refused_by_the_disk_do_not_stop_the_others(tmp_path, monkeypatch):
    """Some disks allow only shorter names, or only names that are valid text."""
    original = Path.open

    def refuse(path, *arguments, **options):
        if path.parent.name == "odd":
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    summary = decode(tmp_path, "odd/x.jpg,1 1\ny.jpg,1 1\n")
    assert lines_and_names(summary.failures) == [(2, "odd/x.jpg")]
    assert "File name too long" in summary.failures[0].reason
    assert summary.masks == 1


def test_obstructed_paths_do_not_stop_the_others(tmp_path, out):
    (out / "a.png").mkdir(parents=True)
    (out / "b").write_text("not a folder")
    summary = decode(tmp_path, "a.jpg,1 1\nb/x.jpg,1 1\nc.jpg,1 1\n", overwrite=True)
    assert [failure.id for failure in summary.failures] == ["a.jpg", "b/x.jpg"]
    assert "it is a folder" in summary.failures[0].reason
    assert names_below(out) == ["a.png", "b", "c.png"]


def test_links_cannot_lead_out_of_the_folder(tmp_path, out):
    (tmp_path / "elsewhere").mkdir()
    write_mask(tmp_path / "precious.png", [[1]])
    before = (tmp_path / "precious.png").read_bytes()
    (out / "inside").mkdir(parents=True)
    (out / "leaving").symlink_to(tmp_path / "elsewhere")
    (out / "staying").symlink_to("inside")
    (out / "a.png").symlink_to(tmp_path / "precious.png")
    (out / "b.png").symlink_to(tmp_path / "none.png")
    rows = "leaving/x.jpg,1 1\nleaving/deep/x.jpg,1 1\nstaying/x.jpg,1 1\na.jpg,1 1\nb.jpg,1 1\n"
    summary = decode(tmp_path, rows, overwrite=True)
    failed = [failure.id for failure in summary.failures]
    assert failed == ["leaving/x.jpg", "leaving/deep/x.jpg", "a.jpg", "b.jpg"]
    assert all("where a link leads" in failure.reason for failure in summary.failures)
    assert names_below(tmp_path / "elsewhere") == []
    assert (tmp_path / "precious.png").read_bytes() == before
    assert names_below(out / "inside") == ["x.png"]


def test_out_folder_may_be_a_link(tmp_path, out):
    (tmp_path / "real").mkdir()
    out.symlink_to("real")
    assert decode(tmp_path, "a/b.jpg,1 1\n").masks == 1
    assert names_in(tmp_path / "real") == ["a", "a/b.png"]


@pytest.mark.parametrize(
    ("first", "second"), [("a", "A"), ("a", "a_mask"), ("ä", "a\u0308"), ("x/a", "X/a"), ("a.jpg", "a.tiff")]
)
def test_indistinguishable_ids_fail(tmp_path, out, first, second):
    summary = decode(tmp_path, f"{first},1 1\n{second},2 1\n")
    (failure,) = summary.failures
    assert lines_and_names([failure]) == [(3, second)]
    assert failure.reason.split(" has")[0] == "line 2"
    assert summary.masks == len(find_masks(out)) == 1


def test_existing_masks_need_overwrite(tmp_path, out):
    rows = "".join(f"{number}.jpg,1 1\n" for number in range(8))
    decode(tmp_path, rows)
    (out / "7.png").unlink()
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError) as caught:
        decode(tmp_path, rows.replace("1 1", "2 2"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{out} holds masks of the same names. ")
    assert "--overwrite" in lines[0]
    assert lines[1:] == [
        "There already, of 8 masks: 7",
        *(f"  {out / f'{n}.png'}" for n in range(5)),
        "  ... and 2 more",
    ]
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert decode(tmp_path, rows.replace("1 1", "2 2"), overwrite=True).masks == 8
    assert pixels(out / "0.png")[0] == [False, True, True, False, False]


def test_mask_with_the_other_form_of_accents_is_in_the_way(tmp_path, out):
    write_mask(out / "e\u0308.png", [[1]])
    with pytest.raises(UsageError, match="masks of the same ids under other names"):
        decode(tmp_path, "\u00eb.jpg,1 1\n", overwrite=True)


def test_other_files_are_left_alone(tmp_path, out):
    write_mask(out / "other.png", [[1]])
    before = (out / "other.png").read_bytes()
    assert decode(tmp_path, "a.jpg,1 1\n").masks == 1
    assert (out / "other.png").read_bytes() == before
    assert names_below(out) == ["a.png", "other.png"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        ("a.jpg,1 1\n", "begins with the row 'a.jpg,1 1'"),
        ("img,rle_mask\n", "has a header and no rows"),
        ('img,rle_mask\na.jpg,1 1\n"b.jpg,1 1\n', "line 3: unexpected end of data"),
    ],
)
def test_unusable_csv_is_refused_and_nothing_written(tmp_path, out, content, reason):
    with pytest.raises(UsageError, match=rf"s\.csv.*{reason}"):
        decode_submission(write(tmp_path / "s.csv", content), out, (5, 3))
    assert not out.exists()


def test_truncated_csv_is_refused_and_nothing_written(tmp_path, out):
    rows = "".join(f"{number}.jpg,{number % 15 + 1} 1\n" for number in range(3000))
    path = write(tmp_path / "s.csv.gz", "img,rle_mask\n" + rows)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"s\.csv\.gz: it is damaged"):
        decode_submission(path, out, (5, 3))
    assert not out.exists()


def test_unusable_folder_and_size_are_refused(tmp_path, out):
    out.write_text("a file")
    with pytest.raises(UsageError, match=r"out is not a folder.*another OUT"):
        decode(tmp_path, "a.jpg,1 1\n")
    out.unlink()
    with pytest.raises(UsageError, match="--size 999999x999999 has more than"):
        decode(tmp_path, "a.jpg,1 1\n", (999_999, 999_999))
    assert not out.exists()


def test_full_disk_leaves_only_complete_masks(tmp_path, out, monkeypatch):
    written = []

    def write_file(path, content):
        if len(written) == 3:
            raise OutOfSpaceError("No space left")
        written.append(path)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(unpack, "write_file", write_file)
    with pytest.raises(OutOfSpaceError):
        decode(tmp_path, "".join(f"{number}.jpg,1 1\n" for number in range(9)), workers=1)
    assert names_below(out) == ["0.png", "1.png", "2.png"]


def test_disk_error_leaves_no_partial_mask(tmp_path, out, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        decode(tmp_path, "a.jpg,1 1\n")
    assert [name for name in names_below(out) if not name.startswith(TEMPORARY_PREFIX)] == []
    assert names_below(out) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_not_read_far_ahead(tmp_path, monkeypatch, workers):
    """No row is read long before the masks of earlier rows are written, however many there are."""
    count = 3000
    read_lines = unpack.read_lines
    passes = []
    max_ahead = 0

    def read(*arguments):
        passes.append(0)
        for line in read_lines(*arguments):
            passes[-1] += 1
            yield line

    def written(done, total):
        nonlocal max_ahead
        assert total == count
        max_ahead = max(max_ahead, passes[-1] - done)

    monkeypatch.setattr(unpack, "read_lines", read)
    monkeypatch.setattr(unpack, "write_file", lambda path, content: None)
    rows = "".join(f"{number}.jpg,1 1\n" for number in range(count))
    assert decode(tmp_path, rows, workers=workers, on_progress=written).masks == count
    assert passes == [count + 1, count + 1]
    assert max_ahead <= unpack.CHUNK_ROWS + 1 <= 4 * TASKS_PER_WORKER + 1


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS accepts only names that are valid text")
def test_undecodable_name_keeps_its_bytes(tmp_path, out):
    assert decode(tmp_path, "\udcff.jpg,1 1\n").masks == 1
    assert [os.fsencode(path.name) for path in out.iterdir()] == [b"\xff.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["car_01_mask.gif", "car_01.tif", "car_01_mask.png"])
def test_same_ids_under_other_names_are_refused(tmp_path, name, overwrite):
    (tmp_path / "rows.csv").write_text("img,rle_mask\ncar_01.jpg,1 1\n")
    (tmp_path / "out").mkdir()
    Image.new("1", (4, 4)).save(tmp_path / "out" / name)
    with pytest.raises(UsageError, match=name):
        decode_submission(tmp_path / "rows.csv", tmp_path / "out", (4, 4), overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
