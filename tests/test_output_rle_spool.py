import errno
import os

import numpy as np
import pytest

from carvana_batch.errors import ImageError, OutOfSpaceError
from carvana_batch.files import WriteError
from carvana_batch.masks.png import encode_mask
from carvana_batch.output.journal import Entry
from carvana_batch.output.rle_spool import RunLengthSpool
from carvana_batch.values import PackedMask

KEYS = ("a", "b/ä\n", "\udcff", "c")


def entry_of(key, time=1, size=2):
    return Entry(key, f"in/{key}.jpg", size, time)


def rows_of(path, *entries, masks=None):
    with RunLengthSpool(path) as spool:
        return [(entry.key, runs) for entry, runs in spool.rows(entries, masks or fail_to_read)]


def fail_to_read(key):
    raise AssertionError(f"the mask of {key} was read")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rle.jsonl"


@pytest.fixture
def masks(tmp_path):
    """The path of each mask as a function of its key: a row of two pixels, the first of which is car."""
    mask = tmp_path / "mask.png"
    mask.write_bytes(encode_mask(PackedMask.from_bool(np.array([[True, False]]))))
    return lambda _key: mask


def test_rows_are_read_in_the_requested_order(path):
    entries = [entry_of(key) for key in KEYS]
    with RunLengthSpool(path) as spool:
        for entry in entries:
            spool.append(entry, f"1 {len(entry.key)}")
        rows = [(entry.key, runs) for entry, runs in spool.rows(reversed(entries), fail_to_read)]
    expected = [(key, f"1 {len(key)}") for key in reversed(KEYS)]
    assert rows == expected
    assert rows_of(path, *reversed(entries)) == expected


def test_missing_row_is_made_from_the_mask(path, masks):
    with RunLengthSpool(path) as spool:
        spool.append(entry_of("a"), "7 7")
    assert rows_of(path, entry_of("a"), entry_of("b"), masks=masks) == [("a", "7 7"), ("b", "1 1")]


@pytest.mark.parametrize("changed", [entry_of("a", time=5), entry_of("a", size=5)])
def test_outdated_row_is_made_again(path, masks, changed):
    with RunLengthSpool(path) as spool:
        spool.append(entry_of("a"), "7 7")
    assert rows_of(path, changed, masks=masks) == [("a", "1 1")]
    with RunLengthSpool(path) as spool:
        spool.append(changed, "8 8")
    assert rows_of(path, changed) == [("a", "8 8")]


def test_truncated_spool_loses_only_its_last_row(path, masks):
    with RunLengthSpool(path) as spool:
        spool.append(entry_of("a"), "7 7")
        spool.append(entry_of("b"), "8 8")
    content = path.read_bytes()
    for length in range(content.rindex(b"\n"), len(content)):
        path.write_bytes(content[:length])
        with RunLengthSpool(path) as spool:
            spool.append(entry_of("c"), "9 9")
        rows = rows_of(path, *map(entry_of, "abc"), masks=masks)
        assert rows == [("a", "7 7"), ("b", "1 1"), ("c", "9 9")], length


@pytest.mark.parametrize("line", [b"null", b"[]", b'["a", [2, 1]]', b"\0\0", b"1", b'{"a": 1}', b"\xff"])
def test_lines_that_are_no_row_are_ignored(path, masks, line):
    path.write_bytes(line + b"\n" + line)
    with RunLengthSpool(path) as spool:
        spool.append(entry_of("b"), "8 8")
    assert rows_of(path, entry_of("a"), entry_of("b"), masks=masks) == [("a", "1 1"), ("b", "8 8")]


def test_unreadable_mask_is_an_error(path, tmp_path):
    with pytest.raises(ImageError, match="deleted"):
        rows_of(path, entry_of("a"), masks=lambda _key: tmp_path / "deleted.png")


def test_full_disk(path, monkeypatch):
    def fail(_file, _line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("carvana_batch.output.rle_spool.append", fail)
    with (
        RunLengthSpool(path) as spool,
        pytest.raises(OutOfSpaceError, match=r"No space left for .*rle\.jsonl"),
    ):
        spool.append(entry_of("a"), "7 7")


def test_folder_in_place_of_the_spool(path):
    path.mkdir()
    with pytest.raises(WriteError, match=f"Cannot write .*rle.jsonl: {os.strerror(errno.EISDIR)}"):
        RunLengthSpool(path)
