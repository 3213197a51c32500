"""`models export`: files that give what the network gives, or none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import write_photo
from networks import GAIN, Redness, make_model, make_small_network

from carvana_batch.commands.models import command
from carvana_batch.errors import ModelError, UsageError
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model, save_model
from carvana_batch.network.exported.onnx_graph import load_onnx
from carvana_batch.network.exported.program import load_exported_program
from carvana_batch.network.exported.writing import write_model
from carvana_batch.network.model import Model

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
SIZES = [(1, 40, 64), (2, 33, 51), (1, 1, 1)]


def photo(height: int = 45, width: int = 70) -> torch.Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)


def other_program(path: Path):
    """What another program gets from the file: input values -> probabilities."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(["probability"], {"images": images})[0]
    # Not without a check of sizes: the smallest ones are laid out otherwise, which the check refuses.
    module = torch.export.load(path).module(check_guards=False)
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def metadata(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("normalisation", ["inside", "outside"])
def test_a_file_gives_what_is_computed_by_hand(tmp_path: Path, suffix: str, normalisation) -> None:
    path = tmp_path / f"redness{suffix}"
    model = make_model(Redness(), MEAN, DEVIATION)
    assert write_model(model, path, photo(), normalisation) < 1e-6
    run = other_program(path)
    generator = np.random.default_rng(1)
    for count, height, width in SIZES:
        pixels = generator.integers(0, 256, (count, 3, height, width)).astype(np.float32)
        normalised = (pixels / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(DEVIATION, (3, 1, 1))
        given = pixels if normalisation == "inside" else normalised.astype(np.float32)
        expected = 1 / (1 + np.exp(-GAIN * normalised[:, :1]))
        assert np.abs(run(given) - expected).max() < 1e-6


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_is_for_images_of_any_size(tmp_path: Path, suffix: str) -> None:
    """Odd sides are pooled and enlarged otherwise than even ones."""
    path = tmp_path / f"small{suffix}"
    network = make_small_network()
    write_model(make_model(network), path, photo(), "outside")
    run = other_program(path)
    for count, height, width in [*SIZES, (3, 34, 35), (1, 5, 130)]:
        images = torch.randn((count, 3, height, width))
        with torch.inference_mode():
            expected = torch.sigmoid(network(images)).numpy()
        assert np.abs(run(images.numpy()) - expected).max() < 1e-5


def test_the_metadata_say_what_masks_depend_on(tmp_path: Path) -> None:
    model = Model("test", Redness().eval(), MEAN, DEVIATION, "a digest", size=(480, 320), scale=1000)
    write_model(model, tmp_path / "a.onnx", photo(), "outside")
    entries = metadata(tmp_path / "a.onnx")
    assert len(entries.pop("checksum")) == 64
    assert entries == {
        "format": "carvana-batch export 1",
        "network": "test",
        "normalisation": "outside",
        "mean": "[0.5, 0.4, 0.3]",
        "deviation": "[0.2, 0.25, 0.5]",
        "output": "probability",
        "stride": "4",
        "unit": "4",
        "digest": "a digest",
        "size": "[480, 320]",
        "scale": "1000",
    }
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 1, "height", "width"]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_no_paths_of_this_machine_are_written(tmp_path: Path, suffix: str) -> None:
    write_model(make_model(Redness()), tmp_path / f"a{suffix}", photo())
    assert str(Path(__file__).parent).encode() not in (tmp_path / f"a{suffix}").read_bytes()
    assert b"carvana_batch/network/blocks.py" not in (tmp_path / f"a{suffix}").read_bytes()


class OtherwiseExported(Redness):
    """An exporter gets this wrong."""

    def padded_logits(self, images: torch.Tensor) -> torch.Tensor:
        return super().padded_logits(images) + (0.1 if torch.compiler.is_compiling() else 0)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_that_gives_something_else_does_not_appear(tmp_path: Path, suffix: str, count_faults) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"what was there before")
    with pytest.raises(ModelError, match=r"not written, because its probabilities differ .* by up to 0\.02"):
        write_model(make_model(OtherwiseExported()), path, photo())
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]
    count_faults("an export gives what the network gives, or does not appear", 1)


@pytest.mark.parametrize(("suffix", "load"), [(".onnx", load_onnx), (".pt2", load_exported_program)])
def test_a_changed_byte_is_noticed(tmp_path: Path, suffix: str, load, count_faults) -> None:
    """Weights that are only a little wrong would give masks that are."""
    path = tmp_path / f"a{suffix}"
    write_model(make_model(make_small_network()), path, photo())
    whole = path.read_bytes()
    load(path)
    # Zip files have bytes that mean nothing: those of weights are at the beginning.
    positions = range(100, len(whole) if suffix == ".onnx" else 5000, len(whole) // 50)
    for position in positions:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        with pytest.raises(ModelError, match=r"damaged|cannot load"):
            load(path)
    count_faults("exported files of others are run or refused", len(positions))


def test_without_the_packages_one_line_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"^exporting to ONNX needs .*onnxscript.*'carvana-batch\[onnx\]'$"):
        write_model(make_model(Redness()), tmp_path / "a.onnx", photo())


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights file of a small network."""
    monkeypatch.setitem(NETWORKS, "small", make_small_network)
    path = tmp_path / "small.safetensors"
    save_model(path, "small", make_small_network().state_dict(), (0.5,) * 3, (0.5,) * 3, {})
    return path


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(command, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_says_how_far_the_file_is_from_the_network(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "small.pt2"
    text = invoke(weights, path)
    assert "on a drawn photo, its probabilities differ" in text
    assert text.endswith(f"\n  carvana-batch predict in/ out/ --model {path}\n")
    write_photo(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"small\.pt2 is there already.*--overwrite"):
        invoke(weights, path)
    before = path.read_bytes()
    text = invoke(weights, path, "--overwrite", "--normalisation", "outside", "--photo", tmp_path / "a.png")
    assert "a.png" in text
    assert path.read_bytes() != before


def test_the_command_refuses_before_any_work(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(UsageError, match=r"auto is a pair .* export segunet-s or segunet-s-anywhere"):
        invoke("auto", tmp_path / "auto.onnx")
    with pytest.raises(UsageError, match=r"has to end in \.onnx or \.pt2"):
        invoke(weights, tmp_path / "small.pth")
    with pytest.raises(UsageError, match="there is no folder"):
        invoke(weights, tmp_path / "missing" / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        pytest.param("segunet-s", ".onnx", marks=pytest.mark.long),
        ("unet", ".pt2"),
        pytest.param("segunet", ".onnx", marks=pytest.mark.long),
        pytest.param("unet", ".onnx", marks=pytest.mark.long),
    ],
)
def test_each_network_can_be_exported(tmp_path: Path, name: str, suffix: str) -> None:
    torch.manual_seed(0)
    model = load_model(name) if name == "segunet-s" else make_model(NETWORKS[name]())
    assert write_model(model, tmp_path / f"a{suffix}", photo(64, 96)) < 1e-4
