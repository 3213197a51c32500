"""Real runs whose stdout or stderr is closed, or whose reader dies: masking goes on."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import TIMEOUT, results_in, run_undisturbed, wait_for

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "2")


@pytest.fixture
def many_photos(tmp_path, drawn):
    """A folder with forty small photos in ``images``."""
    folder = tmp_path / "here"
    (folder / "images").mkdir(parents=True)
    for number in range(40):
        shutil.copy2(drawn / "images" / f"car{number % 4}.jpg", folder / "images" / f"{number:02}.jpg")
    return folder


@contextlib.contextmanager
def read_by(process_of):
    """Let ``process_of(write)`` start a process that writes to a pipe; yield it and a reader of the pipe."""
    read, write = os.pipe()
    process = process_of(write)
    os.close(write)
    with open(read) as reader:  # noqa: PTH123
        yield process, reader


def start(here, *arguments, **files):
    return subprocess.Popen(
        [sys.executable, "-m", "carvana_batch", *PREDICT, *arguments],
        cwd=here,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
        **files,
    )


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_ctrl_c_that_also_ends_the_reader(zygote, many_photos, count_faults, both):
    """As in `predict ... | tee log`: the whole group gets the signal, and the reader is dead first."""
    expected = results_in(run_undisturbed(zygote, many_photos, *PREDICT))
    with read_by(
        lambda write: start(many_photos, stdout=write, stderr=write if both else subprocess.PIPE)
    ) as (process, reader):
        wait_for(lambda: len(list((many_photos / "out").glob("*.png"))) >= 3)
        reader.close()
        os.killpg(process.pid, signal.SIGINT)
        _, printed = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, printed or "") == (130, "")
    done = len(list((many_photos / "out").glob("*.png")))
    assert 3 <= done < 40
    assert len((many_photos / "out" / "report.csv").read_text().splitlines()) == 1 + done
    resumed = zygote.run(many_photos, *PREDICT)
    assert resumed.code == 0
    assert f"{done} done before" in resumed.stdout
    assert results_in(many_photos / "out") == expected
    count_faults("stdout or stderr is closed", 1)


@pytest.mark.slow
def test_reader_that_wants_one_line_only(zygote, many_photos, count_faults):
    expected = results_in(run_undisturbed(zygote, many_photos, *PREDICT))
    with read_by(lambda write: start(many_photos, stdout=write, stderr=write)) as (process, reader):
        assert reader.readline() == "40 photos, model auto\n"
        reader.close()
        assert process.wait(TIMEOUT) == 141
    assert results_in(many_photos / "out") == expected
    count_faults("stdout or stderr is closed", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
        (">/dev/full", 1),
        pytest.param(">&-", 0, marks=pytest.mark.long),
        pytest.param(">&- 2>&-", 0, marks=pytest.mark.long),
        pytest.param("2>/dev/full", 0, marks=pytest.mark.long),
    ],
)
def test_closed_and_full_outputs_do_not_stop_masking(zygote, many_photos, count_faults, redirection, code):
    (many_photos / "images" / "bad.jpg").write_text("text")
    assert zygote.run(many_photos, *PREDICT).code == 3
    expected = results_in(many_photos / "out")
    shutil.rmtree(many_photos / "out")
    (many_photos / "images" / "bad.jpg").unlink()
    command = shlex.join([sys.executable, "-m", "carvana_batch", *PREDICT])
    finished = subprocess.run(
        ["sh", "-c", f"exec {command} {redirection}"],
        cwd=many_photos,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert finished.returncode == code
    assert "Traceback" not in finished.stderr
    if code:
        assert finished.stderr == "Error: Cannot write to the standard output: No space left on device.\n"
    del expected["report.csv"]
    made = results_in(many_photos / "out")
    assert len(made.pop("report.csv").splitlines()) == 41
    assert made == expected
    count_faults("stdout or stderr is closed", 1)
