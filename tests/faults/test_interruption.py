"""Real processes that are killed, interrupted, or run at the same time."""

import json
import re
import shlex
import shutil
import signal
from itertools import pairwise

import pytest
from helpers import Terminal, results_in, run_undisturbed, wait_for, write_photo
from PIL import Image

PREDICT = ("predict", "images", "out", "--precision", "fp32")


@pytest.fixture
def many_photos(tmp_path, drawn):
    """A folder with sixty small photos in ``images``, enough to interrupt a run between them."""
    folder = tmp_path / "here"
    for number in range(60):
        target = folder / "images" / f"{number % 3}" / f"{number:02}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(drawn / "images" / f"car{number % 4}.jpg", target)
    return folder


def journaled(out):
    """The keys of the complete lines of the journals that say what is done."""
    keys = set()
    for journal in (out / ".carvana-batch").glob("journal-*"):
        for line in journal.read_text().splitlines():
            if line.endswith("}") and not json.loads(line).get("pending"):
                keys.add(json.loads(line)["key"])
    return keys


def masks_in(folder):
    return list((folder / "out").rglob("[!.]*.png"))


def test_run_resumes_after_a_kill_with_workers(zygote, many_photos, count_faults):
    expected = results_in(run_undisturbed(zygote, many_photos, *PREDICT))
    for masks in (1, 20):
        process = zygote.start(many_photos, *PREDICT, "--workers", "2")
        wait_for(lambda masks=masks: len(masks_in(many_photos)) >= masks)
        process.send(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    done = journaled(many_photos / "out")
    resumed = zygote.run(many_photos, *PREDICT, "--workers", "1", "--json")
    assert resumed.code == 0, resumed
    assert json.loads(resumed.stdout)["done"] == 60 - len(done) > 0
    assert results_in(many_photos / "out") == expected
    count_faults("the run is killed or interrupted", 2)


def test_second_run_on_the_same_folder_is_refused(zygote, many_photos, count_faults):
    first = zygote.start(many_photos, *PREDICT, "--workers", "1")
    wait_for(lambda: masks_in(many_photos))
    first.stop_all()
    try:
        before = results_in(many_photos / "out")
        for options in ((), ("--shard", "1/2"), ("--overwrite",), ("--threshold", "0.1")):
            second = zygote.run(many_photos, *PREDICT, *options)
            assert (second.code, second.stdout.count("\n")) == (11, 1), options
            assert re.fullmatch(rf"Error: out is in use by process {first.pid} on .*\n", second.stderr), (
                options
            )
        assert results_in(many_photos / "out") == before
    finally:
        first.send_to_all(signal.SIGCONT)
    assert first.wait().code == 0
    count_faults("a second run on the same out folder", 4)


def test_shards_together_make_what_one_run_makes(zygote, many_photos):
    expected = results_in(run_undisturbed(zygote, many_photos, *PREDICT))
    # This leaves a lock file, which all shards check at the same moment.
    assert zygote.run(many_photos, *PREDICT, "--limit", "1").code == 0
    shards = [zygote.start(many_photos, *PREDICT, "--shard", f"{i}/3", "--workers", "0") for i in (1, 2, 3)]
    for shard in shards:
        finished = shard.wait()
        assert finished.code == 0, finished
    assert results_in(many_photos / "out") == expected


def test_unsharded_run_beside_a_shard_is_refused(zygote, many_photos, count_faults):
    shard = zygote.start(many_photos, *PREDICT, "--shard", "1/2", "--workers", "0")
    wait_for(lambda: masks_in(many_photos))
    shard.send(signal.SIGSTOP)
    try:
        for options in ((), ("--shard", "1/3"), ("--shard", "1/2")):
            refused = zygote.run(many_photos, *PREDICT, *options)
            assert (refused.code, f"process {shard.pid} on" in refused.stderr) == (11, True), options
        other = zygote.run(many_photos, *PREDICT, "--shard", "2/2", "--limit", "2")
        assert other.code == 0, other
    finally:
        shard.send(signal.SIGCONT)
    assert shard.wait().code == 0
    count_faults("a second run on the same out folder", 3)


def test_sigterm_to_run_and_workers_stops_in_order(zygote, many_photos, count_faults):
    process = zygote.start(many_photos, *PREDICT, "--workers", "2", tidy=True)
    wait_for(lambda: masks_in(many_photos))
    process.send_to_all(signal.SIGTERM)
    finished = process.wait()
    assert finished.code == 143
    assert finished.stderr == ""
    assert finished.stdout.endswith(
        "Stopped. To go on:\n  carvana-batch predict images out --precision fp32 --workers 2\n"
    )
    done = masks_in(many_photos)
    assert 0 < len(done) < 60
    assert {path.relative_to(many_photos / "out").with_suffix("").as_posix() for path in done} == journaled(
        many_photos / "out"
    )
    rows = (many_photos / "out" / "report.csv").read_text().splitlines()
    assert len(rows) == 1 + len(done)
    count_faults("the run is killed or interrupted", 1)


def without_escapes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_ctrl_c_on_a_terminal(zygote, many_photos, count_faults):
    expected = results_in(run_undisturbed(zygote, many_photos, *PREDICT))
    with Terminal() as terminal:
        process = zygote.start(
            many_photos, *PREDICT, "--workers", "2", "--overwrite", tty=terminal.name, tidy=True
        )
        wait_for(lambda: masks_in(many_photos))
        terminal.press(b"\x03")
        wait_for(lambda: (terminal.printed, process.poll())[1], lambda code: code == 130)
        printed = terminal.printed
    lines = without_escapes(printed).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert max(len(line.replace("^C", "")) for line in lines if "━" in line) <= 80
    assert any(re.search(r"━.* \d+/60 .*/s ", line) for line in lines)
    assert printed.count("Stopping") == 1
    assert "Traceback" not in printed
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l") >= 0
    (resume,) = (after for line, after in pairwise(lines) if line == "Stopped. To go on:")
    program, *arguments = shlex.split(resume)
    assert (program, arguments) == ("carvana-batch", [*PREDICT, "--workers", "2"])
    done = journaled(many_photos / "out")
    assert len(done) == len(masks_in(many_photos)) < 60
    resumed = zygote.run(many_photos, *arguments, "--json")
    assert (resumed.code, json.loads(resumed.stdout)["done"]) == (0, 60 - len(done))
    assert results_in(many_photos / "out") == expected
    count_faults("the run is killed or interrupted", 1)


def test_second_ctrl_c_stops_immediately(zygote, here, count_faults):
    write_photo(here / "small.jpg")
    photo = Image.open(here / "small.jpg").resize((1500, 1000))
    for number in range(8):
        photo.save(here / "images" / f"large{number}.jpg")
    with Terminal() as terminal:
        process = zygote.start(here, *PREDICT, "--workers", "1", tty=terminal.name)
        wait_for(lambda: len(masks_in(here)) == 2)  # the large ones are next
        terminal.press(b"\x03")
        wait_for(lambda: "Stopping" in terminal.printed)
        terminal.press(b"\x03")
        wait_for(lambda: (terminal.printed, process.poll())[1], lambda code: code == 130)
        printed = terminal.printed
    assert "Traceback" not in printed
    assert "To go on" not in printed
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l") >= 0
    done = journaled(here / "out")
    assert {"car0"} <= done <= {"car0", "car1"}
    for path in (here / "images").glob("large*"):
        path.unlink()
    resumed = zygote.run(here, *PREDICT, "--json")
    assert (resumed.code, json.loads(resumed.stdout)["already_done"]) == (0, len(done))
    count_faults("the run is killed or interrupted", 2)
