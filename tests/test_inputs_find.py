"""Which files become photos, under which keys, in which order; and what is refused."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana_batch.decode.photo import read_image
from carvana_batch.errors import ImageError, UsageError
from carvana_batch.inputs import find as inputs
from carvana_batch.inputs.find import REPEATED, Found, find_images, read_file_list, take_shard
from carvana_batch.inputs.keys import refuse_clashes, refuse_same_ids
from carvana_batch.text import shown
from carvana_batch.values import ImageRef


def make(folder: Path, *names: str) -> None:
    """Create empty files, with their folders; ``names`` in any order."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def keys(found: Found) -> list[str]:
    return [ref.key for ref in found.refs]


def refs_of(*names: str) -> list[ImageRef]:
    return [ImageRef(name.rpartition(".")[0], Path(name)) for name in names]


# ---- folders


def test_a_folder_gives_sorted_posix_keys_without_suffix(tmp_path: Path) -> None:
    make(tmp_path, "b/z.PNG", "b/a.jpeg", "a.JPG", "c.v2.tif", "B.webp", "b/deep/er/x.bmp", "g.gif", "t.tiff")
    found = find_images(tmp_path)
    assert keys(found) == ["B", "a", "b/a", "b/deep/er/x", "b/z", "c.v2", "g", "t"]
    assert found.refs[1].path == tmp_path / "a.JPG"
    assert found.ignored == {}
    assert found.ignored_line == ""


@pytest.mark.parametrize("seed", range(3))
def test_the_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    make(tmp_path, *(f"{letter}/{number}.jpg" for letter in "abc" for number in range(5)))
    expected = find_images(tmp_path)
    listing = inputs.list_folder

    def shuffled(folder: str) -> list[os.DirEntry[str]]:
        entries = list(listing(folder))
        random.Random(seed).shuffle(entries)
        return entries

    monkeypatch.setattr(inputs, "list_folder", shuffled)
    again = find_images(tmp_path)
    assert (list(again.refs), again.ignored) == (list(expected.refs), expected.ignored)


def test_hidden_and_foreign_files_are_counted_not_taken(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a.jpg",
        ".b.jpg",
        ".git/c.jpg",
        "notes.txt",
        "more/notes.TXT",
        "old.txt",
        "README",
        "x.mp4",
    )
    found = find_images(tmp_path)
    assert keys(found) == ["a"]
    assert found.ignored == {
        "hidden files and folders": 2,
        "files ending in .txt": 2,
        "files ending in .TXT": 1,
        "files without suffix": 1,
        "files ending in .mp4": 1,
    }
    assert found.ignored_line.startswith("2 × files ending in .txt, 2 × hidden files and folders, 1 × ")


def test_many_kinds_of_foreign_files_still_fit_one_line(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", *(f"log.{number:03}" for number in range(500)))
    line = find_images(tmp_path).ignored_line
    assert line.endswith("494 × other")
    assert len(line) < 250


def test_a_folder_named_like_a_photo_is_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "x.jpg/y.jpg")
    assert keys(find_images(tmp_path)) == ["x.jpg/y"]


def test_the_out_folder_below_the_photos_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "masks/a.png", "masks2/b.png")
    found = find_images(tmp_path, exclude=tmp_path / "masks2" / ".." / "masks")
    assert keys(found) == ["a", "masks2/b"]
    assert found.ignored == {"the out folder": 1}


