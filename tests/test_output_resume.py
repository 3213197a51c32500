import os
from dataclasses import replace

import pytest

from carvana_batch.errors import UsageError
from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.output.journal import Entry
from carvana_batch.output.paths import OutPaths
from carvana_batch.output.resume import find_missing
from carvana_batch.values import ImageRef

MASK = b"mask"


@pytest.fixture
def paths(tmp_path):
    return OutPaths(tmp_path / "out")


@pytest.fixture
def photo(tmp_path):
    return make_photo(tmp_path, "a/b")


def make_photo(folder, key):
    path = folder / "in" / f"{key}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"photo")
    return ImageRef(key, path)


def write_mask(paths, ref):
    """Write the mask of a photo; return its journal entry by its key."""
    mask = paths.mask(ref.key)
    mask.parent.mkdir(parents=True, exist_ok=True)
    mask.write_bytes(MASK)
    source = ref.path.stat()
    entry = Entry(ref.key, str(ref.path), source.st_size, source.st_mtime_ns, mask_bytes=len(MASK))
    return {ref.key: entry}


def missing(paths, entries, *refs):
    return [ref.key for ref in find_missing(PhotoList.of(refs), entries, paths)]


def test_all_photos_are_missing_from_a_new_folder(tmp_path, paths, photo):
    assert missing(paths, {}, photo, make_photo(tmp_path, "other")) == ["a/b", "other"]
    assert not paths.root.exists()


def test_a_photo_with_a_complete_mask_is_done(tmp_path, paths, photo):
    entries = write_mask(paths, photo)
    assert missing(paths, entries, photo, make_photo(tmp_path, "other")) == ["other"]


def test_an_incomplete_mask_is_missing(paths, photo):
    entries = write_mask(paths, photo)
    mask = paths.mask("a/b")
    mask.write_bytes(MASK[:-1])
    assert missing(paths, entries, photo) == ["a/b"]
    mask.unlink()
    assert missing(paths, entries, photo) == ["a/b"]
    mask.write_bytes(MASK)
    assert missing(paths, entries, photo) == []


def test_a_photo_without_its_extra_files_is_missing(paths, photo):
    entries = write_mask(paths, photo)
    kinds = ("overlay", "prob")
    assert list(find_missing(PhotoList.of([photo]), entries, paths, kinds)) == [photo]
    for kind in kinds:
        extra = paths.extra(kind, "a/b")
        extra.parent.mkdir(parents=True)
        extra.write_bytes(b"extra")
    assert not find_missing(PhotoList.of([photo]), entries, paths, kinds)
    paths.extra("prob", "a/b").write_bytes(b"")
    assert list(find_missing(PhotoList.of([photo]), entries, paths, kinds)) == [photo]
    paths.extra("prob", "a/b").unlink()
    assert list(find_missing(PhotoList.of([photo]), entries, paths, kinds)) == [photo]
    assert not find_missing(PhotoList.of([photo]), entries, paths, ("overlay",))


def test_the_mask_of_a_changed_photo_is_missing(paths, photo):
    entries = write_mask(paths, photo)
    status = photo.path.stat()
    os.utime(photo.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert missing(paths, entries, photo) == ["a/b"]
    photo.path.write_bytes(b"longer photo")
    os.utime(photo.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert missing(paths, entries, photo) == ["a/b"]
    photo.path.unlink()
    assert missing(paths, entries, photo) == ["a/b"]


def test_a_mask_without_an_entry_is_missing(paths, photo):
    write_mask(paths, photo)
    assert missing(paths, {}, photo) == ["a/b"]


def test_a_failed_photo_is_missing(paths, photo):
    (entry,) = write_mask(paths, photo).values()
    # An empty mask is as long as the journal says of a failed photo.
    paths.mask("a/b").write_bytes(b"")
    failed = replace(entry, mask_bytes=0, stage="decode", reason="is empty")
    assert missing(paths, {"a/b": failed}, photo) == ["a/b"]


def test_the_mask_of_another_photo_is_not_replaced(tmp_path, paths, photo):
    entries = write_mask(paths, photo)
    other = make_photo(tmp_path / "more", "a/b")
    other.path.write_bytes(b"another photo")
    message = (
        r"a/b\.png is the mask of .*/in/a/b\.jpg, and would be replaced by that of .*/more/in/a/b\.jpg\."
    )
    with pytest.raises(UsageError, match=message):
        missing(paths, entries, other)
    assert missing(paths, entries, photo) == []


def test_the_mask_of_a_moved_photo_may_be_replaced(tmp_path, paths, photo):
    entries = write_mask(paths, photo)
    other = make_photo(tmp_path / "more", "a/b")
    other.path.write_bytes(b"another photo")
    photo.path.rename(tmp_path / "moved.jpg")
    assert missing(paths, entries, other) == ["a/b"]


def test_a_photo_is_recognised_by_another_path(tmp_path, paths, photo):
    entries = write_mask(paths, photo)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    linked = ImageRef("a/b", tmp_path / "link" / "a" / "b.jpg")
    assert missing(paths, entries, linked) == []
    paths.mask("a/b").unlink()
    assert missing(paths, entries, linked) == ["a/b"]
