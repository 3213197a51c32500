"""What goes wrong with the folder of a training run: a full disk, failing calls, a folder that is gone."""

import itertools
import json
import shutil

import pytest
from click.testing import CliRunner
from helpers import names_in, write_pairs

from carvana_batch.commands import group
from carvana_batch.errors import FolderChangedError
from carvana_batch.network.checkpoints import load_model
from carvana_batch.training.run_folder import RunFolder

SMALL = ("--size", "64x32", "--batch", "2", "--precision", "fp32", "--workers", "0", "--val-fraction", "0.4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "data")


@pytest.fixture(scope="module")
def train(data):
    return ("train", data, "run", *SMALL, "--epochs", "1")


@pytest.fixture(scope="module")
def whole(zygote, train, tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    here = tmp_path_factory.mktemp("whole")
    assert zygote.run(here, *train).code == 0
    return here / "run"


def log_of(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def assert_completes(zygote, here, train, whole):
    """Run the same command again, with --resume if there is a checkpoint, and compare the results."""
    resume = ["--resume"] if (here / "run" / "checkpoint.pt").exists() else []
    finished = zygote.run(here, *train, *resume)
    assert finished.code == 0, finished
    assert log_of(here / "run") == log_of(whole)
    assert load_model(here / "run").digest == load_model(whole).digest
    assert not list((here / "run").glob(".carvana-batch-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "lasting", "step", "message"),
    [
        ("ENOSPC", True, 199, "No space left"),
        pytest.param("EIO", False, 149, "Input/output error", marks=pytest.mark.long),
        pytest.param("EACCES", False, 151, "Permission denied", marks=pytest.mark.long),
    ],
)
def test_failing_calls_end_a_run_that_can_be_resumed(
    zygote, train, whole, tmp_path, how, lasting, step, message, count_faults
):
    """Only some calls, because all of them would take many minutes; most are writes of checkpoints."""
    here, faults = tmp_path / "here", 0
    for number in itertools.count(107, step):
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        fault = {"folder": ".", "number": number, "how": how, "lasting": lasting}
        failed = zygote.run(here, *train, fault=fault)
        if failed.code == 0:  # there are fewer calls
            break
        assert failed.code in {1, 2}, (number, failed)
        assert failed.stderr.splitlines()[-1].startswith("Error: "), (number, failed)
        assert message in failed.stderr, (number, failed)
        assert "Traceback" not in failed.stderr, (number, failed)
        assert_completes(zygote, here, train, whole)
        faults += 1
    assert faults > 2
    count_faults("a call that fails, or a full disk, ends train with one line, and it can be resumed", faults)


def rename(here):
    (here / "run").rename(here / "moved")


def remove(here):
    rename(here)
    shutil.rmtree(here / "moved")


def replace_by_link(here):
    rename(here)
    (here / "another" / ".carvana-batch").mkdir(parents=True)
    (here / "run").symlink_to(here / "another")


def replace_by_folder(here):
    rename(here)
    (here / "run").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("change", [rename, remove, replace_by_link, replace_by_folder])
@pytest.mark.parametrize("when", ["save_checkpoint", "add_to_log"])
def test_a_run_stops_when_its_folder_is_gone(
    zygote, train, whole, tmp_path, monkeypatch, change, when, count_faults
):
    monkeypatch.chdir(tmp_path)
    write, calls, seen = getattr(RunFolder, when), [], []

    def write_and_change(folder, content):
        write(folder, content)
        calls.append(content)
        if len(calls) == 2:
            change(tmp_path)
            seen.extend(names_in(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, when, write_and_change)
        result = CliRunner().invoke(group, list(map(str, train)))
    assert isinstance(result.exception, FolderChangedError), result.output
    assert str(result.exception).startswith("run was re")
    assert "with --resume" in str(result.exception)
    assert names_in(tmp_path) == sorted(seen)
    if change is not remove:
        if (tmp_path / "run").is_symlink():
            (tmp_path / "run").unlink()
        elif (tmp_path / "run").exists():
            (tmp_path / "run").rmdir()
        (tmp_path / "moved").rename(tmp_path / "run")
        assert_completes(zygote, tmp_path, train, whole)
    count_faults("a run of train whose folder is gone stops, and can be resumed once it is back", 1)
