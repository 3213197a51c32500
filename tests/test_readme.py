"""The README: short, with two commands that set up everything; and the example for Python runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")

MOST_LINES = 90
LARGEST_PICTURE = 300_000
"""In bytes."""


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("command", ["scripts/demo", "scripts/test"])
def test_its_first_commands_are_there(command: str) -> None:
    assert f"\n    {command}\n" in README
    assert os.access(CHECKOUT / command, os.X_OK)


def test_its_picture_comes_first_and_is_small() -> None:
    picture = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README.partition("\n    scripts/demo\n")[0])
    assert [(CHECKOUT / name).stat().st_size < LARGEST_PICTURE for name in picture] == [True]


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (CHECKOUT / "docs" / "how-to" / "python.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "car.jpg")
    Image.fromarray(pixels).save(tmp_path / "photos" / "car.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "python.md", "exec"), names)
    mask = names["mask"]
    assert isinstance(mask, np.ndarray)
    assert (mask.shape, mask.dtype) == ((128, 192), np.bool_)
    assert "<MaskedPhoto 'car', 192x128" in capsys.readouterr().out
    assert (tmp_path / "cutout.png").exists()
    assert (tmp_path / "out" / "_overlay" / "car.jpg").exists()
