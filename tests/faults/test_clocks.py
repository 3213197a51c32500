"""Clocks that are set back or forward, or differ between machines, change nothing."""

import itertools
import json
import shutil
import time

import pytest
from click.testing import CliRunner

from carvana_batch.commands import group
from carvana_batch.output.folder import OutFolder
from carvana_batch.output.journal import Entry, read_entries
from carvana_batch.values import ImageRef

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "0")
PROMISE = "a clock is set back or forward between runs"
YEAR = 365 * 24 * 3600 * 10**9
REF = ImageRef("a", "in/a.jpg")
FAILED = Entry("a", "in/a.jpg", 1, 1, stage="decode", reason="is cut short")
MASKED = Entry("a", "in/a.jpg", 1, 1, mask_bytes=5, mask_checksum=1)


@pytest.fixture
def set_clock(monkeypatch):
    """``set_clock(years)`` sets the clock so many years after now."""
    real = time.time_ns

    def change(years):
        monkeypatch.setattr(time, "time_ns", lambda: real() + years * YEAR)

    return change


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations([(1, 1), (1, 2), (2, 2), (1, 3)], 2))
)
@pytest.mark.parametrize("find", [True, False])
def test_the_later_run_counts_whatever_the_clock(tmp_path, set_clock, first, second, find, count_faults):
    for shard, entry, year in ((first, FAILED, 5), (second, MASKED, -5), (first, FAILED, 0)):
        set_clock(year)
        with OutFolder(tmp_path / "out", {}, shard, False) as out:
            if find:
                out.find_missing([REF])
            out.commit(entry)
        assert read_entries(out.paths.state) == {"a": entry}
        count_faults(PROMISE, 1)


def test_lines_of_earlier_versions_come_first(tmp_path, set_clock, count_faults):
    state = tmp_path / "out" / ".carvana-batch"
    state.mkdir(parents=True)
    old = {"key": "a", "source": "in/a.jpg", "source_bytes": 1, "source_time": 1}
    lines = {
        "1-of-2": old | {"stage": "decode", "committed": 2**62},
        "1-of-3": old | {"mask_bytes": 4, "committed": 2},
        "1-of-4": old | {"mask_bytes": 3, "committed": 1},
    }
    for name, line in lines.items():
        (state / f"journal-{name}.jsonl").write_text(json.dumps(line))
    assert read_entries(state)["a"].failed  # only the clock tells
    set_clock(-30)
    with OutFolder(tmp_path / "out", {}, (1, 1), False) as out:
        out.commit(MASKED)
    assert read_entries(state) == {"a": MASKED}
    count_faults(PROMISE, 1)


def test_a_photo_that_failed_in_the_future_is_masked(
    tmp_path, drawn, model, set_clock, monkeypatch, count_faults
):
    assert model  # loaded once, on one thread
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    shutil.copy2(drawn / "images" / "car0.jpg", tmp_path / "images")
    (tmp_path / "images" / "car1.jpg").write_bytes(b"")
    set_clock(5)
    assert CliRunner().invoke(group, PREDICT).exit_code == 3
    shutil.copy2(drawn / "images" / "car1.jpg", tmp_path / "images")
    set_clock(0)
    for number in (1, 2):
        result = CliRunner().invoke(group, (*PREDICT, "--shard", f"{number}/2"))
        assert result.exit_code == 0
    rows = (tmp_path / "out" / "report.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[:2] for row in rows) == [["car0", "done"], ["car1", "done"]]
    assert "2 done before" in CliRunner().invoke(group, PREDICT).stdout
    count_faults(PROMISE, 1)


def test_overwriting_keeps_the_order_of_what_stays(tmp_path, set_clock):
    """The lines that stay are older than those of the run that has overwritten the others."""
    folder = tmp_path / "out"
    set_clock(5)
    with OutFolder(folder, {}, (1, 2), False) as out:
        out.commit(MASKED)
        (folder / "a.png").write_bytes(b"12345")
    set_clock(0)
    with OutFolder(folder, {}, (1, 1), overwrite=True) as out:
        out.find_missing([ImageRef("b", "in/b.jpg")])
        out.commit(FAILED)
    assert read_entries(out.paths.state) == {"a": FAILED}
