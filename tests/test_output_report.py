import csv
import dataclasses
import errno
import json
import os

import pytest

from carvana_batch import __version__
from carvana_batch.errors import OutOfSpaceError
from carvana_batch.notes import SUMMARIES, Note
from carvana_batch.output.journal import Entry
from carvana_batch.output.report import COLUMNS, RunReport, write_table
from carvana_batch.values import Failure


def done(key, expected_dice=0.5, **values):
    return Entry(key, f"in/{key}.jpg", 1, 1, 4, 3, 0.25, expected_dice, mask_bytes=9, **values)


def failed(key, stage="decode", reason="is empty (0 bytes)"):
    return Entry(key, f"in/{key}.jpg", 1, 1, stage=stage, reason=reason)


def read_table(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({}, 0),
        ({"already_done": 2}, 0),
        ({"failures": [failed("a")]}, 3),
        ({"without_truth": [done("a")]}, 3),
        ({"undrawn": [Failure("a", "write", "is too large")]}, 3),
        ({"stopped_by": 2}, 130),
        ({"stopped_by": 15, "failures": [failed("a")]}, 143),
    ],
)
def test_exit_code(values, code):
    assert RunReport(**{"found": 2, "already_done": 0, **values}).exit_code == code


def test_throughput_counts_only_masks_of_this_run():
    report = RunReport(found=10, already_done=4, done=6, seconds=2.0)
    assert report.photos_per_second == 3.0
    assert RunReport(found=10, already_done=10).photos_per_second == 0.0


def test_bottleneck_is_the_slowest_stage():
    assert RunReport(1, 0, stages={"decode": 1.0, "predict": 3.0, "write": 2.0}).bottleneck == "predict"
    assert RunReport(1, 0).bottleneck == ""


def test_dice_summary():
    report = RunReport(1, 0, dice=[float(value) / 100 for value in range(101)])
    assert report.dice_summary == pytest.approx({"mean": 0.5, "p05": 0.05, "p50": 0.5, "p95": 0.95})
    assert RunReport(1, 0).dice_summary is None


def test_remaining_photos_are_neither_masked_nor_failed():
    failures = [Entry(key, f"in/{key}.jpg", 0, 0, stage="decode") for key in "ab"]
    report = RunReport(found=9, already_done=1, done=3, failures=failures, seconds=1.0)
    assert report.left == report.describe()["left"] == 3
    # A photo that failed in an earlier run, and that this one did not reach, is not counted twice.
    assert RunReport(found=2, already_done=0, done=1, failures=failures, stopped_by=2).left == 0


def test_json_report(tmp_path):
    report = RunReport(
        found=5,
        already_done=1,
        done=2,
        failures=[failed("a"), failed("\udcff\n")],
        kept=[done("c").keep(9, 1)],
        drawn=9,
        undrawn=[Failure("d", "write", "is too large", "in/d.jpg")],
        without_truth=[done("b", reason="no true mask of this name")],
        notes={Note.FIRST_PAGE: 3},
        foreign=7,
        expected_dice=[0.5, 1.0],
        doubtful=6,
        dice=[0.25],
        correlation=-0.5,
        seconds=1.23456,
        stages={"decode": 0.1234567, "predict": 1.0, "write": 0.0},
        decode_seconds=0.5555555,
        write_seconds=0.25,
        peak_memory=123,
        device="2 CPU threads",
        engine={"name": "local"},
        chosen={"batch": 1},
        settings={"model": "m"},
        options={"size": "native"},
        images="/photos/in",
        warnings=["out of memory"],
    )
    report.write(tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text(encoding="ascii"))
    assert content == {
        "version": __version__,
        "exit_code": 3,
        "found": 5,
        "already_done": 1,
        "done": 2,
        "failed": 2,
        "left": 0,
        "failures": [
            {"image": "in/a.jpg", "stage": "decode", "reason": "is empty (0 bytes)"},
            {"image": "in/\udcff\n.jpg", "stage": "decode", "reason": "is empty (0 bytes)"},
        ],
        "kept": ["c"],
        "drawn": 9,
        "undrawn": [{"image": "in/d.jpg", "reason": "is too large"}],
        "without_truth": ["b"],
        "empty": [],
        "notes": {"only the first page or frame": 3},
        "masks_of_other_photos": 7,
        "mean_expected_dice": 0.75,
        "doubtful": 6,
        "dice": {"mean": 0.25, "p05": 0.25, "p50": 0.25, "p95": 0.25},
        "doubt_rank_correlation": -0.5,
        "seconds": 1.235,
        "photos_per_second": 1.62,
        "stage_seconds": {"decode": 0.123, "predict": 1.0, "write": 0.0},
        "decode_seconds": 0.556,
        "write_seconds": 0.25,
        "bottleneck": "predict",
        "peak_memory_bytes": 123,
        "device": "2 CPU threads",
        "engine": {"name": "local"},
        "chosen": {"batch": 1},
        "settings": {"model": "m"},
        "options": {"size": "native"},
        "images": "/photos/in",
        "directory": None,
        "warnings": ["out of memory"],
    }
    assert content == report.describe()


