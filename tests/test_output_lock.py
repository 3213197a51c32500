import errno
import json
import os
import threading

import filelock
import pytest

from carvana_batch.output.lock import LOCK_PATIENCE, FolderLock, describe_holder, is_locked


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def holder(tmp_path):
    return tmp_path / "holder.json"


def test_only_one_can_hold_a_lock(path, holder):
    first, second = FolderLock(path, holder), FolderLock(path, holder)
    assert (first.is_held, second.is_held) == (False, False)
    assert first.acquire()
    assert not second.acquire()
    assert (first.is_held, second.is_held) == (True, False)
    second.release()
    assert is_locked(path, patience=0)
    first.release()
    assert (first.is_held, is_locked(path)) == (False, False)
    assert second.acquire()
    second.release()


@pytest.mark.parametrize(
    "can_lock",
    [lambda path, holder: FolderLock(path, holder).acquire(), lambda path, _holder: not is_locked(path)],
    ids=["acquire", "is_locked"],
)
def test_a_lock_held_for_a_moment_is_waited_for(path, holder, can_lock):
    other = filelock.FileLock(path, thread_local=False)
    other.acquire()
    timer = threading.Timer(LOCK_PATIENCE / 4, other.release)
    timer.start()
    assert can_lock(path, holder)
    assert not other.is_locked
    timer.join()


def test_a_lock_file_that_cannot_be_opened(path, holder, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    lock = FolderLock(path, holder)
    with pytest.raises(OSError, match="No locks available"):
        lock.acquire()
    assert not lock.is_held


def test_the_holder_is_written_down(path, holder):
    FolderLock(path, holder).write_holder()
    content = json.loads(holder.read_text())
    assert content["pid"] == os.getpid()
    assert describe_holder(holder) == f"process {os.getpid()} on {content['host']}"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"pid": 1}', "\0"])
def test_an_unknown_holder_is_another_process(holder, content):
    if content is not None:
        holder.write_text(content)
    assert describe_holder(holder) == "another process"


def test_undo_removes_only_what_the_lock_has_made(tmp_path):
    folder = tmp_path / "new" / "state"
    lock = FolderLock(folder / "lock", folder / "holder.json")
    assert lock.acquire()
    lock.write_holder()
    lock.undo()
    assert (lock.is_held, list(tmp_path.iterdir())) == (False, [])

    assert lock.acquire()
    lock.write_holder()
    (folder / "other").write_text("")
    (folder.parent / "mine").write_text("")
    lock.undo([folder / "other"])
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "mine"]


def test_undo_keeps_a_lock_that_was_there(path, holder):
    path.write_text("")
    lock = FolderLock(path, holder)
    assert lock.acquire()
    lock.write_holder()
    other = FolderLock(path, holder)
    assert not other.acquire()
    other.undo()
    assert (path.exists(), holder.exists(), is_locked(path)) == (True, True, True)
    lock.undo()
    assert (path.exists(), holder.exists(), is_locked(path)) == (True, True, False)
