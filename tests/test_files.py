import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import names_below

from carvana_batch.errors import OutOfSpaceError, UsageError
from carvana_batch.files import TEMPORARY_PREFIX, WriteError, atomic_writer, check_target, find_leftovers


def failing(number):
    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture(params=["new", "old"])
def target(request, tmp_path):
    """The path of a file that does not exist yet, and of one that does."""
    path = tmp_path / "file.bin"
    if request.param == "old":
        path.write_bytes(b"old")
    return path


def assert_unchanged(target):
    """Check that the folder holds what it held before, and nothing else."""
    contents = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    assert contents in ({}, {"file.bin": b"old"})


def test_bytes_appear_under_the_final_name(target):
    with atomic_writer(target) as file:
        file.write(b"new")
        assert not target.exists() or target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names_below(target.parent) == ["file.bin"]


def test_text_is_utf8_and_keeps_line_ends_and_raw_names(tmp_path):
    with atomic_writer(tmp_path / "text", "w") as file:
        file.write("ä\n\r\n\udcff")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa4\n\r\n\xff"


def test_temporary_file_is_hidden_and_beside_the_target(tmp_path):
    with atomic_writer(tmp_path / "file.bin"):
        (name,) = names_below(tmp_path)
    assert name.startswith(TEMPORARY_PREFIX)
    assert name.startswith(".")


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_writer(Path("file.bin")) as file:
        file.write(b"new")
    assert names_below(tmp_path) == ["file.bin"]


def test_longest_possible_name(tmp_path):
    path = tmp_path / ("x" * 255)
    with atomic_writer(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_permissions_are_those_of_a_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_writer(tmp_path / "file.bin"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.bin").stat().st_mode) == 0o640


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file.bin")
    with atomic_writer(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file.bin").read_bytes() == b"new"
    assert names_below(tmp_path / "real") == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), UsageError("x")])
def test_exception_in_the_block_leaves_the_target_unchanged(target, error):
    with pytest.raises(type(error)) as caught, atomic_writer(target) as file:
        file.write(b"half")
        raise error
    assert caught.value is error
    assert_unchanged(target)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["block", "os.fsync", "os.replace"])
def test_full_disk_leaves_the_target_unchanged(target, call, number, monkeypatch):
    if call != "block":
        monkeypatch.setattr(call, failing(number))
    with (
        pytest.raises(OutOfSpaceError, match=r"No space left for .*file\.bin"),
        atomic_writer(target) as file,
    ):
        file.write(b"half")
        if call == "block":
            failing(number)()
    assert_unchanged(target)


@pytest.mark.parametrize("call", ["block", "os.fsync", "os.replace"])
def test_other_system_errors_leave_the_target_unchanged(target, call, monkeypatch):
    if call != "block":
        monkeypatch.setattr(call, failing(errno.EIO))
    message = r"Cannot write .*file\.bin: .*Input/output error"
    with pytest.raises(WriteError, match=message), atomic_writer(target) as file:
        file.write(b"half")
        if call == "block":
            failing(errno.EIO)()
    assert_unchanged(target)


def test_file_is_synced_before_the_rename(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def record_replace(*paths):
        calls.append("rename")
        real_replace(*paths)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_writer(tmp_path / "file.bin") as file:
        file.write(b"new")
    assert calls == ["file", "rename", "folder"]
    calls.clear()
    with atomic_writer(tmp_path / "file.bin", sync=False) as file:
        file.write(b"newer")
    assert calls == ["rename"]
    assert (tmp_path / "file.bin").read_bytes() == b"newer"


@pytest.mark.parametrize(
    ("number", "is_error"), [(errno.EINVAL, False), (errno.EACCES, False), (errno.EIO, True)]
)
def test_folder_that_cannot_be_synced(tmp_path, monkeypatch, number, is_error):
    real_fsync = os.fsync

    def fail_for_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            failing(number)()
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    path = tmp_path / "file.bin"
    if is_error:
        with pytest.raises(WriteError), atomic_writer(path) as file:
            file.write(b"new")
    else:
        with atomic_writer(path) as file:
            file.write(b"new")
    assert path.read_bytes() == b"new"


def test_unremovable_temporary_file_does_not_hide_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    monkeypatch.setattr(Path, "unlink", failing(errno.EROFS))
    with pytest.raises(ValueError, match="the first"), atomic_writer(tmp_path / "file.bin"):
        raise ValueError("the first")


def test_missing_folders_and_special_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path, problem in [
        (tmp_path / "missing" / "file", f"there is no folder {tmp_path / 'missing'}"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "pipe", "it is not a regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(UsageError, match=problem):
            check_target(path)
        with pytest.raises(UsageError, match=problem), atomic_writer(path):
            pass
    assert names_below(tmp_path) == ["folder", "pipe"]


def test_folder_that_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root
    with pytest.raises(UsageError, match="not open to writing"):
        check_target(tmp_path / "file")


def run_python(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_file_size_limit_set_by_the_system(target):
    """Let the kernel itself refuse the write."""
    result = run_python(
        """
        import resource, sys
        from pathlib import Path
        from carvana_batch.files import WriteError, atomic_writer
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with atomic_writer(Path(sys.argv[1])) as file:
                file.write(bytes(100_000))
        except WriteError as error:
            print(error)
        """,
        target,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "File too large" in result.stdout
    assert_unchanged(target)


def test_killed_process_leaves_the_old_file(target):
    existed = target.exists()
    result = run_python(
        """
        import os, signal, sys
        from pathlib import Path
        from carvana_batch.files import atomic_writer
        with atomic_writer(Path(sys.argv[1])) as file:
            file.write(bytes(100_000))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        target,
    )
    assert result.returncode == -signal.SIGKILL
    assert target.exists() == existed
    assert not existed or target.read_bytes() == b"old"
    (leftover,) = [path for path in target.parent.iterdir() if path != target]
    assert leftover.name.startswith(TEMPORARY_PREFIX)


def test_leftovers_under_numbers_of_living_processes(tmp_path):
    """A file is older than the process that has the number of its writer now, if that one is dead."""
    with atomic_writer(tmp_path / "file") as file:
        being_written = Path(file.name)
        own = being_written.with_name(being_written.name[:-8] + "0000.tmp")
        parent = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-"))
        first = own.with_name(own.name.replace(f"-{os.getpid()}-", "-1-"))
        for path in (own, parent, first):
            path.touch()
        os.utime(first, (1e9, 1e9))
        assert sorted(find_leftovers(tmp_path)) == sorted([own, first])