def test_a_report_prints_as_its_counts():
    assert repr(RunReport(1, 0, done=1)) == "<RunReport of 1 photo: 1 masked>"
    report = RunReport(1234, 1000, done=200, failures=[failed("a")], kept=[done("c")], doubtful=6)
    assert str(report) == (
        "<RunReport of 1,234 photos: 200 masked, 1,000 done before, 1 failed, 1 kept, 32 left, 6 doubtful>"
    )


def test_json_report_of_a_run_without_photos():
    content = RunReport(found=0, already_done=0).describe()
    assert (content["mean_expected_dice"], content["dice"], content["photos_per_second"]) == (None, None, 0.0)
    assert content["doubt_rank_correlation"] is None


def test_table_starts_with_failures_and_doubtful_masks(tmp_path):
    entries = [
        done("sure", 0.99, dice=0.123456789),
        failed("z"),
        done("b", 0.5),
        done("a", 0.5),
        failed("y", "write", "is too large"),
        done("doubtful", 0.1),
        done("checked", 0.9, doubt=0.95),
    ]
    write_table(tmp_path / "report.csv", entries)
    header, *rows = read_table(tmp_path / "report.csv")
    assert tuple(header) == COLUMNS
    assert rows == [
        ["y", "failed", "", "", "", "", "", "", "write", "is too large", ""],
        ["z", "failed", "", "", "", "", "", "", "decode", "is empty (0 bytes)", ""],
        ["checked", "done", "0.900000", "0.950000", "", "0.250000", "4", "3", "", "", ""],
        ["doubtful", "done", "0.100000", "", "", "0.250000", "4", "3", "", "", ""],
        ["a", "done", "0.500000", "", "", "0.250000", "4", "3", "", "", ""],
        ["b", "done", "0.500000", "", "", "0.250000", "4", "3", "", "", ""],
        ["sure", "done", "0.990000", "", "0.123457", "0.250000", "4", "3", "", "", ""],
    ]
    write_table(tmp_path / "again.csv", reversed(entries))
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "report.csv").read_bytes()


def test_table_joins_the_notes_of_a_photo(tmp_path):
    noted = dataclasses.replace(done("a"), notes=(Note.FIRST_PAGE, Note.FIRST_PAGE))
    write_table(tmp_path / "report.csv", [noted])
    header, row = read_table(tmp_path / "report.csv")
    assert row[header.index("notes")] == "only the first page or frame; only the first page or frame"


def test_table_tells_how_a_photo_is_damaged(tmp_path):
    noted = dataclasses.replace(done("a"), notes=(Note.DAMAGED,), damage="each \\n has become \\r\\n")
    write_table(tmp_path / "report.csv", [noted])
    header, row = read_table(tmp_path / "report.csv")
    assert row[header.index("notes")] == "damaged: each \\n has become \\r\\n"


def test_each_note_has_a_summary_with_a_number():
    assert SUMMARIES.keys() == set(Note)
    assert all("7 photos" in line.format(photos="7 photos", see="") for line in SUMMARIES.values())


def test_table_keeps_any_name(tmp_path):
    names = ["=1+1", "+1", "-1", "@a", "\ta", 'a"b,c', "a\nb", "\udcff", "日本", "'a"]
    write_table(tmp_path / "report.csv", [failed(name, reason=name) for name in names])
    rows = read_table(tmp_path / "report.csv")[1:]
    first_cells = {row[0] for row in rows}
    assert first_cells == {"'=1+1", "'+1", "'-1", "'@a", r"\x09a", 'a"b,c', r"a\x0ab", "\udcff", "日本", "'a"}
    assert all(row[9] == row[0] for row in rows)


def test_full_disk_keeps_the_earlier_report(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    table, report = tmp_path / "report.csv", tmp_path / "run.json"
    write_table(table, [done("a")])
    RunReport(1, 0).write(report)
    before = table.read_bytes(), report.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutOfSpaceError, match=r"report\.csv"):
        write_table(table, [])
    with pytest.raises(OutOfSpaceError, match=r"run\.json"):
        RunReport(2, 0).write(report)
    assert (table.read_bytes(), report.read_bytes()) == before
