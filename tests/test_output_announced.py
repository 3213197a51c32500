import contextlib
import json
import time
from pathlib import Path

import pytest

from carvana_batch.errors import FolderChangedError, UsageError
from carvana_batch.options import Choice
from carvana_batch.output.announced import LISTS_IN_FLIGHT, WorkerOut, remove_settled, worker_journals
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_journals
from carvana_batch.output.ownership import Stamp
from carvana_batch.output.paths import MASK


@pytest.fixture
def out(tmp_path):
    """An out folder that a run holds."""
    with OutFolder(tmp_path / "out", {}, (1, 1), overwrite=False) as folder:
        folder.find_missing([])
        folder.start(Choice("cpu", "fp32", 1, 1000))
        yield folder


@pytest.fixture
def make_worker(out):
    """Makes a worker of the run."""
    with contextlib.ExitStack() as stack:

        def make(**changes):
            arguments = {"run": out.run, "generation": out.generation, "replace_all": False, "patience": 0.1}
            return stack.enter_context(contextlib.closing(WorkerOut(out.root, **arguments | changes)))

        yield make


def announce(worker, key, content):
    stamp = Stamp.of(content)
    worker.commit(Entry(key, "", 0, 0, mask_bytes=stamp.size, mask_checksum=stamp.checksum, pending=True))
    worker.paths.mask(key).write_bytes(content)


def test_a_folder_that_the_run_does_not_hold_is_refused(out, tmp_path):
    (tmp_path / "other").mkdir()
    for root, run in ((out.root, "another run"), (tmp_path / "other", out.run)):
        with pytest.raises(UsageError, match="is not the folder of this run: share OUT under the same path"):
            WorkerOut(root, run, 1, False, patience=0.1)


def test_a_shared_folder_may_be_slow_to_show_what_was_written(make_worker, monkeypatch):
    read_text, asked = Path.read_text, []

    def show_late(path, **options):
        asked.append(path)
        if len(asked) < 4:
            raise FileNotFoundError(path)
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", show_late)
    start = time.monotonic()
    make_worker(patience=5.0)
    assert time.monotonic() - start < 4


def test_a_worker_of_a_run_that_has_ended_writes_nothing(out, make_worker, tmp_path):
    worker = make_worker()
    holder = next(out.paths.state.glob("holder-*"))
    holder.write_text(json.dumps({"run": "the next one"}))
    with pytest.raises(FolderChangedError, match="no longer held by this run"):
        worker.take_up({})
    out.root.rename(tmp_path / "moved")
    with pytest.raises(FolderChangedError):
        worker.commit(Entry("a", "", 0, 0, pending=True))
    (tmp_path / "moved").rename(out.root)


def test_what_a_killed_worker_has_written_is_of_a_run(out, make_worker):
    workers = [make_worker(), make_worker()]
    for number, worker in enumerate(workers):
        announce(worker, f"{number}", b"not a mask")
        announce(worker, "both", f"{number}".encode())
    assert len(worker_journals(out.paths.state)) == 2
    out.paths.mask("user").write_bytes(b"by hand")
    keys = ("0", "1", "both", "user")
    assert all(out.ownership.is_foreign(key, MASK, b"new") for key in keys)
    out.learn_announced(keys)
    assert [out.ownership.is_foreign(key, MASK, b"new") for key in keys] == [False, False, False, True]
    worker = make_worker()
    worker.take_up({key: out.ownership.claims_of(key) for key in keys})
    assert [worker.ownership.is_foreign(key, MASK, b"new") for key in keys] == [False, False, False, True]
    worker.take_up({})
    assert worker.ownership.is_foreign("0", MASK, b"new"), "only the photos at hand are remembered"


def test_the_next_run_knows_what_workers_of_a_killed_one_have_written(out, make_worker):
    announce(make_worker(), "a", b"not a mask")
    journals = read_journals(out.paths.state)
    assert list(journals.pending) == ["a"]
    assert journals.generation == out.generation
    assert journals.latest == {}


def test_journals_of_workers_go_once_all_of_their_photos_are_settled(out, make_worker):
    one, other = make_worker(), make_worker()
    announce(one, "a", b"1")
    announce(one, "b", b"2")
    announce(other, "c", b"3")
    state = out.paths.state
    for key in "ac":
        out.commit(Entry(key, f"in/{key}.jpg", 1, 1))
    remove_settled(state, read_journals(state).latest)
    assert len(worker_journals(state)) == 1
    out.commit(Entry("b", "in/b.jpg", 1, 1))
    remove_settled(state, read_journals(state).latest)
    assert worker_journals(state) == []


def test_only_the_lists_in_flight_are_kept(out, make_worker):
    """What came of earlier ones is in the journal of the run, or the worker would not be given more."""
    worker, counts = make_worker(), []
    for number in range(6):
        worker.take_up({})
        announce(worker, f"{number}", b"1")
        counts.append(len(worker_journals(out.paths.state)))
    assert counts == [1, *[LISTS_IN_FLIGHT] * 5]
    assert read_journals(out.paths.state).pending.keys() == {"4", "5"}


def test_a_line_of_an_earlier_run_does_not_settle_a_photo(out, make_worker):
    out.commit(Entry("a", "in/a.jpg", 1, 1))
    worker = make_worker(generation=out.generation + 1)
    announce(worker, "a", b"1")
    remove_settled(out.paths.state, read_journals(out.paths.state).latest)
    assert len(worker_journals(out.paths.state)) == 1
