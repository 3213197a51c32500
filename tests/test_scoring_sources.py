import gzip
import zipfile

import numpy as np
import pytest
from helpers import write_mask

from carvana_batch.errors import ImageError, UsageError
from carvana_batch.scoring.sources import MaskFolder, MaskRows, open_masks, read_pair

TEXT = "img,rle_mask\nb.jpg,2 2\na.jpg,1 1 6 1\nlong.jpg,6 2\nempty.jpg,\n"


def write_rows_file(path):
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(TEXT.encode()))
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.csv", TEXT)
    else:
        path.write_text(TEXT)
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "ROWS.ZIP", "rows.zip"])
def test_rows_from_every_file_format(tmp_path, name):
    rows = open_masks(write_rows_file(tmp_path / name), advice="")
    assert isinstance(rows, MaskRows)
    assert list(rows.ids) == ["a", "b", "empty", "long"]
    np.testing.assert_array_equal(rows.read("a", (3, 2)).to_bool(), [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(rows.read("a", (2, 3)).to_bool(), [[1, 0], [0, 0], [0, 1]])
    assert not rows.read("empty", (3, 2)).to_bool().any()
    with pytest.raises(ImageError, match=r"row of long in .*Pair 1 \(6 2\)"):
        rows.read("long", (3, 2))


def test_folder_may_be_named_like_a_file(tmp_path):
    write_mask(tmp_path / "masks.csv" / "a_mask.png", [[1, 0]])
    folder = open_masks(tmp_path / "masks.csv", advice="")
    assert isinstance(folder, MaskFolder)
    assert list(folder.ids) == ["a"]


def test_neither_folder_nor_rows_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty"):
        with pytest.raises(UsageError, match=rf"{name}.*\. Do this\.$"):
            open_masks(tmp_path / name, advice="Do this.")
    with pytest.raises(UsageError, match=r"missing\.csv: No such file"):
        open_masks(tmp_path / "missing.csv", advice="")


def test_row_takes_the_size_of_the_other_mask(tmp_path):
    rows = open_masks(write_rows_file(tmp_path / "rows.csv"), advice="")
    write_mask(tmp_path / "gt" / "b.png", [[0, 1], [1, 0], [0, 0]])
    folder = open_masks(tmp_path / "gt", advice="")
    for sources in [(rows, folder), (folder, rows)]:
        for mask in read_pair(*sources, ("b", "b"), (5, 5)):
            np.testing.assert_array_equal(mask.to_bool(), [[0, 1], [1, 0], [0, 0]])
    one, other = read_pair(rows, rows, ("b", "b"), (5, 1))
    np.testing.assert_array_equal(one.to_bool(), [[0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(other.to_bool(), one.to_bool())
    first, second = read_pair(rows, folder, ("b", "b"), (5, 5)), read_pair(folder, folder, ("b", "b"), (5, 5))
    assert [mask.width for mask in (*first, *second)] == [2] * 4


def test_each_mask_comes_from_its_own_source(tmp_path):
    rows = open_masks(write_rows_file(tmp_path / "rows.csv"), advice="")
    write_mask(tmp_path / "gt" / "b.png", [[1, 1, 1]])
    folder = open_masks(tmp_path / "gt", advice="")
    assert [mask.to_bool().sum() for mask in read_pair(rows, folder, ("b", "b"), (5, 5))] == [2, 3]
    assert [mask.to_bool().sum() for mask in read_pair(folder, rows, ("b", "b"), (5, 5))] == [3, 2]
