"""Photos in ZIP and tar archives: masks are those of the unpacked photos, and nothing gets out of place."""

import errno
import gzip
import io
import json
import os
import random
import shutil
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import store, with_orientation, write_photo
from PIL import Image

from carvana_batch.archives import archive as archives
from carvana_batch.archives import gzip_file
from carvana_batch.archives.gzip_file import SeekableGzip
from carvana_batch.commands import group
from carvana_batch.demo import draw_photo
from carvana_batch.errors import CarvanaBatchError, OutOfSpaceError, UsageError

KINDS = ("zip", "tar", "tar.gz")


@pytest.fixture
def here(tmp_path, monkeypatch, model):
    """The current folder, with photos in ``in``; the temporary folder is empty before and after."""
    assert model  # loaded once, on one thread
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for number in range(3):
        write_photo(tmp_path / "in" / "sub" / f"{number}.jpg", seed=number)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no photo")
    (tmp_path / "in" / "notes.txt").write_text("notes")
    (tmp_path / "in" / ".hidden.jpg").touch()
    shutil.copy(tmp_path / "in" / "sub" / "0.jpg", tmp_path / "in" / "photo.unknown")
    yield tmp_path
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.fixture
def photo(here):
    return (here / "in" / "sub" / "0.jpg").read_bytes()


def predict(*arguments):
    fast = ("--precision", "fp32", "--model", "segunet-s", "--workers", "0")
    return CliRunner().invoke(group, ["predict", *fast, *map(str, arguments)])


def message_of(*arguments):
    result = predict(*arguments)
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


def pack(folder, kind, target):
    """Archive a folder, in an order that is not that of the names."""
    paths = sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True)
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in paths:
                archive.write(path, path.relative_to(folder))
    else:
        with tarfile.open(target, "w" if kind == "tar" else "w:gz") as archive:
            for path in paths:
                archive.add(path, path.relative_to(folder))


