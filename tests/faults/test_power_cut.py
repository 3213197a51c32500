"""What a run reports as done is on the disk: the order of syncs and renames, which a power cut would tell."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import results_in

from carvana_batch.commands import group
from carvana_batch.output.syncing import Syncing

PREDICT = ("predict", "images", "out", "--precision", "fp32", "--workers", "0", "--save", "overlay")
PROMISE = "power is cut after a run"


@pytest.fixture
def here(tmp_path, drawn, model, monkeypatch):
    """The current folder, with four small photos in two folders below ``images``."""
    assert model  # loaded once, on one thread
    for number in range(4):
        target = tmp_path / "images" / "ab"[number % 2] / f"car{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(drawn / "images" / f"car{number}.jpg", target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def events(monkeypatch):
    """What is synced and renamed: ("sync" or "rename", path) in this order."""
    happened = []
    sync, rename = os.fsync, Path.replace

    def record_sync(descriptor):
        happened.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def record_rename(path, target):
        result = rename(path, target)
        happened.append(("rename", Path(target).resolve()))
        return result

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_rename)
    return happened


def carvana_batch(*arguments):
    return CliRunner().invoke(group, arguments)


def lost_by_a_power_cut(out, events):
    """Files and folders of a run that would be lost or torn if the power went when run.json has its name."""
    end = events.index(("rename", out / "run.json"))
    lost = []
    state = out / ".carvana-batch"
    for path in [*out.rglob("*.png"), *out.rglob("*.jpg"), *state.glob("journal-*")]:
        named = max((n for n, event in enumerate(events) if event == ("rename", path)), default=-1)
        if ("sync", path) not in events[named + 1 : end]:
            lost.append(path)
        for folder in path.parents:
            if folder.is_relative_to(out) and ("sync", folder) not in events[named + 1 : end]:
                lost.append(folder)
    return sorted(set(lost))


def test_masks_are_on_the_disk_before_the_run_says_so(here, events, count_faults):
    assert carvana_batch(*PREDICT).exit_code == 0
    assert len(list((here / "out").rglob("*.png"))) == 4
    assert lost_by_a_power_cut(here / "out", events) == []
    count_faults(PROMISE, 1)


def test_the_test_notices_what_is_not_synced(here, events, monkeypatch):
    monkeypatch.setattr(Syncing, "sync", lambda *_: None)
    assert carvana_batch(*PREDICT).exit_code == 0
    assert len(lost_by_a_power_cut(here / "out", events)) > 8


def test_masks_of_a_killed_run_are_synced_by_the_next(here, events, monkeypatch, count_faults):
    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Syncing, "sync", kill)
        assert carvana_batch(*PREDICT).exit_code != 0
    assert not (here / "out" / "run.json").exists()
    events.clear()
    assert "0 masked, 4 done before" in carvana_batch(*PREDICT).stdout
    end = events.index(("rename", here / "out" / "run.json"))
    synced = {path for kind, path in events[:end] if kind == "sync"}
    assert synced >= {*(here / "out").rglob("*.png"), *(here / "out").rglob("*.jpg")}
    count_faults(PROMISE, 1)

    events.clear()  # and only once
    assert "0 masked, 4 done before" in carvana_batch(*PREDICT).stdout
    assert not any(path.suffix == ".png" for _, path in events)
    (here / "out" / "a" / "car0.png").unlink()
    assert "1 masked, 3 done before" in carvana_batch(*PREDICT).stdout
    assert {path for kind, path in events if path.suffix == ".png" and kind == "sync"} == {
        here / "out" / "a" / "car0.png"
    }


def test_a_disk_that_fails_to_sync_is_not_called_done(here, monkeypatch, count_faults):
    sync = os.fsync

    def fail(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "car2.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        result = carvana_batch(*PREDICT)
    assert "car2.png: Input/output error" in str(result.exception)
    assert (result.exception.exit_code, (here / "out" / "run.json").exists()) == (1, False)
    assert carvana_batch(*PREDICT).exit_code == 0
    count_faults(PROMISE, 1)


def test_any_flipped_bit_is_found_and_made_good(here, count_faults):
    assert carvana_batch(*PREDICT).exit_code == 0
    assert carvana_batch("verify", "out").exit_code == 0
    expected = results_in(here / "out")
    mask, overlay = here / "out" / "a" / "car0.png", here / "out" / "_overlay" / "b" / "car1.jpg"
    for path in (mask, overlay):
        content = path.read_bytes()
        for position in range(0, len(content), max(1, len(content) // 40)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            result = carvana_batch("verify", "out")
            assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
            assert result.stderr.startswith(f"{path.relative_to(here)}: is damaged")
            count_faults("a bit of a mask or extra file is flipped", 1)
        path.write_bytes(content)
    for path in (mask, overlay):
        path.write_bytes(path.read_bytes()[:60] + bytes(path.stat().st_size - 60))
    assert "0 masked, 4 done before" in carvana_batch(*PREDICT).stdout  # they have the right sizes
    assert "2 to do" in carvana_batch(*PREDICT, "--verify", "--dry-run").stdout
    assert "2 masked, 2 done before" in carvana_batch(*PREDICT, "--verify").stdout
    assert results_in(here / "out") == expected
    assert carvana_batch("verify", "out").exit_code == 0
    assert "4 done before" in carvana_batch(*PREDICT, "--verify").stdout