def test_odd_names_are_kept_to_the_byte(tmp_path: Path) -> None:
    names = [b"new\nline.jpg", b"\xff\xfe.jpg", "grün.jpg".encode(), b" .jpg", b"x" * 251 + b".jpg"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    found = find_images(tmp_path)
    assert {os.fsencode(ref.path.name) for ref in found.refs} == set(names)
    assert {os.fsencode(ref.key) + b".jpg" for ref in found.refs} == set(names)
    assert all(ref.path.exists() for ref in found.refs)


def test_a_pipe_named_like_a_photo_is_not_taken(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    found = find_images(tmp_path)
    assert keys(found) == ["a"]
    assert found.ignored == {"pipes, sockets and devices": 1}


def test_relative_folders_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert list(find_images(Path("in")).refs) == [ImageRef("a", Path("in/a.jpg"))]
    assert list(find_images(Path()).refs) == [ImageRef("in/a", Path("in/a.jpg"))]


# ---- links


def test_links_below_the_folder(tmp_path: Path) -> None:
    make(tmp_path, "in/real/a.jpg")
    (tmp_path / "in/link.jpg").symlink_to("real/a.jpg")
    (tmp_path / "in/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "in/self.jpg").symlink_to("self.jpg")
    (tmp_path / "in/folder").symlink_to("real")
    found = find_images(tmp_path / "in")
    assert keys(found) == ["gone", "link", "real/a", "self"]  # the broken ones fail when they are read
    assert found.ignored == {"links to folders (use --follow-links)": 1}
    followed = find_images(tmp_path / "in", follow_links=True)
    assert keys(followed) == ["folder/a", "gone", "link", "real/a", "self"]


def test_links_out_of_the_folder_are_reported(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jpg", "in2/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "in/b.jpg").symlink_to(tmp_path / "in2/b.jpg")  # "in2" begins like "in"
    (tmp_path / "in/c.jpg").symlink_to("../elsewhere/c.jpg")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    found = find_images(tmp_path / "in")
    assert keys(found) == ["a"]
    assert found.ignored == {
        "links leading out of the folder (use --follow-links)": 2,
        "links to folders (use --follow-links)": 1,
    }
    assert keys(find_images(tmp_path / "in", follow_links=True)) == ["a", "b", "c", "more/c"]


def test_a_folder_that_is_itself_a_link_is_no_way_out(tmp_path: Path) -> None:
    make(tmp_path, "real/a.jpg")
    (tmp_path / "real/b.jpg").symlink_to("a.jpg")
    (tmp_path / "in").symlink_to("real")
    assert keys(find_images(tmp_path / "in")) == ["a", "b"]


def test_loops_of_folders_end(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jpg", "b/y.jpg")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/to_b").symlink_to("../b")
    (tmp_path / "b/to_a").symlink_to("../a")
    found = find_images(tmp_path, follow_links=True)
    assert keys(found) == ["a/to_b/y", "a/x", "b/to_a/x", "b/y"]
    assert found.ignored["links back to a folder above them"] >= 3


def test_a_folder_of_links_only_says_what_to_do(tmp_path: Path) -> None:
    make(tmp_path, "photos/a.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").symlink_to("../photos/a.jpg")
    with pytest.raises(UsageError, match=r"1 × links leading out of the folder \(use --follow-links\)"):
        find_images(tmp_path / "in")


# ---- single photos and errors


def test_a_single_photo(tmp_path: Path) -> None:
    make(tmp_path, "my car.v2.JPG", "IMG_1")
    assert list(find_images(tmp_path / "my car.v2.JPG").refs) == [
        ImageRef("my car.v2", tmp_path / "my car.v2.JPG")
    ]
    assert keys(find_images(tmp_path / "IMG_1")) == ["IMG_1"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file or folder .*/nothing"):
        find_images(tmp_path / "nothing")


def test_an_empty_folder_is_named_with_the_suffixes(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    with pytest.raises(UsageError) as caught:
        find_images(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert all(suffix in str(caught.value) for suffix in (".bmp, ", ".heic, ", ".jpg, ", ".webp there"))
    assert "1 × files ending in .txt" in str(caught.value)


def test_an_unreadable_subfolder_is_not_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg", "secret/b.jpg")
    scan = os.scandir

    def denied(folder: str) -> object:
        if folder.endswith("secret"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", denied)  # for root may read everything
    with pytest.raises(UsageError, match=r"Cannot read .*/secret: Permission denied"):
        find_images(tmp_path)


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is neither a folder nor a photo"):
        find_images(tmp_path / "pipe")


# ---- lists of files


def listed(data: bytes) -> Found:
    return read_file_list(io.BytesIO(data))


def test_a_list_of_files() -> None:
    found = listed(b"b/two.jpg\n\n  \na/one.tar.png\r\n./b//two.jpg\n/data/three.jpg\nno_suffix")
    assert list(found.refs) == [
        ImageRef("a/one.tar", Path("a/one.tar.png")),
        ImageRef("b/two", Path("b/two.jpg")),
        ImageRef("data/three", Path("/data/three.jpg")),
        ImageRef("no_suffix", Path("no_suffix")),
    ]
    assert found.ignored == {"repeated lines": 1}


def test_a_list_with_nul_bytes_may_hold_any_name() -> None:
    found = listed(b"new\nline.jpg\0\xff.jpg\0 spaces .jpg\0end\r\0")
    assert [os.fsencode(ref.path) for ref in found.refs] == [
        b" spaces .jpg",
        b"end\r",
        b"new\nline.jpg",
        b"\xff.jpg",
    ]
    assert [os.fsencode(key) for key in keys(found)] == [b" spaces ", b"end\r", b"new\nline", b"\xff"]


@pytest.mark.parametrize("on_disk", ["gr\u00fcn.jpg", "gru\u0308n.jpg"])
def test_a_listed_name_is_taken_as_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(on_disk).touch()
    found = listed("gr\u00fcn.jpg\ngru\u0308n.jpg\n".encode())
    assert [str(ref.path) for ref in found.refs] == [on_disk]
    assert found.ignored == {REPEATED: 1}


def test_a_list_in_a_file(tmp_path: Path) -> None:
    list_file = tmp_path / "list.txt"
    list_file.write_bytes(b"\xef\xbb\xbf" + "grün.jpg\n".encode())
    assert keys(read_file_list(list_file)) == ["grün"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a.jpg\nb/../../c.jpg\n", r'<list>, line 2: b/\.\./\.\./c\.jpg contains "\.\."'),
        (b"..\n", r"line 1"),
        (b"/\n", r"line 1: / is not a file"),
        (b"a.jpg\n.\n", r"line 2: \. is not a file"),
        (b"\n \n", "names no photos"),
        (b"", "names no photos"),
        ("a.jpg\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_bad_list_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        listed(data)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file or folder .*list\.txt"):
        read_file_list(tmp_path / "list.txt")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name), min_size=1))
def test_keys_of_lists_stay_below_the_out_folder(names: list[bytes]) -> None:
    try:
        found = listed(b"\0".join(names) + b"\0")
    except UsageError:
        return
    for key in keys(found):
        assert os.path.normpath(f"/out/{key}.png") == f"/out/{key}.png"


# ---- clashes


@pytest.fixture(params=["hashes differ", "all hashes are the same"])
def hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "all hashes are the same":
        monkeypatch.setattr(inputs, "hash", lambda _: 7, raising=False)


@pytest.mark.usefixtures("hashes")
def test_photos_with_their_own_masks_pass() -> None:
    refuse_clashes(refs_of("a.jpg", "b.jpg", "x/a.jpg", "a.b.jpg", "a/b.jpg", "x.jpg", "y.png/a.jpg"))


@pytest.mark.usefixtures("hashes")
@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("x/a.jpg", "x/a.png", "write the same mask x/a.png"),
        ("car.jpg", "Car.jpg", "do not tell their names apart"),
        ("Straße.jpg", "STRASSE.jpg", "do not tell their names apart"),
        ("gr\u00fcn.jpg", "gru\u0308n.jpg", "do not tell their names apart"),
        ("A/x.jpg", "a/X.jpg", "do not tell their names apart"),
        ("a.jpg", "a.png/b.jpg", "both as a mask and as a folder"),
        ("a.jpg", "A.PNG/deep/b.jpg", "both as a mask and as a folder"),
    ],
)
def test_photos_that_would_write_one_mask_are_refused(first: str, second: str, reason: str) -> None:
    for pair in [(first, second), (second, first)]:
        with pytest.raises(UsageError) as caught:
            refuse_clashes(refs_of("0.jpg", *pair, "z.jpg"))
        message = str(caught.value)
        assert shown(first) in message
        assert shown(second) in message
        assert reason in message.replace("x/a.jpg", "")


def test_the_same_photo_twice_is_refused() -> None:
    ref = ImageRef("a", Path("a.jpg"))
    for other in (ImageRef("a", Path("b.jpg")), ref):
        with pytest.raises(UsageError, match="same mask"):
            refuse_clashes([ref, other])


def test_the_first_photo_of_the_same_mask_is_named() -> None:
    with pytest.raises(UsageError, match=r"^b\.jpg and b\.png would"):
        refuse_clashes(refs_of("a.jpg", "b.jpg", "b.png", "b.gif"))


def test_pairs_of_photos_that_clash_are_counted() -> None:
    photos = refs_of("a.jpg", "a.png", "b.jpg", "b.png", "c.jpg", "c_mask.jpg")
    with pytest.raises(UsageError, match=r"^a\.jpg and a\.png would .* In all, 2 pairs clash like this\.$"):
        refuse_clashes(photos)
    with pytest.raises(UsageError, match=r"^a\.jpg and a\.png would .* In all, 3 pairs clash like this\.$"):
        refuse_same_ids(photos)


# ---- shards


@given(total=st.integers(0, 50), count=st.integers(1, 60))
def test_shards_share_the_photos_evenly(total: int, count: int) -> None:
    refs = refs_of(*(f"{number:03}.jpg" for number in range(total)))
    shuffled = random.Random(total).sample(refs, total)
    shards = [list(take_shard(shuffled, index, count)) for index in range(1, count + 1)]
    assert sorted((ref for shard in shards for ref in shard), key=lambda ref: ref.key) == refs
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shards == [list(take_shard(refs, index, count)) for index in range(1, count + 1)]


@pytest.mark.parametrize(("index", "count"), [(0, 3), (4, 3), (1, 0), (-1, 3)])
def test_a_shard_that_does_not_exist_is_refused(index: int, count: int) -> None:
    with pytest.raises(UsageError, match=f"--shard {index}/{count}"):
        take_shard(refs_of("a.jpg"), index, count)


# ---- names in messages


@given(st.binary(max_size=20).map(os.fsdecode))
def test_shown_names_can_be_printed_on_one_line(name: str) -> None:
    text = shown(name)
    text.encode("utf-8")
    assert text.isprintable()


def test_shown_names_are_otherwise_unchanged() -> None:
    assert shown(Path("grün/a b.jpg")) == "grün/a b.jpg"
    assert shown("a\nb\udcff") == r"a\nb\udcff"


def test_all_suffixes_of_jpeg_are_photos(tmp_path: Path) -> None:
    names = ["a.jpg", "b.JPEG", "c.jpe", "d.jfif", "e.JFIF"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [ref.path.name for ref in find_images(tmp_path).refs] == names


def test_all_formats_of_phones_are_photos(tmp_path: Path) -> None:
    make(tmp_path, "a.heic", "b.HEIF", "c.hif", "d.avif", "e.jxl", "f.jp2")
    assert keys(find_images(tmp_path)) == ["a", "b", "c", "d", "e", "f"]


def test_images_that_are_not_read_are_not_overlooked(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.CR2", "sub/c.psd", "d.dng")
    found = find_images(tmp_path)
    assert keys(found) == ["a", "b.CR2", "d.dng", "sub/c.psd"]
    assert found.ignored == {}


def test_raw_files_beside_their_photo_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.NEF", "sub/b.jpg", "b.nef", "sub/b.xcf")
    found = find_images(tmp_path)
    assert keys(found) == ["a", "b.nef", "sub/b"]
    assert found.ignored == {"raw files and other images beside a photo of the same name": 2}


def test_only_photos_of_the_same_name_pass_over_others(tmp_path: Path) -> None:
    make(tmp_path, "2024.jpg", "car.jpg")
    (tmp_path / "2024.05").mkdir()
    for name in ("2024.05/IMG", "car"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe0")
    found = find_images(tmp_path)
    assert keys(found) == ["2024", "2024.05/IMG", "car"]
    assert found.ignored == {"raw files and other images beside a photo of the same name": 1}


def test_unknown_suffixes_are_told_by_first_bytes(tmp_path: Path) -> None:
    contents = {
        "jpeg": b"\xff\xd8\xff\xe0",
        "b.001": b"\x89PNG\r\n\x1a\n",
        "c.dat": b"8BPS\0\1",
        "d.x": b"BM" + bytes(12) + b"\x28\0\0\0",
        "text": b"BMW, and other cars",
        "line.x": b"\xff\x0atext",
        "e.jpg~": b"\xff\xd8\xff\xe0",
        "f.tmp": b"\xff\xd8\xff\xe0",
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    found = find_images(tmp_path)
    assert keys(found) == ["b.001", "c.dat", "d.x", "jpeg"]
    assert sum(found.ignored.values()) == 6


def test_files_of_known_suffixes_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg", "b.heic", "c.txt", "d.json", "e.nef", "f.psd")

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(inputs, "is_image", fail)
    assert keys(find_images(tmp_path)) == ["a", "b", "e.nef", "f.psd"]


@pytest.mark.parametrize(
    ("name", "head", "called"),
    [
        ("a.dcm", bytes(128) + b"DICM", "a DICOM file"),
        ("a", bytes(128) + b"DICM", "a DICOM file"),
        ("a.fit", b"SIMPLE  =                    T / standard FITS", "a FITS file"),
        ("a.fits", b"anything", "a FITS file"),
        ("a.ico", b"\0\0\1\0\1\0", "an ICO file"),
        ("a.icns", b"icns\0\0\1\0", "an ICNS file"),
        ("a.jng", b"\x8bJNG\r\n\x1a\n", "a JNG file"),
        ("a.bpg", b"BPG\xfb", "a BPG file"),
        ("a.flif", b"FLIF", "a FLIF file"),
        ("a.jxs", b"\xff\x10\xff\x50", "a JPEG XS file"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file"),
        ("a.sgi", b"\1\xda\1\1", "an SGI file"),
        ("a.raw", b"anything", "a raw file of a camera"),
    ],
)
def test_images_that_are_not_read_are_found_and_named(
    tmp_path: Path, name: str, head: bytes, called: str
) -> None:
    (tmp_path / name).write_bytes(head)
    assert keys(find_images(tmp_path)) == [name]
    with pytest.raises(ImageError, match=f"is {called}, which is not read"):
        read_image(tmp_path / name)
