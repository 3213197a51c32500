import errno
import json
import os
import re
import threading
from dataclasses import asdict, replace
from pathlib import Path

import filelock
import pytest
from helpers import leave_temporary_file, names_in

from carvana_batch.errors import FolderInUseError, OutOfSpaceError, UsageError
from carvana_batch.files import TEMPORARY_PREFIX, WriteError, atomic_writer
from carvana_batch.inputs.keys import mask_id
from carvana_batch.inputs.masks import find_masks
from carvana_batch.options import EXTRA_FILES, Choice
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.lock import LOCK_PATIENCE
from carvana_batch.values import Failure, ImageRef

SETTINGS = {"model": "m", "save": ("overlay",), "threshold": 0.5}
CHOICE = Choice("cpu", "bf16", batch=1, most_pixels=4096)


@pytest.fixture
def photo(tmp_path):
    return make_photo(tmp_path, "a/b")


def make_photo(folder, key):
    path = folder / "in" / f"{key}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"photo")
    return ImageRef(key, path)


def open_folder(tmp_path, settings=SETTINGS, shard=(1, 1), overwrite=False):
    return OutFolder(tmp_path / "out", settings, shard, overwrite)


def write_mask(out, ref, content=b"mask"):
    """Do what a run does for a photo: write the mask, the extra files and the journal line."""
    for path in (out.paths.mask(ref.key), *(out.paths.extra(kind, ref.key) for kind in EXTRA_FILES)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source = ref.path.stat()
    out.commit(Entry(ref.key, str(ref.path), source.st_size, source.st_mtime_ns, mask_bytes=len(content)))


def mask_once(tmp_path, *refs, **options):
    with open_folder(tmp_path, **options) as out:
        out.start(CHOICE)
        for ref in refs:
            write_mask(out, ref)


def missing(tmp_path, *refs):
    return [ref.key for ref in open_folder(tmp_path).find_missing(refs)]


def test_only_photos_without_a_mask_are_missing(tmp_path, photo):
    other = make_photo(tmp_path, "other")
    assert missing(tmp_path, photo, other) == ["a/b", "other"]
    mask_once(tmp_path, photo)
    assert missing(tmp_path, photo, other) == ["other"]
    (tmp_path / "out" / "a" / "b.png").unlink()
    assert missing(tmp_path, photo, other) == ["a/b", "other"]


def test_only_overwrite_replaces_the_mask_of_another_photo(tmp_path, photo):
    mask_once(tmp_path, photo)
    other = make_photo(tmp_path / "more", "a/b")
    other.path.write_bytes(b"another photo")
    with pytest.raises(UsageError, match=r"a/b\.png is the mask of .*/in/a/b\.jpg, and would be replaced"):
        missing(tmp_path, other)
    with open_folder(tmp_path, overwrite=True) as out:
        assert list(out.find_missing([other])) == [other]


def test_find_missing_does_not_create_the_folder(tmp_path, photo):
    assert missing(tmp_path, photo) == ["a/b"]
    assert not (tmp_path / "out").exists()


def test_a_photo_that_fails_again_loses_its_old_files(tmp_path, photo):
    mask_once(tmp_path, photo)
    unlisted = tmp_path / "out" / "c.png"
    unlisted.write_bytes(b"of another program")
    photo.path.write_bytes(b"broken")
    deleted = ImageRef("c", tmp_path / "deleted.jpg")
    with open_folder(tmp_path) as out:
        assert list(out.find_missing([photo, deleted])) == [photo, deleted]
        out.start(CHOICE)
        out.commit_failure(Failure.of(photo, "decode", "is empty"))
        out.commit_failure(Failure.of(deleted, "decode", "does not exist"))
    assert missing(tmp_path, photo) == ["a/b"]
    out.paths.mask("a/b").write_bytes(b"")  # has the size that the journal gives for a failed photo
    assert missing(tmp_path, photo) == ["a/b"]
    out.paths.mask("a/b").unlink()
    files = [name for name in names_in(tmp_path / "out") if (tmp_path / "out" / name).is_file()]
    assert [name for name in files if not name.startswith(".carvana-batch")] == ["c.png"]
    entries = read_entries(out.paths.state)
    assert (entries["a/b"].failed, entries["a/b"].stage, entries["a/b"].reason) == (
        True,
        "decode",
        "is empty",
    )
    assert (entries["a/b"].source_bytes, entries["c"].source_bytes) == (6, 0)


def test_journal_keeps_any_name_and_number(tmp_path):
    entries = [
        Entry("a\nb", "in/\udcff.jpg", 1, 2**62, 3, 4, 0.1, 0.30000000000000004, 1.0, 5, reason="ä\u2028"),
        Entry("\udcfe", "in/x.jpg", 0, 0, stage="decode", reason='"\\'),
    ]
    with open_folder(tmp_path) as out:
        for entry in entries:
            out.commit(entry)
    assert list(read_entries(out.paths.state).values()) == entries


def test_last_line_of_a_key_counts(tmp_path):
    with open_folder(tmp_path) as out:
        for size in (1, 2, 3):
            out.commit(Entry("a", "in/a.jpg", size, 0))
    with open_folder(tmp_path, shard=(1, 2)) as out:
        os.utime(out.paths.state / "journal-1-of-1.jsonl", (1, 1))
        out.commit(Entry("a", "in/a.jpg", 4, 0))
    assert [entry.source_bytes for entry in read_entries(out.paths.state).values()] == [4]


def test_latest_line_of_several_journals_counts(tmp_path):
    failed = Entry("p", "in/p.jpg", 1, 1, stage="decode", reason="is cut short")
    masked = Entry("p", "in/p.jpg", 1, 1, mask_bytes=5)
    with open_folder(tmp_path) as out:
        out.commit(failed)
    with open_folder(tmp_path, shard=(1, 2)) as out:
        out.commit(masked)
    with open_folder(tmp_path) as out:
        out.commit(Entry("q", "in/q.jpg", 1, 1, mask_bytes=5))
    assert masked in read_entries(out.paths.state).values()
    assert failed not in read_entries(out.paths.state).values()


def test_a_truncated_journal_loses_only_its_last_line(tmp_path):
    with open_folder(tmp_path) as out:
        for key in ("a", "b"):
            out.commit(Entry(key, f"in/{key}.jpg", 1, 1))
    journal = out.paths.state / "journal-1-of-1.jsonl"
    content = journal.read_bytes()
    last_line = content.rindex(b"\n")
    for length in range(last_line, len(content)):
        journal.write_bytes(content[:length])
        assert list(read_entries(out.paths.state)) == ["a"]
        with open_folder(tmp_path) as again:
            again.commit(Entry("c", "in/c.jpg", 1, 1))
        assert list(read_entries(out.paths.state)) == ["a", "c"], length
    journal.write_bytes(content)
    assert list(read_entries(out.paths.state)) == ["a", "b"]


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path):
    with open_folder(tmp_path), pytest.raises(FolderInUseError) as caught, open_folder(tmp_path):
        pass
    assert re.search(rf"out is in use by process {os.getpid()} on \S+\. .*--shard", str(caught.value))
    with open_folder(tmp_path):
        pass


