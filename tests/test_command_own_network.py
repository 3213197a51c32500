"""`predict` and `models show` with networks of the user's own: settings, resume, what is told."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import write_photo
from PIL import Image

from carvana_batch.commands import group
from carvana_batch.errors import CarvanaBatchError, ModelError, UsageError
from carvana_batch.model_settings import ModelSettings, read_settings, settings_beside
from carvana_batch.network import BUNDLED_WEIGHTS

CODE = """
import torch

class Red(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, images):
        return self.gain * images[:, :1]

class Narrow(Red):
    def forward(self, images):
        if images.shape[3] > 256:
            raise KeyError("wide")
        return super().forward(images)

class Sure(Red):
    def forward(self, images):
        return torch.sigmoid(super().forward(images))
"""
NORMALISED = ("--mean", "0.5,0.5,0.5", "--deviation", "0.5,0.5,0.5")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with photos, code of networks, and weights for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "red_network.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "red_network", raising=False)
    for number in range(2):
        write_photo(tmp_path / "photos" / f"{number}.png", seed=number)
    torch.save({"gain": torch.tensor(2.0)}, "red.pth")
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(group, [*map(str, arguments)])
    if isinstance(result.exception, CarvanaBatchError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def predict(*arguments: str, out: str = "out") -> str:
    options = ("--workers", "0", "--device", "cpu", "--precision", "fp32", "--clean", "none")
    return run("predict", "photos", out, *options, *arguments)


def assert_red_masks(here, level: int, out: str = "out") -> None:
    for number in range(2):
        mask = np.asarray(Image.open(here / out / f"{number}.png"))
        red = np.asarray(Image.open(here / "photos" / f"{number}.png"))[:, :, 0]
        np.testing.assert_array_equal(mask, red >= level)


def test_a_run_with_own_code_says_so_and_masks(here):
    output = predict("--network", "red_network:Red", *NORMALISED)
    assert "runs your own code, red_network:Red in " in output
    assert_red_masks(here, 128)
    output = predict("--model", "red.pth", "--network", "red_network:Red", *NORMALISED, out="second")
    assert "red_network:Red from red.pth" in output
    assert_red_masks(here, 128, "second")


def test_settings_beside_the_weights_are_used_and_options_go_before_them(here):
    (here / "red.toml").write_text("mean = [0.25, 0.25, 0.25]\ndeviation = [1, 1, 1]\nthreshold = 0.5\n")
    options = ("--model", "red.pth", "--network", "red_network:Red")
    predict(*options)
    assert_red_masks(here, 64)
    predict(*options, "--mean", "0.75,0.75,0.75", out="second")
    assert_red_masks(here, 192, "second")
    (here / "red.toml").rename(here / "model.toml")
    predict(*options, out="third")
    assert_red_masks(here, 64, "third")
    settings = json.loads((here / "third" / ".carvana-batch" / "settings.json").read_text())["settings"]
    assert settings["model-mean"] == "0.25,0.25,0.25"


def test_threshold_and_overlap_of_the_file_are_defaults(here):
    level = 1 / (1 + np.exp(-2 * (200 / 255 - 0.5) / 0.5))
    (here / "model.toml").write_text(
        f"mean = [0.5, 0.5, 0.5]\ndeviation = [0.5, 0.5, 0.5]\nthreshold = {level}\noverlap = 64\n"
    )
    options = ("--model", "red.pth", "--network", "red_network:Red")
    predict(*options)
    assert_red_masks(here, 201)
    predict(*options, "--threshold", "0.5", out="second")
    assert_red_masks(here, 128, "second")


def test_code_runs_only_if_the_user_asks_for_it(here, count_faults):
    """A folder from elsewhere may hold weights, a model.toml and a module."""
    (here / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    for network in ("evil:make", "torchscript"):
        (here / "model.toml").write_text(f'network = "{network}"\nmean = [0, 0, 0]\ndeviation = [1, 1, 1]\n')
        with pytest.raises(ModelError, match=f"model.toml.* would run code.* give --network '{network}'"):
            predict("--model", "red.pth")
        count_faults("code that model.toml asks for is not run", 1)
    assert not (here / "ran").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "change",
    [
        ("--mean", "0.4,0.5,0.5"),
        ("--deviation", "0.4,0.5,0.5"),
        ("--stride", "2"),
        ("--output", "logits"),
    ],
    ids=lambda change: change[0],
)
def test_a_run_is_not_continued_with_other_settings(change, count_faults):
    given = dict(zip(NORMALISED[::2], NORMALISED[1::2], strict=True))
    options = ("--model", "red.pth", "--network", "red_network:Red")
    predict(*options, *NORMALISED)
    predict(*options, *NORMALISED)
    given[change[0]] = change[1]
    with pytest.raises(UsageError, match=f"model-{change[0][2:]}"):
        predict(*options, *[part for pair in given.items() for part in pair])
    count_faults("a network of the user's own that does not fit is refused", 1)


def test_a_run_is_not_continued_with_changed_code(here):
    predict("--network", "red_network:Red", *NORMALISED)
    (here / "red_network.py").write_text(CODE + "\n")
    del sys.modules["red_network"]
    with pytest.raises(UsageError, match="model"):
        predict("--network", "red_network:Red", *NORMALISED)


@pytest.mark.usefixtures("here")
def test_show_tells_what_is_known_and_what_is_missing():
    text = run("models", "show", "red.pth", "--network", "red_network:Red")
    assert "kind              runs your own code, red_network:Red in" in text
    assert "mean              missing" in text
    assert "deviation         missing" in text
    assert "missing: mean     red_network:Red: say how its input was normalised" in text
    assert "output            logits, 1 channel" in text
    assert "stride            1 pixel\n" in text
    assert "context           0 pixels" in text
    assert "sha256" not in text
    text = run("models", "show", "auto", "--network", "red_network:Sure", *NORMALISED)
    assert "missing: output" in text
    with pytest.raises(ModelError, match="say how far it looks"):
        run("models", "show", "auto", "--network", "red_network:Narrow", *NORMALISED, "--stride", "1")
    text = run("models", "show", "red.pth", "--network", "red_network:Red", *NORMALISED, "--stride", "8")
    assert "missing" not in text
    assert "mean              0.5 0.5 0.5 (the options)" in text
    assert "stride            8 pixels (the options)" in text
    assert "sha256" in text


def test_settings_for_what_needs_none_are_refused(here):
    for arguments, word in (
        (("--mean", "0,0,0"), "--mean is for weights of your own, and auto"),
        (("--model", "segunet-s", "--stride", "8"), "--stride is for weights of your own, and segunet-s"),
        (("--model", "nothing.pth", "--network", "red_network:Red"), "no model 'nothing.pth'"),
    ):
        with pytest.raises(ModelError, match=word):
            predict(*arguments)
    shutil.copy2(BUNDLED_WEIGHTS["segunet-s"], "own.safetensors")
    with pytest.raises(ModelError, match="the setting mean contradicts it"):
        predict("--model", "own.safetensors", "--mean", "0,0,0")
    assert not (here / "out").exists()


def test_odd_files_of_settings_are_refused(tmp_path, count_faults):
    path = tmp_path / "model.toml"
    faults = (
        ("maen = [0, 0, 0]", "maen is no setting of a model; did you mean mean?"),
        ("xyzzy = 1", "xyzzy is no setting of a model; known are network, encoder, mean"),
        ("[mean]\nred = 1", "mean = {'red': 1} is not three numbers"),
        ("mean = [0, 0]", "is not three numbers R,G,B"),
        ("mean = [0, 0, nan]", "is not three numbers R,G,B"),
        ("mean = [true, 0, 0]", "is not three numbers R,G,B"),
        ("mean = [123.7, 116.3, 103.5]", "divide it by 255"),
        ("deviation = [1, 1, 0]", "has to be positive"),
        ("deviation = [58.4, 57.1, 57.4]", "divide it by 255"),
        ('size = "512"', 'is not "WIDTHxHEIGHT"'),
        ("size = 512", 'is not "WIDTHxHEIGHT"'),
        ('fixed-size = "0x5"', 'is not "WIDTHxHEIGHT"'),
        ('output = "softmax"', "is none of logits, probability"),
        ("classes = 3", "is not a whole number from 1 to 2"),
        ("car-class = true", "is not a whole number from 0 to 1"),
        ("stride = 0", "is not a whole number from 1"),
        ("stride = 1.5", "is not a whole number from 1"),
        ("threshold = 2", "is not a number from 0 to 1"),
        ("network = 7", "is not text"),
        ("mean = [", "is not TOML"),
        ('a = "\\ud800"', "is not TOML"),
    )
    for text, word in faults:
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            read_settings(path)
        assert word in str(caught.value), text
        assert str(path) in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read_settings(path)
    path.unlink()
    path.mkdir()
    assert settings_beside(tmp_path / "weights.pth") == (ModelSettings(), None)
    count_faults("a network of the user's own that does not fit is refused", len(faults) + 1)