def write_zip(path, *members, flag=0):
    """A ZIP archive of (name, data); ``flag`` sets bits of the first one's flags in both of its headers."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members:
            archive.writestr(name, data)
    content = bytearray(path.read_bytes())
    content[6] |= flag
    content[content.index(b"PK\x01\x02") + 8] |= flag
    path.write_bytes(content)


def masks_in(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


@pytest.mark.parametrize(("kind", "workers"), [("zip", 0), ("tar", 2), ("tar.gz", 0), ("tgz", 2)])
def test_masks_and_report_are_those_of_the_unpacked_photos(here, kind, workers):
    pack(here / "in", kind, here / f"photos.{kind}")
    assert predict("in", "expected").exit_code == 3
    result = predict(f"photos.{kind}", "out", "--workers", workers)
    assert result.exit_code == 3, result.output
    assert f"failed: photos.{kind}/bad.jpg (decode): is not an image" in result.stderr
    assert "1 × files ending in .txt, 1 × hidden files and folders" in result.stdout
    assert masks_in(here / "out") == masks_in(here / "expected")
    assert len(masks_in(here / "out")) == 4
    assert (here / "out" / "report.csv").read_text() == (here / "expected" / "report.csv").read_text()
    assert json.loads((here / "out" / "run.json").read_text())["images"] is None
    journals = (path.read_text() for path in (here / "out" / ".carvana-batch").glob("journal*"))
    for text in (result.output, (here / "out" / "run.json").read_text(), *journals):
        assert "temporary" not in text


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_second_run_does_only_what_is_missing(here, kind):
    (here / "in" / "bad.jpg").unlink()
    name = f"photos.{kind}"
    pack(here / "in", kind, here / name)
    assert predict(name, "out", "--limit", 2).exit_code == 0
    plan = predict(name, "out", "--dry-run").output
    assert "2 of them done already, 2 to do" in plan
    assert f"  {name}/sub/2.jpg -> out/sub/2.png" in plan
    assert "2 masked, 2 done before" in predict(here / name, "out").output  # under another path
    # Extra files of photos that are masked already are made of photos in the archive as well.
    result = predict(name, "out", "--save", "panel")
    assert result.exit_code == 0, result.output
    assert predict(name, "again", "--save", "panel").exit_code == 0
    panels = sorted((here / "again" / "_panel").rglob("*.jpg"))
    assert len(panels) == 4
    for path in panels:
        assert path.read_bytes() == (here / "out" / path.relative_to(here / "again")).read_bytes()


def test_a_second_run_scores_turned_photos_alike(here):
    """For which it has to read the photo again."""
    picture = store(Image.fromarray(draw_photo(3, 1, (96, 64))[0]), 6)
    (here / "turned").mkdir()
    picture.save(here / "turned" / "x.jpg", exif=with_orientation(picture, 6).getexif())
    write_photo(here / "x.jpg", here / "truth" / "x_mask.gif", seed=3)
    pack(here / "turned", "zip", here / "a.zip")
    assert predict("turned", "expected", "--gt", "truth").exit_code == 0
    expected = (here / "expected" / "report.csv").read_text()
    assert "true mask turned" in expected
    for _ in range(2):
        assert predict("a.zip", "out", "--gt", "truth").exit_code == 0
        assert (here / "out" / "report.csv").read_text() == expected


def test_masks_of_another_archive_or_folder_are_not_replaced(here):
    photos = here / "in" / "sub"
    pack(photos, "zip", here / "first.zip")
    assert predict("first.zip", "out").exit_code == 0
    write_photo(photos / "0.jpg", seed=7)
    pack(photos, "zip", here / "second.zip")
    assert "is the mask of first.zip/0.jpg" in message_of("second.zip", "out")
    assert predict(photos, "folder").exit_code == 0
    assert "0.png is the mask of " in message_of("second.zip", "folder")
    (here / "second.zip").replace(here / "first.zip")
    assert "1 masked, 2 done before" in predict("first.zip", "out").output


def test_masks_of_another_archive_are_replaced_only_with_overwrite(here):
    photos = here / "in" / "sub"
    pack(photos, "zip", here / "first.zip")
    write_photo(photos / "0.jpg", seed=7)
    pack(photos, "zip", here / "second.zip")
    assert predict("first.zip", "out").exit_code == 0
    first = masks_in(here / "out")
    (here / "a.csv").write_text("image,decision,note\n0,reject,\n")
    assert "is the mask of first.zip/0.jpg" in message_of("second.zip", "out", "--files-from", "a.csv")
    assert masks_in(here / "out") == first
    assert predict("second.zip", "out", "--overwrite").exit_code == 0
    assert masks_in(here / "out") != first


def test_a_changed_photo_of_the_same_size_and_time_is_masked_again(here):
    """As programs write archives that are to be the same each time: all times are 1980."""
    for seed in (1, 2):
        photo = io.BytesIO()
        Image.fromarray(draw_photo(seed, 1, (96, 64))[0]).save(photo, "BMP")
        write_zip(here / "a.zip", (zipfile.ZipInfo("0.bmp"), photo.getvalue()))
        assert "1 masked" in predict("a.zip", "out").output
    assert "1 done before" in predict("a.zip", "out").output


@pytest.mark.parametrize(
    ("stored", "name"),
    [("café".encode(), "café"), ("cafe\u0301".encode(), "cafe\u0301"), (b"caf\x82", "café")],
)
def test_names_in_a_zip_may_be_utf_8_without_saying_so(here, photo, stored, name):
    """As those made by macOS; others, as of old Windows, are code page 437."""
    write_zip(here / "a.zip", ("x" * len(stored) + ".jpg", photo))
    content = (here / "a.zip").read_bytes()
    (here / "a.zip").write_bytes(content.replace(b"x" * len(stored), stored))
    assert predict("a.zip", "out").exit_code == 0
    assert list(masks_in(here / "out")) == [f"{name}.png"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_would_fill_the_memory_are_refused(here, photo, kind):
    with tarfile.open(here / "a.tar.gz", "w:gz") as archive:
        header, info = tarfile.TarInfo("x"), tarfile.TarInfo("0.jpg")
        header.type, header.size, info.size = kind, 2**21, len(photo)
        archive.addfile(header, io.BytesIO(bytes(2**21)))
        archive.addfile(info, io.BytesIO(photo))
    assert "an entry has a header of 2,097,152 bytes" in message_of("a.tar.gz", "out")


@pytest.mark.parametrize("name", ["../out.jpg", "/tmp/out.jpg", "a/../../out.jpg", "..\\out.jpg", "a/.."])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_refused(here, photo, kind, name):
    if kind == "zip":
        write_zip(here / "a.zip", ("fine.jpg", photo), (name, photo))
    else:
        with tarfile.open(here / "a.tar", "w") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(photo)
            archive.addfile(info, io.BytesIO(photo))
    assert "would lie outside" in message_of(f"a.{kind}", "out")
    assert not (here / "out").exists()


def test_links_and_pipes_are_passed_over(here, photo):
    with tarfile.open(here / "a.tar", "w") as archive:
        archive.add(here / "in" / "sub" / "0.jpg", "0.jpg")
        for name, kind in (
            ("s.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
            ("f.jpg", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
    result = predict("a.tar", "out")
    assert result.exit_code == 0, result.output
    assert "2 × links in the archive" in result.output
    assert "1 × pipes and devices in the archive" in result.output
    with zipfile.ZipFile(here / "a.zip", "w") as archive:
        archive.writestr("0.jpg", photo)
        link = zipfile.ZipInfo("s.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/hostname")
    assert "1 × links in the archive" in predict("a.zip", "zipped").output
    assert list(masks_in(here / "zipped")) == ["0.png"]


def test_large_files_are_not_unpacked(here, photo):
    write_zip(here / "a.zip", ("0.jpg", photo), ("bomb.jpg", bytes(2**27)))
    assert (here / "a.zip").stat().st_size < 2**20
    result = predict("a.zip", "out", "--pixel-limit", 8000)
    assert result.exit_code == 3
    assert "a.zip/bomb.jpg (decode): is too large: 134,217,728 bytes" in result.stderr
    assert list(masks_in(here / "out")) == ["0.png"]


def test_files_that_are_larger_than_the_archive_says_fail(here, photo):
    write_zip(here / "a.zip", ("bomb.jpg", bytes(2**20)), ("0.jpg", photo))
    content = bytearray((here / "a.zip").read_bytes())
    for place in (22, content.index(b"PK\x01\x02") + 24):  # the size in both headers
        struct.pack_into("<I", content, place, 100)
    (here / "a.zip").write_bytes(content)
    result = predict("a.zip", "out")
    assert result.exit_code == 3
    assert "a.zip/bomb.jpg (decode): cannot be unpacked" in result.stderr
    assert list(masks_in(here / "out")) == ["0.png"]


def test_encrypted_photos_fail(here, photo):
    write_zip(here / "a.zip", ("secret.jpg", photo), ("0.jpg", photo), flag=1)
    result = predict("a.zip", "out")
    assert result.exit_code == 3
    assert "a.zip/secret.jpg (decode): is encrypted; unpack" in result.stderr
    assert list(masks_in(here / "out")) == ["0.png"]


def test_a_damaged_photo_in_a_zip_fails_alone(here):
    pack(here / "in" / "sub", "zip", here / "a.zip")
    with zipfile.ZipFile(here / "a.zip") as archive:
        info = archive.getinfo("1.jpg")
    content = bytearray((here / "a.zip").read_bytes())
    content[info.header_offset + 200] ^= 0xFF
    (here / "a.zip").write_bytes(content)
    result = predict("a.zip", "out")
    assert result.exit_code == 3
    assert "a.zip/1.jpg (decode): cannot be unpacked: " in result.stderr
    assert list(masks_in(here / "out")) == ["0.png", "2.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_archives_that_are_cut_off_are_refused(here, kind, count_faults):
    """Wherever it is cut: also between two photos, which tarfile takes for the end."""
    pack(here / "in" / "sub", kind, here / "whole")
    whole = (here / "whole").read_bytes()
    ends = {0, 1, 100, 512, 1024, len(whole) // 2}
    if kind == "tar":  # its end is padded with zeros, of which some may be missing
        with tarfile.open(here / "whole") as archive:
            ends |= {info.offset for info in archive}
    else:
        ends.add(len(whole) - 1)
    for end in sorted(ends):
        (here / f"a.{kind}").write_bytes(whole[:end])
        assert "It may be cut off or damaged" in message_of(f"a.{kind}", "out"), end
    count_faults("an archive is cut off", len(ends))
    assert not (here / "out").exists()


def test_a_damaged_list_of_files_is_not_taken_for_the_end(here):
    pack(here / "in" / "sub", "tar", here / "a.tar")
    with tarfile.open(here / "a.tar") as archive:
        second = archive.getmembers()[1].offset
    content = bytearray((here / "a.tar").read_bytes())
    content[second + 150] ^= 0xFF  # in the checksum
    (here / "a.tar").write_bytes(content)
    assert "breaks off after 1 file" in message_of("a.tar", "out")


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_joined_archives_are_refused(here, kind):
    """Of which tarfile reads the first one only."""
    pack(here / "in" / "sub", kind, here / "one")
    (here / f"a.{kind}").write_bytes((here / "one").read_bytes() * 2)
    assert "as if archives had been joined" in message_of(f"a.{kind}", "out")


def test_what_cannot_be_used_is_refused(here, photo):
    write_zip(here / "a.zip", ("0.jpg", photo))
    write_zip(here / "twice.zip", ("0.jpg", photo), ("./0.jpg", photo))
    write_zip(here / "mixed.zip", ("a", photo), ("a/0.jpg", photo))
    write_zip(here / "empty.zip", ("notes.txt", b""))
    for name in ("text.zip", "text.tar.gz", "a.tar.bz2"):
        (here / name).write_text("text")
    (here / "folder.tar").mkdir()
    os.mkfifo(here / "pipe.zip")
    for arguments, message in (
        (("a.zip", "in/sub/0.jpg", "-o", "out"), "Give either one archive, or photos only"),
        (("a.zip", "-"), "need a folder as OUT"),
        (("a.zip", "mask.png"), "need a folder as OUT"),
        (("a.zip", "out", "--engine", "ray"), "does not read archives"),
        (("none.zip", "out"), "There is no file or folder none.zip"),
        (("folder.tar", "out"), "is a folder"),
        (("pipe.zip", "out"), "is not a regular file"),
        (("a.tar.bz2", "out"), "only .zip, .tar and .tar.gz are read"),
        (("twice.zip", "out"), "has ./0.jpg twice"),
        (("mixed.zip", "out"), "a/0.jpg cannot be unpacked"),
        (("empty.zip", "out"), "No photos in empty.zip"),
        (("text.zip", "out"), "cannot be read as an archive: File is not a zip file"),
        (("text.tar.gz", "out"), "cannot be read as an archive"),
    ):
        assert message in message_of(*arguments)
    assert not (here / "out").exists()


def test_little_is_unpacked_at_a_time(here, monkeypatch):
    """Of sixty-four photos, few lie on the disk at any time."""
    for number in range(60):
        shutil.copy(here / "in" / "sub" / "0.jpg", here / "in" / f"{number:02}.jpg")
    pack(here / "in", "zip", here / "a.zip")
    unpacked, counts = set(), []
    fetch, empty = archives.Archive.fetch, archives.Archive.empty

    def fetch_and_count(self, path):
        fetch(self, path)
        unpacked.add(path)
        counts.append(len(unpacked))

    def empty_and_count(self, path):
        empty(self, path)
        unpacked.discard(path)
        assert not path.exists() or path.stat().st_blocks == 0

    monkeypatch.setattr(archives.Archive, "fetch", fetch_and_count)
    monkeypatch.setattr(archives.Archive, "empty", empty_and_count)
    monkeypatch.setattr("carvana_batch.cloud.fetching.AHEAD", 8)
    result = predict("a.zip", "out")
    assert len(masks_in(here / "out")) == 64, result.output
    assert unpacked == set()
    assert max(counts) < 40


@pytest.mark.parametrize("seed", range(4))
def test_gzip_files_are_read_from_any_position(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(gzip_file, "LEAST_DISTANCE", 10_000)
    monkeypatch.setattr(gzip_file, "MOST_POINTS", 8)
    chance = random.Random(seed)
    data = np.random.default_rng(seed).integers(0, 9, 300_000, np.uint8).tobytes()
    middle = chance.randrange(len(data))
    path = tmp_path / "data.gz"  # of two members, and padded
    path.write_bytes(gzip.compress(data[:middle]) + gzip.compress(data[middle:]) + bytes(100))
    with SeekableGzip(path.open("rb")) as raw, io.BufferedReader(raw, 1000) as file:
        assert file.read(1000) == data[:1000]
        for _ in range(60):
            start, size = chance.randrange(len(data) + 1000), chance.randrange(1, 5000)
            file.seek(start)
            assert file.read(size) == data[start : start + size]
        assert 2 < len(raw._points) <= 8


def test_a_gzip_file_that_is_cut_off_is_noticed(tmp_path):
    path = tmp_path / "data.gz"
    whole = gzip.compress(os.urandom(3000))
    for end in (5, 50, len(whole) - 1):
        path.write_bytes(whole[:end])
        with SeekableGzip(path.open("rb")) as file, pytest.raises(EOFError):
            while file.read(1000):
                pass


def test_a_full_disk_is_that_of_temporary_files(here, photo, monkeypatch):
    write_zip(here / "a.zip", ("0.jpg", photo))

    def fail(*_):
        raise archives._WriteError(OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(archives.Archive, "_copy", fail)
    error = predict("a.zip", "out").exception
    assert isinstance(error, OutOfSpaceError)
    assert f"temporary files in {here / 'temporary'}" in str(error) and "TMPDIR" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_changes_while_it_is_read_ends_the_run(here, monkeypatch, kind):
    """As when it is still being written; what lies where a photo was may be another one."""
    pack(here / "in" / "sub", kind, here / f"a.{kind}")
    copy = archives.Archive._copy

    def copy_and_touch(self, *arguments):
        copy(self, *arguments)
        os.utime(self.path, (1, 1))

    monkeypatch.setattr(archives.Archive, "_copy", copy_and_touch)
    result = predict(f"a.{kind}", "out")
    assert isinstance(result.exception, CarvanaBatchError)
    assert f"a.{kind} has changed while it was read" in str(result.exception)
    assert masks_in(here / "out") == {}