def test_shards_with_the_same_count_share_a_folder(tmp_path):
    with open_folder(tmp_path, shard=(1, 3)), open_folder(tmp_path, shard=(2, 3)):
        for shard in ((1, 3), (1, 1), (1, 2)):
            with (
                pytest.raises(FolderInUseError, match=f"process {os.getpid()}"),
                open_folder(tmp_path, shard=shard),
            ):
                pass
        with open_folder(tmp_path, shard=(3, 3)):
            pass
    with open_folder(tmp_path):
        pass


def test_a_refused_run_holds_no_lock(tmp_path):
    refused = open_folder(tmp_path)
    with open_folder(tmp_path, shard=(1, 3)), pytest.raises(FolderInUseError):
        refused.__enter__()
    with open_folder(tmp_path, shard=(1, 3)):
        pass


def test_a_lock_held_for_a_moment_is_waited_for(tmp_path):
    with open_folder(tmp_path) as out:
        pass
    for name in ("lock-1-of-1", "lock-1-of-2"):
        other = filelock.FileLock(out.paths.state / name, thread_local=False)
        other.acquire()
        timer = threading.Timer(LOCK_PATIENCE / 4, other.release)
        timer.start()
        with open_folder(tmp_path):
            assert not other.is_locked
        timer.join()


