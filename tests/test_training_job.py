"""A whole training run: what is refused before the first step, and what is in RUN at the end."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import leave_temporary_file, names_below, names_in, store, with_orientation, write_pairs
from PIL import Image

from carvana_batch import Masker
from carvana_batch.errors import FolderInUseError, UsageError
from carvana_batch.masks.fit import Fit
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.segunet import SegUNet
from carvana_batch.stopping import StopFlag
from carvana_batch.training.job import train
from carvana_batch.training.listener import Outcome, TrainingListener
from carvana_batch.training.pairs import CheckedPair, Pair
from carvana_batch.training.run_folder import RunFolder
from carvana_batch.training.settings import TrainingSettings
from carvana_batch.training.split import find_split
from carvana_batch.training.starting import check_cars

SETTINGS = TrainingSettings(
    model="tiny", epochs=2, batch=2, size=(64, 32), precision="fp32", val_fraction=0.4
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", lambda: SegUNet((4, 8), 8, 1))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data")


def train_in(root: Path, data: Path, settings: TrainingSettings = SETTINGS, **options: Any) -> Outcome | None:
    return train(data, root, settings, device=torch.device("cpu"), workers=0, **options)


def test_a_run_writes_all_documented_files(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'train'")
    said: list[str] = []
    outcome = train_in(tmp_path / "run", data, listener=TrainingListener(on_say=said.append))
    assert outcome is not None
    assert names_below(tmp_path / "run") == [
        ".carvana-batch",
        "best.safetensors",
        "checkpoint.pt",
        "config.toml",
        "curves.png",
        "last.safetensors",
        "log.jsonl",
        "samples.jpg",
        "split.json",
        "val.csv",
        "worst.jpg",
    ]
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert not set(split["train"]["cars"]) & set(split["val"]["cars"])
    assert sorted(split["train"]["photos"] + split["val"]["photos"]) == sorted(
        path.stem for path in (data / "images").iterdir()
    )
    assert (len(split["train"]["photos"]), len(split["val"]["photos"])) == (4, 2)
    for name in ("samples.jpg", "worst.jpg", "curves.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            picture.load()
    assert "4 photos of 2 cars to train on, 2 photos of 1 car to measure on" in said
    assert "tiny at 64x32 from random weights; 4 steps of 2; cpu in fp32" in said


def test_training_does_not_depend_on_how_photos_are_stored(tmp_path: Path, data: Path) -> None:
    phone = tmp_path / "phone"
    shutil.copytree(data / "masks", phone / "masks")  # drawn upright
    (phone / "images").mkdir()
    for path, orientation in zip(sorted((data / "images").iterdir()), (6, 8, 1, 5, 7, 6), strict=True):
        with Image.open(path) as photo:
            exif = with_orientation(photo, orientation).getexif()
            store(photo, orientation).save(phone / "images" / f"{path.stem}.png", exif=exif)
            photo.save(path.with_suffix(".png"))
        path.unlink()
    said: list[str] = []
    settings = replace(SETTINGS, size=None)
    train_in(tmp_path / "upright", data, settings)
    train_in(tmp_path / "stored", phone, settings, listener=TrainingListener(on_say=said.append))
    for name in ("samples.jpg", "val.csv", "worst.jpg"):
        assert (tmp_path / "stored" / name).read_bytes() == (tmp_path / "upright" / name).read_bytes(), name
    assert "Turned upright by their EXIF orientation: 5 photos; their masks: 5 upright" in said


def test_a_dry_run_only_checks_and_draws_samples(tmp_path: Path, data: Path) -> None:
    assert train_in(tmp_path / "run", data, dry_run=True) is None
    assert names_below(tmp_path / "run") == [".carvana-batch", "samples.jpg", "split.json"]
    assert train_in(tmp_path / "run", data) is not None


def test_validation_cars_can_be_listed_or_in_another_folder(tmp_path: Path, data: Path) -> None:
    (tmp_path / "cars.txt").write_text("car1\n")
    named = find_split(data, replace(SETTINGS, val_cars=str(tmp_path / "cars.txt")))
    assert {pair.car for pair in named.val} == {"car1"}
    assert {pair.car for pair in named.train} == {"car0", "car2"}

    other = tmp_path / "other"
    shutil.copytree(data, other)
    for path in [*(other / "images").iterdir(), *(other / "masks").iterdir()]:
        path.rename(path.with_name("other" + path.name))
    elsewhere = find_split(data, replace(SETTINGS, val=str(other)))
    assert (len(elsewhere.train), len(elsewhere.val)) == (6, 6)
    more = find_split(data, replace(SETTINGS, also=(str(other),)))
    assert (len(more.train), len(more.val)) == (4 + 6, 2)
    with pytest.raises(UsageError, match="car0"):
        find_split(data, replace(SETTINGS, val=str(data)))


def damage_truncated(data: Path) -> None:
    path = data / "images" / "car1_00.jpg"
    path.write_bytes(path.read_bytes()[:300])


def damage_grey(data: Path) -> None:
    Image.new("L", (128, 64), 128).save(data / "masks" / "car1_00_mask.png")


def damage_size(data: Path) -> None:
    Image.new("1", (64, 64)).save(data / "masks" / "car1_00_mask.png")


def damage_missing(data: Path) -> None:
    (data / "masks" / "car1_00_mask.png").unlink()


@pytest.mark.parametrize("damage", [damage_truncated, damage_grey, damage_size, damage_missing])
def test_bad_data_is_reported_before_the_first_step(tmp_path: Path, data: Path, damage: Any) -> None:
    damage(data)
    with pytest.raises(UsageError, match="car1_00"):
        train_in(tmp_path / "run", data)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_one_car_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--val"):
        train_in(tmp_path / "run", write_pairs(tmp_path / "single", cars=1))


def test_photos_of_different_sizes_need_size_or_crop(tmp_path: Path, data: Path) -> None:
    for folder in ("images", "masks"):
        (path,) = (data / folder).glob("car1_00*")
        with Image.open(path) as picture:
            smaller = picture.crop((0, 0, 96, 48))
        smaller.save(path)
    full = replace(SETTINGS, size=None, val_cars=str(data / "cars.txt"))
    (data / "cars.txt").write_text("car0")
    with pytest.raises(UsageError, match=r"128x64.*96x48|96x48.*128x64"):
        train_in(tmp_path / "a", data, full)
    with pytest.raises(UsageError, match=r"--crop 100x40 is larger than car1_00, 96x48"):
        train_in(tmp_path / "b", data, replace(full, crop=(100, 40)))
    assert train_in(tmp_path / "c", data, replace(full, crop=(32, 32))) is not None
    assert train_in(tmp_path / "d", data, replace(SETTINGS, val_cars=full.val_cars)) is not None


def test_a_run_is_neither_overwritten_nor_resumed_differently(tmp_path: Path, data: Path) -> None:
    root = tmp_path / "run"
    with pytest.raises(UsageError, match="leave the option out"):
        train_in(root, data, resume=True)
    train_in(root, data)
    with pytest.raises(UsageError, match="holds a run already"):
        train_in(root, data)
    with pytest.raises(UsageError, match=r"lr: 0\.001 before, 0\.5 now"):
        train_in(root, data, replace(SETTINGS, lr=0.5), resume=True)
    said: list[str] = []
    assert train_in(root, data, resume=True, listener=TrainingListener(on_say=said.append)) is not None
    assert said[1].endswith("has ended already, after step 4")
    for name in ("images/car0_00.jpg", "masks/car0_00_mask.png"):
        (data / name).unlink()
    with pytest.raises(UsageError, match="have changed"):
        train_in(root, data, resume=True)


def test_a_run_without_checkpoint_is_not_overwritten(tmp_path: Path, data: Path) -> None:
    train_in(tmp_path / "run", data)
    (tmp_path / "run" / "checkpoint.pt").unlink()
    with pytest.raises(UsageError, match=r"--init .*best\.safetensors"):
        train_in(tmp_path / "run", data, resume=True)


def test_the_log_of_a_run_killed_early_is_overwritten(tmp_path: Path, data: Path) -> None:
    train_in(tmp_path / "whole", data)
    train_in(tmp_path / "run", data)
    for name in ("checkpoint.pt", "best.safetensors"):  # as if killed before the first checkpoint
        (tmp_path / "run" / name).unlink()
    train_in(tmp_path / "run", data)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "run")]
    assert len(logs[0]) == len(logs[1])


@pytest.mark.parametrize("location", ["data", "data/images", "data/masks/run"])
def test_a_run_among_the_photos_is_refused(tmp_path: Path, data: Path, location: str) -> None:
    before = sorted(data.rglob("*"))
    with pytest.raises(UsageError, match="among the photos"):
        train_in(tmp_path / location, data)
    assert sorted(data.rglob("*")) == before


def test_unrelated_files_are_not_overwritten(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("[tool]\n")
    with pytest.raises(UsageError, match="not a run's"):
        train_in(tmp_path / "run", data)
    assert (tmp_path / "run" / "config.toml").read_text() == "[tool]\n"


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").mkdir()
    leftover = leave_temporary_file(tmp_path / "run" / "best.safetensors")
    train_in(tmp_path / "run", data)
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "nothing"}, "--init nothing: no model 'nothing'"),
        ({"accumulate": 3}, "--batch 2 cannot be split evenly"),
        ({"batch": 5}, "--batch 5: there are only 4 photos"),
    ],
)
def test_a_dry_run_checks_settings_too(
    tmp_path: Path, data: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_in(tmp_path / "run", data, replace(SETTINGS, **changes), dry_run=True)


def empty_masks(data: Path, *ids: str) -> None:
    for id in ids:
        Image.new("1", (128, 64)).save(data / "masks" / f"{id}_mask.png")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["car0_00", "car0_01", "car2_00", "car2_01"], r"No mask to train on shows a car: .* of 4 masks are"),
        (["car1_00", "car1_01"], r"No mask to measure on shows a car: .* of 2 masks are"),
    ],
)
def test_masks_without_any_car_are_refused(
    tmp_path: Path, data: Path, ids: list[str], message: str, dry_run: bool
) -> None:
    empty_masks(data, *ids)
    (tmp_path / "cars.txt").write_text("car1")
    settings = replace(SETTINGS, val_cars=str(tmp_path / "cars.txt"))
    with pytest.raises(UsageError, match=message):
        train_in(tmp_path / "run", data, settings, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_masks_without_a_car_are_counted(tmp_path: Path, data: Path, dry_run: bool) -> None:
    empty_masks(data, "car0_00", "car2_01", "car1_00")
    (tmp_path / "cars.txt").write_text("car1")
    said: list[str] = []
    train_in(
        tmp_path / "run",
        data,
        replace(SETTINGS, val_cars=str(tmp_path / "cars.txt"), epochs=0.5),
        dry_run=dry_run,
        listener=TrainingListener(on_say=said.append),
    )
    assert [line for line in said if line.startswith("Warning")] == [
        "Warning: no car in 2 of 4 masks to train on: car0_00, car2_01",
        "Warning: no car in 1 of 2 masks to measure on: car1_00",
    ]


def test_only_some_of_many_empty_masks_are_named() -> None:
    pairs = [Pair(f"a_{number}", Path("a.jpg"), Path("a.png")) for number in range(8)]
    checked = [CheckedPair((2, 1), number == 3, False, False, Fit.SAME) for number in range(8)]
    line = "Warning: no car in 7 of 8 masks to train on: a_0, a_1, a_2, a_4, a_5 and 2 more"
    assert check_cars(pairs, checked, "to train on") == [line]


def test_inverted_masks_are_pointed_out(tmp_path: Path, data: Path) -> None:
    settings = replace(SETTINGS, epochs=0.5)
    for expected in (0, 2):
        said: list[str] = []
        train_in(
            tmp_path / "run", data, settings, dry_run=True, listener=TrainingListener(on_say=said.append)
        )
        warnings = [line for line in said if "the car covers all four corners, as if black were car" in line]
        assert len(warnings) == expected
        for path in (data / "masks").iterdir():
            with Image.open(path) as image:
                mask = np.asarray(image.convert("L")) == 0
            Image.fromarray(mask).save(path)


FAILING_STARTS = {
    "no data": {"data": "none"},
    "no masks": {"data": "."},
    "unreadable photo": {"damage": damage_truncated},
    "missing mask": {"damage": damage_missing},
    "no such weights": {"init": "nothing"},
    "batch too large": {"batch": 5},
    "uneven batch": {"accumulate": 3},
    "crop too large": {"crop": (100, 100)},
    "no list of cars": {"val_cars": "none"},
    "no folder to measure on": {"val": "none"},
    "nothing to resume": {"resume": True},
}


@pytest.mark.parametrize("fault", FAILING_STARTS.values(), ids=FAILING_STARTS)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_failed_start_leaves_no_run_folder(
    tmp_path: Path, data: Path, fault: dict[str, Any], dry_run: bool
) -> None:
    changes = dict(fault)
    if damage := changes.pop("damage", None):
        damage(data)
    folder, resume = tmp_path / changes.pop("data", "data"), changes.pop("resume", False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = names_in(tmp_path)
    for root in (tmp_path / "run", tmp_path / "new" / "parents" / "run", tmp_path / "mine"):
        with pytest.raises(UsageError):
            train_in(root, folder, replace(SETTINGS, **changes), resume=resume, dry_run=dry_run)
        assert names_in(tmp_path) == before


def test_a_signal_stops_the_check_of_the_photos(tmp_path: Path, data: Path) -> None:
    stop = StopFlag()
    stop.signal = signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        train_in(tmp_path / "run", data, stop=stop)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["=1_01", "-2_01"])
def test_names_like_spreadsheet_formulas_can_be_drawn(tmp_path: Path, data: Path, name: str) -> None:
    for folder, suffix in (("images", ".jpg"), ("masks", "_mask.png")):
        for number, path in enumerate(sorted((data / folder).iterdir())):
            path.rename(path.with_name(f"{name}{number}{suffix}" if number < 5 else f"b_1{suffix}"))
    outcome = train_in(tmp_path / "run", data)
    assert outcome is not None
    assert (tmp_path / "run" / "worst.jpg").exists()


def test_a_run_folder_in_use_is_refused(tmp_path: Path, data: Path) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(FolderInUseError, match="is in use by process"):
        train_in(tmp_path / "run", data)


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="another RUN"):
        train_in(tmp_path / "file" / "run", data)


def test_a_run_folder_can_be_loaded_as_a_model(tmp_path: Path, data: Path) -> None:
    train_in(tmp_path / "run", data)
    model = load_model(tmp_path / "run")
    assert model.size == (64, 32)
    pixels = Image.open(data / "images" / "car0_00.jpg")
    assert Masker(tmp_path / "run").mask(np.asarray(pixels)).shape == (64, 128)


def test_the_log_is_written_to_tensorboard(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'train'")
    train_in(tmp_path / "run", data, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    assert logged == pytest.approx(losses, rel=1e-6)
    assert set(events.Tags()["images"]) == {"samples", "worst val photos"}
