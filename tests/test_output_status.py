import json
import shutil
import signal

import pytest
from helpers import write_mask

from carvana_batch.inputs.find import find_images
from carvana_batch.options import Choice, Options
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.output.paths import STATE_FOLDER
from carvana_batch.output.report import RunReport, write_table
from carvana_batch.output.status import RunState, read_run_state
from carvana_batch.run import Listener, run
from carvana_batch.stopping import StopFlag
from carvana_batch.values import Failure, ImageRef


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def work(out, done=(), failed=(), shard=(1, 1)):
    """What a run of predict journals; as if it were killed then."""
    with OutFolder(out, {}, shard, overwrite=False) as folder:
        folder.start(Choice("cpu", "fp32", batch=1, most_pixels=4096))
        for key in done:
            write_mask(folder.paths.mask(key), [[1]])
            folder.commit(Entry(key, f"in/{key}.jpg", 1, 1, mask_bytes=1))
        for key in failed:
            folder.commit_failure(Failure.of(ImageRef(key, out / "none.jpg"), "decode", "is empty"))


def report(out, found, done, failed=0, **counts):
    """What a run of predict leaves at its end."""
    entries = list(read_entries(out / STATE_FOLDER).values())
    failures = [entry for entry in entries if entry.failed][:failed]
    RunReport(
        found=found, done=done, failures=failures, **{"already_done": 0, "seconds": 1.0, **counts}
    ).write(out / "run.json")
    write_table(out / "report.csv", entries)


def test_folders_that_predict_has_not_written(out):
    assert read_run_state(out) is None
    write_mask(out / "a.png", [[1]])
    assert read_run_state(out) is None
    (out / STATE_FOLDER).mkdir()
    assert read_run_state(out) is None
    assert read_run_state(out / "a.png") is None


def test_a_run_that_has_ended(out):
    work(out, ["a", "b"])
    report(out, found=2, done=2)
    state = read_run_state(out)
    assert state == RunState(2, 0, left=0, running=False, cut_short=False, shards=(1, 1))
    assert state.finished


def test_failures_are_counted(out):
    work(out, ["a"], ["b", "c\nd"])
    report(out, found=3, done=1, failed=2)
    state = read_run_state(out)
    assert (state.masked, state.failed, state.left, state.finished) == (1, 2, 0, True)
    work(out, ["b"])
    report(out, found=3, done=1, failed=1, already_done=1)
    state = read_run_state(out)
    assert (state.masked, state.failed, state.finished) == (2, 1, True)


def test_a_run_that_was_killed(out):
    work(out, ["a", "b"])
    state = read_run_state(out)
    assert (state.cut_short, state.finished, state.masked) == (True, False, 2)


def test_a_second_run_that_was_killed(out):
    work(out, ["a", "b"])
    report(out, found=2, done=2)
    work(out, ["c"])
    state = read_run_state(out)
    assert (state.cut_short, state.finished, state.masked) == (True, False, 3)
    report(out, found=4, done=2, already_done=2)
    assert read_run_state(out).finished


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"found": "x"}'])
def test_a_damaged_report_counts_as_none(out, content):
    work(out, ["a"])
    report(out, found=1, done=1)
    (out / "run.json").write_text(content)
    assert read_run_state(out).cut_short


def test_copying_a_folder_changes_nothing(tmp_path, out):
    work(out, ["a"])
    report(out, found=1, done=1)
    shutil.copytree(out / STATE_FOLDER, tmp_path / "copy" / STATE_FOLDER)
    for name in ("run.json", "report.csv"):
        shutil.copy(out / name, tmp_path / "copy" / name)
    assert read_run_state(tmp_path / "copy") == read_run_state(out)


def test_a_run_that_is_at_work(out):
    work(out, ["a"])
    report(out, found=1, done=1)
    with OutFolder(out, {}, (1, 1), overwrite=False):
        assert read_run_state(out).running
        assert not read_run_state(out).finished
    assert not read_run_state(out).running
    with OutFolder(out, {}, (2, 3), overwrite=False):
        assert read_run_state(out).running


def test_a_folder_that_must_not_be_written(out):
    work(out, ["a"])
    report(out, found=1, done=1)
    for lock in (out / STATE_FOLDER).glob("lock-*"):
        lock.unlink()
        lock.mkdir()  # root may write everything, but opens no folder as a file
    assert read_run_state(out).finished


def test_a_journal_that_cannot_be_read(out):
    (out / STATE_FOLDER / "journal-1-of-1.jsonl").mkdir(parents=True)
    assert read_run_state(out) is None


def test_shards(out):
    work(out, ["a", "d", "g"], shard=(1, 3))
    report(out, found=3, done=3)
    state = read_run_state(out)
    assert (state.shards, state.left, state.finished) == ((1, 3), 4, False)
    work(out, ["b"], shard=(2, 3))
    assert read_run_state(out).cut_short
    work(out, ["c", "f"], shard=(3, 3))
    report(out, found=2, done=2)
    state = read_run_state(out)
    assert (state.shards, state.left, state.cut_short, state.finished) == ((3, 3), 0, False, True)
    report(out, found=3, done=3)  # of 7 to 9 photos
    assert read_run_state(out).left == 1
    work(out, ["e"], shard=(2, 3))
    report(out, found=2, done=1, already_done=1)
    assert read_run_state(out).finished


def test_work_that_was_shared_in_several_ways(out):
    work(out, ["a", "b"], shard=(2, 2))
    work(out, ["c"])
    report(out, found=3, done=1, already_done=2)
    assert read_run_state(out) == RunState(3, 0, left=0, running=False, cut_short=False, shards=None)
    assert read_run_state(out).finished


def test_other_photos_do_not_stand_for_missing_ones(out):
    work(out, ["a", "b", "x", "y"], shard=(1, 2))
    work(out, ["c"], shard=(2, 2))
    report(out, found=3, done=1, foreign=2)
    assert read_run_state(out).left == 2


def test_what_predict_itself_leaves(model, drawn, tmp_path, out):
    photos = tmp_path / "in"
    shutil.copytree(drawn / "images", photos)
    (photos / "bad.jpg").write_text("text")
    options = Options(precision="fp32", workers=0)
    stop = StopFlag()

    def show(_):
        stop.signal = signal.SIGINT

    run(find_images(photos).refs, out, model, options, Listener(on_progress=show), stop)
    stopped = read_run_state(out)
    assert not (stopped.finished or stopped.running or stopped.cut_short)
    assert stopped.masked + stopped.failed + stopped.left == 5
    assert stopped.left > 0
    run(find_images(photos).refs, out, model, options)
    assert read_run_state(out) == RunState(4, 1, left=0, running=False, cut_short=False, shards=(1, 1))
    assert json.loads((out / "run.json").read_text())["failed"] == 1
