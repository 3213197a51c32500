"""An out folder that someone renames, removes, replaces or empties while a run works in it."""

import json
import shutil

import pytest
from click.testing import CliRunner
from helpers import names_in, results_in

from carvana_batch.commands import group
from carvana_batch.output.writer import MaskWriter

ALL_KINDS = ("predict", "images", "out", "--precision", "fp32", "--workers", "0", "--save", "overlay")


@pytest.fixture
def here(tmp_path, drawn, monkeypatch):
    """The current folder, with six small photos in ``images``."""
    for number in range(6):
        target = tmp_path / "images" / "ab"[number % 2] / f"car{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(drawn / "images" / f"car{number % 4}.jpg", target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_with_fault(model, monkeypatch):
    """``run_with_fault(fault, when)`` runs predict and calls ``fault`` after ``when`` masks."""
    assert model  # loaded once, on one thread
    monkeypatch.setattr("carvana_batch.output.writer_threads.MOST_UNWRITTEN", 0)  # one photo at a time

    def invoke(fault=None, when=0):
        written = []
        write = MaskWriter.write

        def write_and_change(writer, prediction):
            result = write(writer, prediction)
            written.append(result)
            if fault is not None and len(written) == when:
                fault()
            return result

        with monkeypatch.context() as patch:
            patch.setattr(MaskWriter, "write", write_and_change)
            return CliRunner().invoke(group, ALL_KINDS)

    return invoke


def rename(here):
    (here / "out").rename(here / "moved")


def replace_by_link(here):
    rename(here)
    (here / "another" / ".carvana-batch").mkdir(parents=True)
    (here / "out").symlink_to(here / "another")


def replace_by_folder(here):
    rename(here)
    (here / "out").mkdir()


def replace_by_copy(here):
    rename(here)
    shutil.copytree(here / "moved", here / "out")


def rename_state(here):
    (here / "out" / ".carvana-batch").rename(here / "moved")


FAULTS = {
    "renamed": (rename, "out was renamed or removed"),
    "replaced by a link": (replace_by_link, "out was replaced by another folder or link"),
    "replaced by a folder": (replace_by_folder, "out was replaced by another folder or link"),
    "replaced by a copy": (replace_by_copy, "out was replaced by another folder or link"),
    "its state renamed": (rename_state, "out/.carvana-batch was renamed or removed"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("when", [1, 3, 6])
def test_a_run_stops_when_its_folder_changes(here, run_with_fault, change, message, when, count_faults):
    assert run_with_fault().exit_code == 0
    expected, names = results_in(here / "out"), names_in(here / "out")
    shutil.rmtree(here / "out")
    seen = {}

    def fault():
        change(here)
        seen["names"] = [name for name in names_in(here) if not name.startswith("images")]

    result = run_with_fault(fault, when)
    assert str(result.exception).startswith(message), result.output
    assert result.exception.exit_code == 1
    assert [name for name in names_in(here) if not name.startswith("images")] == seen["names"]

    if change is rename_state:
        (here / "moved").rename(here / "out" / ".carvana-batch")
    else:
        if (here / "out").is_symlink():
            (here / "out").unlink()
        shutil.rmtree(here / "out", ignore_errors=True)
        (here / "moved").rename(here / "out")
    assert run_with_fault().exit_code == 0
    assert (results_in(here / "out"), names_in(here / "out")) == (expected, names)
    count_faults("the out folder is renamed, removed or replaced during a run", 1)


@pytest.mark.parametrize("when", [1, 6])
def test_a_removed_folder_is_not_made_again(here, run_with_fault, when, count_faults):
    result = run_with_fault(lambda: shutil.rmtree(here / "out"), when)
    assert str(result.exception).startswith("out was renamed or removed during the run")
    assert not (here / "out").exists()
    count_faults("the out folder is renamed, removed or replaced during a run", 1)


def test_masks_that_are_gone_at_the_end_are_counted(here, run_with_fault, count_faults):
    assert run_with_fault().exit_code == 0
    expected = results_in(here / "out")
    shutil.rmtree(here / "out")

    def remove_some():
        shutil.rmtree(here / "out" / "a")
        (here / "out" / "_overlay" / "b" / "car1.jpg").unlink()

    result = run_with_fault(remove_some, 4)  # a/car0, a/car2, a/car4 and b/car1
    assert result.exit_code == 3
    assert "2 masked, 4 failed -> out" in result.stdout.splitlines()
    assert result.stderr.count("files were removed or changed during the run") == 4
    report = json.loads((here / "out" / "run.json").read_text())
    assert (report["done"], report["failed"], report["left"]) == (2, 4, 0)
    table = (here / "out" / "report.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in table[1:5]] == [
        [key, "failed"] for key in ("a/car0", "a/car2", "a/car4", "b/car1")
    ]
    result = run_with_fault()
    report = json.loads((here / "out" / "run.json").read_text())
    assert (result.exit_code, report["done"], report["failed"]) == (0, 3, 0)
    assert "without the network: 1 photo" in result.stdout  # b/car1, of which only the overlay was gone
    assert results_in(here / "out") == expected
    count_faults("masks are removed during a run", 1)
