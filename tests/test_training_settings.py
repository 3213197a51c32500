"""The settings of a run and their TOML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from carvana_batch.errors import UsageError
from carvana_batch.training.settings import (
    AugmentationLimits,
    TrainingSettings,
    format_settings,
    make_settings,
    read_settings,
)

UNUSUAL = TrainingSettings(
    model="unet",
    also=("a", "b c"),
    car_value=(7, 8),
    val="other",
    size=(240, 160),
    crop=(64, 32),
    warm_up=7,
    augmentation=AugmentationLimits(shift=0.3, grey=0.0),
)


def test_every_setting_except_none_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(format_settings(UNUSUAL))
    values = read_settings(path)
    assert (values["also"], values["car_value"]) == (["a", "b c"], [7, 8])
    assert values["size"] == "240x160"
    assert values["crop"] == "64x32"
    assert (values["warm_up"], values["shift"], values["grey"]) == (7, 0.3, 0.0)
    assert "val_cars" not in values
    values |= {"size": (240, 160), "crop": (64, 32)}
    values |= {name: tuple(values[name]) for name in ("also", "car_value", "ignore_value")}
    assert make_settings({**values, "init": None, "val_cars": None}) == UNUSUAL


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lr = ", "not TOML"),
        ("learning-rate = 1", "learning-rate"),
        ("[augmentation]\nshift = 1", "augmentation"),
    ],
)
def test_an_invalid_file_is_refused_and_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason) as caught:
        read_settings(path)
    assert "odd.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_settings(tmp_path / "none.toml")
