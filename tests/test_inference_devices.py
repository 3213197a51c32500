import pytest
import torch

from carvana_batch.errors import UsageError
from carvana_batch.inference.devices import pick_device

CPU = torch.device("cpu")


@pytest.fixture
def without_gpu(monkeypatch):
    """A machine without CUDA and MPS devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "mps", "mps:0"])
def test_missing_devices_are_rejected(name):
    with pytest.raises(UsageError, match=f"--device {name}: .*--device cpu always works"):
        pick_device(name)


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    "name", ["", "gpu", "CPU", "0", "cuda:", "cuda:x", "cuda:-1", "meta", "xpu", "cpu,cuda"]
)
def test_unknown_devices_are_rejected(name):
    with pytest.raises(UsageError, match=f"--device {name}: .*cuda:N"):
        pick_device(name)


@pytest.mark.usefixtures("without_gpu")
def test_auto_picks_the_best_device(monkeypatch):
    assert pick_device("cpu") == CPU
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == pick_device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto").type == "cuda"
    assert pick_device("cpu") == CPU
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="2 CUDA devices"):
        pick_device("cuda:2")
