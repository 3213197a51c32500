"""Exported files by --model: their masks are those of the network that was exported, or known by hand."""

from __future__ import annotations

import itertools
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_files import Known, known_logits, save_program, write_graph
from helpers import results_in
from networks import make_model, make_small_network
from PIL import Image

from carvana_batch.demo import draw_photo
from carvana_batch.errors import ModelError, UsageError
from carvana_batch.inference.planning import make_predictor
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model, save_model
from carvana_batch.network.exported.writing import write_model
from carvana_batch.network.model import MissingSettingsError, Model
from carvana_batch.network.sources.milesial import MilesialUNet
from carvana_batch.network.wrapped import wrap_module
from carvana_batch.options import Options

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
SETTINGS = ModelSettings(mean=MEAN, deviation=DEVIATION)
TO_LAST, TO_FIRST = ("Transpose", {"perm": [0, 2, 3, 1]}), ("Transpose", {"perm": [0, 3, 1, 2]})


def mask_of(model: Model, pixels: np.ndarray, **options) -> np.ndarray:
    predictor, _ = make_predictor(model, Options(device="cpu", precision="fp32", **options))
    return predictor.mask(pixels)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), np.uint8)


def known_mask(pixels: np.ndarray) -> np.ndarray:
    """The mask by hand: where the known logit of the normalised pixel is positive."""
    normalised = (pixels / 255 - MEAN) / DEVIATION
    return known_logits(normalised.transpose(2, 0, 1)[None])[0, 0] > 0


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights file of a small network, whose masks have many edges."""
    monkeypatch.setitem(NETWORKS, "small", make_small_network)
    path = tmp_path / "small.safetensors"
    save_model(path, "small", make_small_network().state_dict(), MEAN, DEVIATION, {}, scale=200)
    return path


@pytest.mark.parametrize("normalisation", ["inside", "outside"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_masks_of_what_we_export_are_those_of_the_original(
    tmp_path: Path, weights: Path, suffix: str, normalisation
) -> None:
    """Whole or in tiles, mirrored, of odd sizes, reduced to the scale, and with several tiles at a time."""
    original = load_model(weights)
    path = tmp_path / f"a{suffix}"
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    write_model(original, path, torch.from_numpy(noise(48, 64)), normalisation)
    loaded = load_model(path)
    assert (loaded.name, loaded.scale, loaded.size) == ("small", 200, None)
    network = loaded.network
    assert (network.stride, network.unit) == (original.network.stride, original.network.unit)
    assert loaded.digest != original.digest
    for size, options in [
        ((200, 133), {}),
        ((201, 135), {"tile": (64, 64), "overlap": 32}),
        ((200, 133), {"tile": (96, 64), "overlap": 32, "batch": 3, "flip": True}),
        ((640, 427), {}),
        ((3, 2), {}),
    ]:
        pixels, _ = draw_photo(2, 5, size)
        mask, expected = mask_of(loaded, pixels, **options), mask_of(original, pixels, **options)
        assert (mask != expected).sum() <= 2
        assert size == (3, 2) or 0 < expected.mean() < 1


@pytest.mark.parametrize(
    ("operators", "shape", "options"),
    [
        ([("Conv",)], ("n", 3, "h", "w"), {}),
        ([("Conv",), ("Sigmoid",)], ("n", 3, "h", "w"), {}),
        ([TO_FIRST, ("Conv",), TO_LAST], ("n", "h", "w", 3), {}),
        ([("Conv2",)], (1, 3, "h", "w"), {}),
        ([("Conv2",), ("Softmax", {"axis": 1})], ("n", 3, "h", "w"), {}),
        ([("Conv",)], (1, 3, 64, 64), {"overlap": 16}),
        ([("Conv",), ("Sigmoid",)], ("n", 3, "h", "w"), {"tile": (64, 64), "overlap": 16}),
    ],
    ids=["logits", "probability", "NHWC", "two channels", "softmax", "fixed size", "tiles"],
)
def test_masks_of_onnx_graphs_are_those_computed_by_hand(tmp_path: Path, operators, shape, options) -> None:
    path = write_graph(tmp_path / "a.onnx", operators, shape)
    model = load_model(path, SETTINGS)
    for height, width in ((130, 150), (40, 33)):
        pixels = noise(height, width)
        expected = known_mask(pixels)
        assert (mask_of(model, pixels, **options) != expected).sum() <= 1
        assert 0.2 < expected.mean() < 0.8


def test_masks_of_programs_are_those_computed_by_hand(tmp_path: Path) -> None:
    pixels = noise(70, 90)
    for number, after in enumerate((lambda logits: logits, torch.sigmoid)):
        path = save_program(tmp_path / f"{number}.pt2", Known(after))
        assert (mask_of(load_model(path, SETTINGS), pixels) != known_mask(pixels)).sum() <= 1


def test_masks_of_trusted_torchscript_are_those_computed_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(Known().eval(), torch.zeros(1, 3, 24, 36)), path)
    with pytest.raises(ModelError, match="--network torchscript"):
        load_model(path, SETTINGS)
    settings = ModelSettings("torchscript").over(SETTINGS)
    assert (mask_of(load_model(path, settings), noise(70, 90)) != known_mask(noise(70, 90))).sum() <= 1


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("kind", [pytest.param("milesial", marks=pytest.mark.long), "wrapped"])
def test_networks_of_others_can_be_exported_as_well(tmp_path: Path, kind: str, suffix: str) -> None:
    torch.manual_seed(1)
    if kind == "milesial":
        original = make_model(MilesialUNet(4, classes=2, bilinear=True, bias=False), MEAN, DEVIATION)
    else:
        original = wrap_module(Known(), SETTINGS)
    path = tmp_path / f"a{suffix}"
    write_model(original, path, torch.from_numpy(noise(48, 64)))
    pixels = noise(75, 51)
    assert (mask_of(load_model(path), pixels) != mask_of(original, pixels)).sum() <= 2
    with pytest.raises(UsageError, match="has been exported already"):
        write_model(load_model(path), tmp_path / f"b{suffix}", torch.from_numpy(noise(48, 64)))


def test_what_a_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingSettingsError, match=r"a\.onnx: say .* --mean R,G,B and --deviation R,G,B"):
        load_model(write_graph(tmp_path / "a.onnx"))
    path = write_graph(tmp_path / "b.onnx", [("Conv",), ("Clip",)])
    with pytest.raises(MissingSettingsError, match=r"b\.onnx: .*--output probability or --output logits"):
        load_model(path, SETTINGS)
    said = ModelSettings(output="probability").over(SETTINGS)
    assert load_model(path, said).network.output.is_probability
    (tmp_path / "b.toml").write_text(
        'mean = [0.5, 0.4, 0.3]\ndeviation = [0.2, 0.25, 0.5]\noutput = "logits"\n'
    )
    assert not load_model(path).network.output.is_probability


def test_values_outside_of_0_to_1_are_logits(tmp_path: Path) -> None:
    """The last operator does not say so."""
    path = write_graph(tmp_path / "a.onnx", [("Conv",), ("Add",)])
    pixels = noise(40, 50)
    normalised = ((pixels / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)[None]
    mask = mask_of(load_model(path, SETTINGS), pixels)
    assert (mask != (known_logits(normalised)[0, 0] + 2 > 0)).sum() <= 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"output": "logits"}, "says its output"),
        ({"fixed_size": (32, 32)}, "says its fixed-size"),
        ({"network": "unet"}, "leave out --network"),
    ],
)
def test_settings_that_contradict_a_file_are_refused(tmp_path: Path, settings, reason: str) -> None:
    path = write_graph(tmp_path / "a.onnx", [("Conv",), ("Sigmoid",)], (1, 3, 64, 64))
    with pytest.raises(ModelError, match=reason):
        load_model(path, ModelSettings(**settings).over(SETTINGS))


def test_settings_that_contradict_our_own_metadata_are_refused(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "a.pt2"
    write_model(load_model(weights), path, torch.from_numpy(noise(48, 64)))
    assert load_model(path, ModelSettings(mean=MEAN, output="probability", threshold=0.3)).name == "small"
    for settings in (
        ModelSettings(mean=(0.0, 0.0, 0.0)),
        ModelSettings(stride=2),
        ModelSettings(car_class=1),
    ):
        with pytest.raises(ModelError, match=r"a\.pt2: the file itself says its (mean|stride|car-class)"):
            load_model(path, settings)


@pytest.mark.parametrize(
    ("suffix", "content"), [*itertools.permutations([".onnx", ".pt2", ".safetensors", ".pt"], 2)]
)
def test_a_wrong_suffix_is_an_error_that_helps(
    tmp_path: Path, weights: Path, suffix, content, count_faults
) -> None:
    source = tmp_path / f"source{content}"
    if content == ".onnx":
        write_graph(source)
    elif content == ".pt2":
        save_program(source, Known())
    elif content == ".pt":
        torch.save(Known().state_dict(), source)
    else:
        shutil.copy(weights, source)
    path = tmp_path / f"named{suffix}"
    shutil.copy(source, path)
    with pytest.raises(ModelError, match=r"named\.\w+: ") as caught:
        load_model(path, SETTINGS)
    assert "\n" not in str(caught.value)
    count_faults("exported files of others are run or refused", 1)


def test_predict_masks_with_an_onnx_file_and_goes_on(tmp_path: Path, zygote) -> None:
    """In the process of the run, beside those that decode; a second run recognises the model."""
    here = tmp_path / "here"
    for number in range(3):
        (here / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40, 60 + number)).save(here / "images" / f"{number}.png")
    write_graph(here / "a.onnx")
    (here / "model.toml").write_text("mean = [0.5, 0.4, 0.3]\ndeviation = [0.2, 0.25, 0.5]\n")
    command = ["predict", "images", "out", "--model", "a.onnx", "--clean", "none", "--workers", "2"]
    finished = zygote.run(here, *command)
    assert finished.code == 0, finished
    for number in range(3):
        mask = np.asarray(Image.open(here / "out" / f"{number}.png"))
        assert (mask.astype(bool) != known_mask(noise(40, 60 + number))).sum() <= 1
    before = results_in(here / "out")
    again = zygote.run(here, *command)
    assert again.code == 0, again
    assert results_in(here / "out") == before
    write_graph(here / "a.onnx", [("Conv",), ("Sigmoid",)])
    other = zygote.run(here, *command)
    assert (other.code, other.stderr.count("\n")) == (2, 1), other
    assert "model" in other.stderr


def test_predict_refuses_a_damaged_onnx_file_with_one_line(tmp_path: Path, zygote) -> None:
    here = tmp_path / "here"
    (here / "images").mkdir(parents=True)
    Image.fromarray(noise(40, 60)).save(here / "images" / "a.png")
    content = write_graph(here / "a.onnx").read_bytes()
    (here / "a.onnx").write_bytes(content[: len(content) // 2])
    finished = zygote.run(here, "predict", "images", "out", "--model", "a.onnx")
    assert (finished.code, finished.stdout) == (1, ""), finished
    assert finished.stderr.startswith("Error: a.onnx: ")
    assert finished.stderr.count("\n") == 1
    assert not (here / "out").exists()
