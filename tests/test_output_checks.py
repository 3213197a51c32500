import os
from pathlib import Path

import pytest

from carvana_batch.errors import UsageError
from carvana_batch.files import check_out_folder
from carvana_batch.inputs import find as inputs
from carvana_batch.inputs.find import find_images
from carvana_batch.options import EXTRA_FILES, Options
from carvana_batch.output.checks import check_request
from carvana_batch.values import ImageRef


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"file")


def refs(*keys):
    return [ImageRef(key, Path(f"in/{key}.jpg")) for key in keys]


@pytest.mark.parametrize("folder", [folder for folder, _ in EXTRA_FILES.values()])
def test_photos_in_a_folder_named_like_that_of_an_extra(tmp_path, folder):
    with pytest.raises(UsageError, match=rf"in/{folder}/a\.jpg cannot .* lie in {folder}, where submit"):
        check_request(refs("x", f"{folder}/a"), tmp_path / "out", Options())
    check_request(refs(f"b/{folder}/a", f"{folder}s/a", folder), tmp_path / "out", Options())


@pytest.mark.parametrize("key", [".a", ".b/a", "b/.c/a", "b/.a"])
def test_masks_that_would_be_hidden(tmp_path, key):
    with pytest.raises(UsageError, match="would be hidden"):
        check_request(refs(key), tmp_path / "out", Options())


@pytest.mark.parametrize("collide", [False, True])
def test_two_photos_whose_masks_have_one_id(tmp_path, monkeypatch, collide):
    if collide:
        monkeypatch.setattr(inputs, "hash", lambda _: 7, raising=False)
    with pytest.raises(UsageError, match=r"in/b/a\.jpg and in/b/a_mask\.jpg .*two of the same photo"):
        check_request(refs("a", "b/a", "b/a_mask"), tmp_path / "out", Options())
    check_request(refs("a", "b/a_mask", "_mask", "c/_mask"), tmp_path / "out", Options())


def test_two_photos_with_one_mask(tmp_path):
    both = [ImageRef("a", Path("in/a.jpg")), ImageRef("a", Path("in/a.png"))]
    with pytest.raises(UsageError, match=r"in/a\.jpg and in/a\.png would write the same mask"):
        check_request(both, tmp_path / "out", Options())


def test_a_mask_in_the_place_of_a_photo(tmp_path):
    touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.png")
    photos = find_images(tmp_path / "in").refs
    with pytest.raises(UsageError, match=r"in/b\.png would overwrite a photo"):
        check_request(photos, tmp_path / "in", Options(overwrite=True))
    link = tmp_path / "out" / "a.png"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "in" / "b.png")
    with pytest.raises(UsageError, match=r"out/a\.png would overwrite a photo"):
        check_request(photos, tmp_path / "out", Options(overwrite=True))


def test_the_photo_that_would_be_replaced_is_named(tmp_path):
    touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.png", tmp_path / "out" / "a.png")
    (tmp_path / "out" / "b.png").symlink_to(tmp_path / "in" / "b.png")
    with pytest.raises(UsageError, match=r"out/b\.png would overwrite a photo"):
        check_request(find_images(tmp_path / "in").refs, tmp_path / "out", Options(overwrite=True))


def test_an_extra_in_the_place_of_a_photo(tmp_path):
    touch(tmp_path / "_overlay" / "a.jpg")
    photos = find_images(tmp_path / "_overlay").refs
    with pytest.raises(UsageError, match=r"_overlay/a\.jpg would overwrite a photo"):
        check_request(photos, tmp_path, Options(extras=("overlay",), overwrite=True))
    check_request(photos, tmp_path, Options(extras=("panel",)))


def test_a_file_of_somebody_else_in_the_place_of_a_mask(tmp_path):
    touch(tmp_path / "in" / "a.jpg", tmp_path / "out" / "a.png", tmp_path / "out" / "b.png")
    photos = find_images(tmp_path / "in").refs
    with pytest.raises(UsageError, match=r"out/a\.png is there already, and not from an earlier run"):
        check_request(photos, tmp_path / "out", Options())
    check_request(photos, tmp_path / "out", Options(overwrite=True))
    (tmp_path / "out" / "a.png").unlink()
    check_request(photos, tmp_path / "out", Options())


def test_overwrite_and_shards_do_not_go_together(tmp_path):
    with pytest.raises(UsageError, match="--overwrite rewrites the journals"):
        check_request(refs("a"), tmp_path / "out", Options(overwrite=True, shard=(1, 2)))
    check_request(refs("a"), tmp_path / "out", Options(overwrite=True, shard=(1, 1)))


def test_the_true_masks_are_not_written_over(tmp_path):
    with pytest.raises(UsageError, match="OUT and --gt are both"):
        check_request(refs("a"), tmp_path, Options(truth=tmp_path / "x" / ".."))


def test_a_run_length_file_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="a submission is named"):
        check_request(refs("a"), tmp_path / "out", Options(rle_file=tmp_path / "rows.txt"))


def test_an_out_folder_that_cannot_be_made(tmp_path, monkeypatch):
    touch(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    for out in ("file", "file/out", tmp_path / "file" / "a"):
        with pytest.raises(UsageError, match=r"Cannot write into .*file.*: .*file is not a folder"):
            check_out_folder(Path(out))
    with pytest.raises(UsageError, match="File name too long"):
        check_out_folder(Path("x" * 300))
    for out in ("a/b", "a/b/c", "file/a/b"):
        with pytest.raises(UsageError, match=f"there is no folder {Path(out).parent}. Create it first"):
            check_out_folder(Path(out))
    check_out_folder(tmp_path / "a")
    check_out_folder(tmp_path)
    assert os.listdir() == ["file"]  # noqa: PTH208
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as it is: the tests may run as root
    with pytest.raises(UsageError, match=r"a: the folder .* is not open to writing"):
        check_out_folder(Path("a"))


@pytest.mark.parametrize("folder", ["", "in", "in/deeper"])
def test_photos_in_the_out_folder_are_refused(tmp_path, folder):
    photo = ImageRef("a", tmp_path / "out" / folder / "a.jpg")
    touch(photo.path)
    with pytest.raises(UsageError, match=r"lie in OUT, .*out, where submit and score would take them"):
        check_request([ImageRef("b", tmp_path / "b.jpg"), photo], tmp_path / "out", Options())
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match="lie in OUT"):
        check_request([photo], tmp_path / "link", Options())
    check_request([photo], tmp_path / "out2", Options())
    (tmp_path / "out" / folder / "masks").mkdir()
    check_request([photo], tmp_path / "out" / folder / "masks", Options())
