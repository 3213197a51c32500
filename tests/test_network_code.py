"""``--network package.module:factory``: networks of the user's own code."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.checkpoints import load_model

CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images):
        return self.model(images)

def make():
    torch.manual_seed(0)
    return Net()

def fail():
    raise RuntimeError("no data")

def leave():
    raise SystemExit(3)

text = "text"
"""
SETTINGS = ModelSettings(network="mynets.small:make", mean=(0.5,) * 3, deviation=(0.5,) * 3, stride=1)


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package in the folder in which the command is given."""
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").write_text("")
    (tmp_path / "mynets" / "small.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in [name for name in sys.modules if name.partition(".")[0] == "mynets"]:
        del sys.modules[name]


def convolve(weight, bias, images):
    return torch.nn.functional.conv2d(images, weight, bias, padding=1)


def test_the_factory_gives_the_network_and_a_file_its_weights(tmp_path):
    images = torch.randn((1, 3, 20, 30))
    torch.manual_seed(0)
    drawn = torch.nn.Conv2d(3, 1, 3, padding=1)
    model = load_model("auto", SETTINGS)
    assert model.name == "mynets.small:make"
    assert model.kind == f"runs your own code, mynets.small:make in {tmp_path / 'mynets' / 'small.py'}"
    assert model.origins["mean"] == "the options"
    weight, bias = torch.randn(1, 3, 3, 3), torch.randn(1)
    own = {"model.weight": weight, "model.bias": bias}  # a prefix that is part of the names
    for number, weights in enumerate((own, {f"module.{key}": value for key, value in own.items()})):
        torch.save(weights, tmp_path / f"{number}.pth")
        try:
            loaded = load_model(tmp_path / f"{number}.pth", SETTINGS)
        except ModelError:
            assert number == 1
            continue
        with torch.inference_mode():
            torch.testing.assert_close(loaded.network(images), convolve(weight, bias, images))
    with torch.inference_mode():
        torch.testing.assert_close(model.network(images), drawn(images))
    assert load_model("auto", SETTINGS).digest == model.digest != loaded.digest


def test_other_code_is_another_model(tmp_path):
    before = load_model("auto", SETTINGS).digest
    (tmp_path / "mynets" / "small.py").write_text(CODE + "# changed\n")
    assert load_model("auto", SETTINGS).digest != before


def test_what_the_code_does_not_give_is_refused(tmp_path, count_faults):
    (tmp_path / "mynets" / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "mynets" / "torn.py").write_text("def (\n")
    faults = (
        ("mynets.small:nothing", "AttributeError"),
        ("mynets.nothing:make", "ModuleNotFoundError"),
        ("nothing:make", "ModuleNotFoundError"),
        ("mynets.broken:make", "nothing_of_this_name"),
        ("mynets.torn:make", "SyntaxError"),
        ("mynets.small:fail", "RuntimeError: no data"),
        ("mynets.small:leave", "SystemExit: 3"),  # which would be the exit code of a run with failures
        ("mynets.small:text", "gives str, not a torch.nn.Module"),
        ("mynets.small:", "AttributeError"),
    )
    for network, word in faults:
        with pytest.raises(ModelError) as caught:
            load_model("auto", replace(SETTINGS, network=network))
        assert word in str(caught.value)
        assert network in str(caught.value)
    torch.save({"model.weight": torch.ones(1, 3, 3, 3)}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"with 1 of its 2 names.*model\.bias missing"):
        load_model(tmp_path / "weights.pth", SETTINGS)
    count_faults("a network of the user's own that does not fit is refused", len(faults) + 1)
