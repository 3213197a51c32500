import os

import psutil
import pytest

from carvana_batch.errors import FolderChangedError
from carvana_batch.files import WriteError
from carvana_batch.output.held import HeldFolders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out" / "state").mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture
def held(folder):
    folders = HeldFolders([folder, folder / "state"])
    yield folders
    folders.close()


def test_an_unchanged_folder_is_accepted(folder, held):
    held.check()
    (folder / "state" / "file").write_text("")
    (folder / "new").mkdir()
    held.check()


@pytest.mark.parametrize("name", ["out", "out/state"])
def test_a_folder_that_is_gone_is_noticed(tmp_path, held, name):
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(FolderChangedError, match=rf"{name} was renamed or removed during the run"):
        held.check()
    (tmp_path / "elsewhere").rename(tmp_path / name)
    held.check()


@pytest.mark.parametrize("name", ["out", "out/state"])
@pytest.mark.parametrize("how", ["folder", "link", "broken link", "file"])
def test_a_folder_that_was_replaced_is_noticed(tmp_path, held, name, how):
    path = tmp_path / name
    path.rename(tmp_path / "elsewhere")
    if how == "folder":
        (path / "state").mkdir(parents=True)
    elif how == "link":
        (tmp_path / "another" / "state").mkdir(parents=True)
        path.symlink_to(tmp_path / "another")
    elif how == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("")
    with pytest.raises(FolderChangedError, match=name):
        held.check()


def test_a_new_folder_never_passes_for_a_removed_one(folder, held):
    """Unless it is held open, a file system such as ext4 gives the same inode number again at once."""
    for _ in range(20):
        (folder / "state").rmdir()
        folder.rmdir()
        (folder / "state").mkdir(parents=True)
        with pytest.raises(FolderChangedError, match="was replaced"):
            held.check()


def test_a_link_to_the_same_folder_is_accepted(tmp_path, folder, held):
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    held.check()


def test_a_folder_that_cannot_be_looked_at_is_an_error(held, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        held.check()


def test_closing_leaves_no_open_files(folder):
    before = psutil.Process().num_fds()
    held = HeldFolders([folder, folder / "state"])
    held.close()
    with pytest.raises(FileNotFoundError):
        HeldFolders([folder, folder / "missing"])
    after = psutil.Process().num_fds()
    assert before == after