def test_other_settings_are_refused_with_the_difference(tmp_path):
    mask_once(tmp_path)
    with open_folder(tmp_path) as out:
        assert out.choice == CHOICE
    other = {"model": "m", "save": ["overlay"], "threshold": 0.25, "tta": "flip"}
    expected = "other settings (threshold: 0.5 before, 0.25 now; tta: None before, 'flip' now)"
    with pytest.raises(UsageError, match=re.escape(expected)), open_folder(tmp_path, other):
        pass
    # The refused run has released the lock.
    with open_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"settings": 1, "chosen": {}}', '{"settings": {}, "chosen": 1}']
)
def test_damaged_settings_need_overwrite(tmp_path, content):
    state = tmp_path / "out" / ".carvana-batch"
    state.mkdir(parents=True)
    (state / "settings.json").write_text(content)
    with (
        pytest.raises(UsageError, match=r"settings\.json is damaged .*--overwrite"),
        open_folder(tmp_path),
    ):
        pass
    with open_folder(tmp_path, overwrite=True) as out:
        out.find_missing([])
        assert out.start(CHOICE) == CHOICE
    with open_folder(tmp_path) as out:
        assert out.choice == CHOICE


def test_all_shards_use_what_the_first_one_chose(tmp_path):
    with open_folder(tmp_path, shard=(1, 2)) as first, open_folder(tmp_path, shard=(2, 2)) as second:
        assert (first.choice, second.choice) == (None, None)
        assert first.start(CHOICE) == CHOICE
        assert second.start(replace(CHOICE, precision="fp32")) == CHOICE
        second.record_choice(replace(CHOICE, precision="fp16"))
    with open_folder(tmp_path) as out:
        assert out.choice == replace(CHOICE, precision="fp16")


def test_a_concurrent_shard_with_other_settings_is_refused(tmp_path):
    with (
        open_folder(tmp_path, shard=(1, 2)) as first,
        open_folder(tmp_path, {"x": 1}, shard=(2, 2)) as second,
    ):
        first.start(CHOICE)
        with pytest.raises(UsageError, match="other settings"):
            second.start(CHOICE)


def test_overwrite_removes_only_journaled_files_on_start(tmp_path, photo):
    other = make_photo(tmp_path, "other")
    mask_once(tmp_path, photo)
    mask_once(tmp_path, other, shard=(2, 2))
    for name in ("mine.png", "_overlay/mine.jpg", "a/mine.png", "report.csv"):
        (tmp_path / "out" / name).write_bytes(b"of another program")
    before = names_in(tmp_path / "out")
    with open_folder(tmp_path, {"x": 1}, overwrite=True) as out:
        assert list(out.find_missing([photo, other])) == [photo, other]
        assert names_in(tmp_path / "out") == before
        assert out.start(CHOICE) == CHOICE
        left = names_in(tmp_path / "out")
    files = [name for name in left if (tmp_path / "out" / name).is_file()]
    assert sorted(name for name in files if not name.startswith(".carvana-batch")) == [
        "_overlay/mine.jpg",
        "a/mine.png",
        "mine.png",
        "report.csv",
    ]
    assert read_entries(out.paths.state) == {}
    with open_folder(tmp_path, {"x": 1}) as out:
        assert out.choice == CHOICE


def test_overwrite_when_a_file_has_replaced_a_folder(tmp_path, photo):
    mask_once(tmp_path, photo)
    for path in (tmp_path / "out" / "a").iterdir():
        path.unlink()
    (tmp_path / "out" / "a").rmdir()
    (tmp_path / "out" / "a").write_bytes(b"")
    with open_folder(tmp_path, overwrite=True) as out:
        out.find_missing([photo])
        out.start(CHOICE)
    assert (tmp_path / "out" / "a").read_bytes() == b""


