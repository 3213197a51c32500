"""An out folder to which others have access: links that they plant, and files of other users."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from carvana_batch.errors import CarvanaBatchError, UsageError
from carvana_batch.options import Choice
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.rle_spool import RunLengthSpool

CHOICE = Choice("cpu", "bf16", batch=1, most_pixels=4096)
STATE = ".carvana-batch"
ENTRY = Entry("a", "in/a.jpg", 1, 1)
PLACES = [
    *("report.csv", "run.json"),
    *(
        f"{STATE}/{name}"
        for name in (
            *("settings.json", "journal-1-of-1.jsonl", "rle-1-of-1.jsonl", "holder-1-of-1.json"),
            *("lock-1-of-1", "shared.lock", "synced-1-of-1"),
        )
    ),
]


def folder(root, shard=(1, 1)):
    return OutFolder(root, {}, shard, False)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dangling", [True, False])
def test_nothing_is_written_through_links(tmp_path, place, dangling, count_faults):
    victim, path = tmp_path / "victim", tmp_path / "out" / place
    if not dangling:
        victim.write_bytes(b"{}")
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    with pytest.raises(UsageError, match=r"is a link, so no run has made it"), folder(tmp_path / "out"):
        pass
    assert (victim.read_bytes() if victim.exists() else None) == (None if dangling else b"{}")
    path.unlink(missing_ok=True)
    with folder(tmp_path / "out") as out:
        out.start(CHOICE)
    count_faults("a link is planted in an out folder", 1)


def test_the_state_folder_may_not_be_a_link(tmp_path, count_faults):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / STATE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"), folder(tmp_path / "out"):
        pass
    count_faults("a link is planted in an out folder", 1)


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_links_planted_during_a_run_are_not_followed(tmp_path, kind, count_faults):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    with folder(tmp_path / "out") as out:
        out.find_missing([])
        for path in (out.paths.journal, out.paths.spool):
            if kind == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to(victim if kind == "link" else "/dev/full")
        with pytest.raises(CarvanaBatchError, match=r"link, or not a plain file|No such device"):
            out.commit(ENTRY)
        with pytest.raises(CarvanaBatchError, match=r"link, or not a plain file|No such device"):
            RunLengthSpool(out.paths.spool)
    assert victim.read_bytes() == b"mine"
    if kind != "pipe":
        with pytest.raises(CarvanaBatchError, match="link, or not a plain file"):
            read_entries(out.paths.state)
    count_faults("a link is planted in an out folder", 2)


def work(root, shard):
    """What a shard does with an out folder; returns the message of its error, "" if there was none."""
    try:
        with folder(root, (shard, 2)) as out:
            out.start(CHOICE)
            out.find_missing([])
            out.commit(Entry(str(shard), "in/a.jpg", 1, 1))
            with out.shared_files_lock():
                return ""
    except CarvanaBatchError as error:
        return str(error)


def work_as(user, group, umask, root, shard):
    """``work`` in a fork that belongs to a user; the interpreter itself may only be readable by root."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        message = "the child has crashed"
        try:
            os.umask(umask)
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            message = work(root, shard)
        finally:
            os.write(sending, message.encode())
            os._exit(0)
    os.close(sending)
    os.waitpid(child, 0)
    with os.fdopen(receiving) as file:
        return file.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as two other users")
@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_two_users_share_a_folder_or_learn_how(umask, count_faults):
    with tempfile.TemporaryDirectory() as name:  # the folders of pytest are closed to others
        above, root = Path(name), Path(name) / "out"
        above.chmod(0o755)
        assert work(above / "imports", 1) == ""
        assert pwd.getpwuid(0).pw_uid == 0  # imports what the children cannot
        root.mkdir()
        os.chown(root, 0, 4321)
        root.chmod(0o2775)
        assert work_as(4001, 4321, umask, root, 1) == ""
        message = work_as(4002, 4321, umask, root, 2)
        if umask == 0o002:
            assert message == ""
            assert set(read_entries(root / STATE)) == {"1", "2"}
        else:
            assert f"{root / STATE} belongs to another user and is not open to your writing" in message
            assert "need a common group with all rights in it" in message
    count_faults("two users share an out folder", 1)
