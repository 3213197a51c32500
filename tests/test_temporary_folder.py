import os
import subprocess
import sys

import pytest
from helpers import names_below

from carvana_batch.temporary_folder import temporary_folder

PREFIX = "name-"


def leave_folder(parent, prefix=PREFIX):
    """What a process leaves that is killed while it uses a temporary folder."""
    code = (
        "import os, pathlib, sys; from carvana_batch.temporary_folder import temporary_folder\n"
        "with temporary_folder(pathlib.Path(sys.argv[1]), sys.argv[2]) as folder:\n"
        "    (folder / 'file').touch(); (folder / 'sub').mkdir(); print(folder, flush=True); os._exit(0)"
    )
    command = [sys.executable, "-c", code, parent, prefix]
    return parent / subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_folder_is_removed_at_the_end(tmp_path):
    with pytest.raises(KeyError), temporary_folder(tmp_path, PREFIX) as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(PREFIX)
        (folder / "file").touch()
        raise KeyError
    assert names_below(tmp_path) == []


def test_folders_in_use_are_not_removed(tmp_path):
    with temporary_folder(tmp_path, PREFIX) as first, temporary_folder(tmp_path, PREFIX) as second:
        assert len(names_below(tmp_path)) == 2
        assert first != second
        (first / "file").touch()
        (second / "file").touch()


def test_folders_of_killed_processes_are_removed(tmp_path):
    left = [leave_folder(tmp_path) for _ in range(2)]
    other = leave_folder(tmp_path, "other-")
    assert left[1].is_dir()
    with temporary_folder(tmp_path, PREFIX) as folder:
        assert names_below(tmp_path) == sorted([folder.name, other.name])


def test_what_may_be_of_others_is_kept(tmp_path):
    """Files without a lock, a link, another form of the name, a file, and a folder of another user."""
    (tmp_path / "name-aaaaaaaa").mkdir()
    (tmp_path / "name-aaaaaaaa" / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / "name-bbbbbbbb").symlink_to("elsewhere")
    (tmp_path / "name-of-mine").mkdir()
    (tmp_path / "name-of-mine" / "lock").touch()
    (tmp_path / "name-cccccccc").touch()
    if os.geteuid() == 0:
        (tmp_path / "name-dddddddd").mkdir()
        (tmp_path / "name-dddddddd" / "lock").touch()
        os.chown(tmp_path / "name-dddddddd", 54321, 54321)
    before = names_below(tmp_path)
    with temporary_folder(tmp_path, PREFIX):
        pass
    assert names_below(tmp_path) == before
    assert (tmp_path / "elsewhere" / "lock").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), temporary_folder(tmp_path / "none", PREFIX):
        pass


def test_an_empty_folder_was_killed_before_it_was_locked(tmp_path):
    (tmp_path / "name-aaaaaaaa").mkdir()
    with temporary_folder(tmp_path, PREFIX):
        pass
    assert names_below(tmp_path) == []
