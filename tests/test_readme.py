"""The README: its example runs, and it mentions every option of the main commands."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["predict", "submit", "decode", "score", "review", "train"])
def test_every_option_is_mentioned(name: str) -> None:
    command: click.Command = importlib.import_module(f"carvana_batch.commands.{name}").command
    options = [max(option.opts, key=len) for option in command.params if isinstance(option, click.Option)]
    missing = [option for option in options if not re.search(rf"`[^`]*{re.escape(option)}\b", README)]
    assert missing == []


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "car.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"pixels": pixels}
    exec(compile(example, "README.md", "exec"), names)
    mask = names["mask"]
    assert isinstance(mask, np.ndarray)
    assert (mask.shape, mask.dtype) == ((128, 192), np.bool_)
    assert "Prediction" in capsys.readouterr().out