def test_a_mask_that_cannot_be_removed(tmp_path, photo, monkeypatch):
    def fail(_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    mask_once(tmp_path, photo)
    monkeypatch.setattr(Path, "unlink", fail)
    with open_folder(tmp_path, overwrite=True) as out:
        out.find_missing([photo])
        with pytest.raises(WriteError, match=r"Cannot remove .*b\.png"):
            out.start(CHOICE)


def test_a_folder_in_the_place_of_a_mask_stays(tmp_path, photo):
    mask_once(tmp_path, photo)
    mask = tmp_path / "out" / "a" / "b.png"
    mask.unlink()
    mask.mkdir()
    with open_folder(tmp_path, overwrite=True) as out:
        out.find_missing([photo])
        out.start(CHOICE)
        assert out.commit_failure(Failure.of(photo, "decode", "is empty")).failed
    assert mask.is_dir()


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_an_out_folder_that_cannot_be_created(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    with (
        pytest.raises(UsageError, match=f"Cannot write into {out}: "),
        OutFolder(Path(out), {}, (1, 1), False),
    ):
        pass


def test_a_lock_that_cannot_be_taken(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(UsageError, match=r"Cannot write into .*: No locks available"), open_folder(tmp_path):
        pass


def test_full_disk_while_journaling_releases_the_lock(tmp_path, monkeypatch):
    def fail(_file, _entry):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(OutOfSpaceError, match=r"No space left for .*journal-1-of-1\.jsonl"),
        open_folder(tmp_path) as out,
        monkeypatch.context() as patch,
    ):
        patch.setattr("carvana_batch.output.folder.append_entry", fail)
        out.commit(Entry("a", "in/a.jpg", 1, 1))
    with open_folder(tmp_path) as out:
        out.commit(Entry("a", "in/a.jpg", 1, 1))
    assert list(read_entries(out.paths.state)) == ["a"]


def test_a_journal_that_cannot_be_written(tmp_path):
    with open_folder(tmp_path) as out:
        out.find_missing([])
        (out.paths.state / "journal-1-of-1.jsonl").mkdir()
        with pytest.raises(WriteError, match=r"Cannot write .*journal-1-of-1\.jsonl: Is a directory"):
            out.commit(Entry("a", "in/a.jpg", 1, 1))


def test_full_disk_on_entry_releases_the_lock(tmp_path, monkeypatch):
    def fail(_source, _target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        patch.setattr(os, "replace", fail)
        with pytest.raises(OutOfSpaceError), open_folder(tmp_path):
            pass
    with open_folder(tmp_path):
        pass


def test_commit_outside_the_with_block_is_refused(tmp_path):
    out = open_folder(tmp_path)
    with pytest.raises(RuntimeError, match="not open"):
        out.commit(Entry("a", "in/a.jpg", 1, 1))


def test_shards_take_turns_with_the_shared_files(tmp_path):
    with open_folder(tmp_path, shard=(1, 2)) as first, open_folder(tmp_path, shard=(2, 2)) as second:
        entered = threading.Event()

        def enter():
            with second.shared_files_lock():
                entered.set()

        thread = threading.Thread(target=enter)
        with first.shared_files_lock():
            thread.start()
            assert not entered.wait(0.3)
        assert entered.wait(60)
        thread.join()


def test_only_temporary_files_of_dead_processes_are_removed(tmp_path):
    mask_once(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "out" / name).mkdir(exist_ok=True)
    left = [leave_temporary_file(tmp_path / "out" / name) for name in ("1.png", "a/2.png")]
    left.append(leave_temporary_file(tmp_path / "out" / ".carvana-batch" / "3"))
    other = tmp_path / "out" / "a" / f"{TEMPORARY_PREFIX}0.tmp"
    other.write_bytes(b"")
    with atomic_writer(
        tmp_path / "out" / "submission.csv"
    ) as file:  # as submit does, or a run in a folder below
        file.write(b"whole")
        with open_folder(tmp_path, shard=(1, 2)):
            assert not any(path.exists() for path in left)
            assert other.exists()
            left = leave_temporary_file(tmp_path / "out" / "b" / "4.png")
            with open_folder(tmp_path, shard=(2, 2)):
                assert left.exists()  # the first shard may be in a container that has the same name
    assert (tmp_path / "out" / "submission.csv").read_bytes() == b"whole"


def test_content_of_the_settings_file(tmp_path):
    mask_once(tmp_path)
    content = json.loads((tmp_path / "out" / ".carvana-batch" / "settings.json").read_text())
    assert content == {"settings": {**SETTINGS, "save": ["overlay"]}, "chosen": asdict(CHOICE)}
    assert open_folder(tmp_path).begun
    assert not OutFolder(tmp_path / "other", SETTINGS, (1, 1), False).begun


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a", "a"),
        ("a_mask", "a"),
        ("b_mask/a", "b_mask/a"),
        ("b/a_mask_mask", "b/a_mask"),
        ("b/_mask", "b/_mask"),
    ],
)
def test_masks_are_found_by_the_id_of_their_key(tmp_path, key, expected):
    assert mask_id(key) == expected
    path = tmp_path / f"{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert list(find_masks(tmp_path)) == [expected]
