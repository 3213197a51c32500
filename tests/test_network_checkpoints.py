import collections
import io
import json
import os
import pickle
import random
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from carvana_batch.errors import ModelError
from carvana_batch.network import NETWORKS
from carvana_batch.network.checkpoints import load_model, save_model
from carvana_batch.network.model import FORMAT, PLAIN_DEVIATION, PLAIN_MEAN, weights_digest
from carvana_batch.network.segunet import SegUNet

MEAN, DEVIATION = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    """A network of a few kilobytes in the registry, so that each test takes milliseconds."""
    monkeypatch.setitem(NETWORKS, "tiny", lambda: SegUNet((4,), center=4, decoder_convolutions=1))


@pytest.fixture
def weights():
    torch.manual_seed(0)
    weights = NETWORKS["tiny"]().state_dict()
    for value in weights.values():
        if value.is_floating_point():
            value.normal_()
    return weights


@pytest.fixture
def saved(tmp_path, weights):
    path = tmp_path / "weights.safetensors"
    save_model(path, "tiny", weights, MEAN, DEVIATION, {"licence": "CC0", "val": "0.99"})
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def write_with_header(path: Path, weights, **changes) -> None:
    """A file like those of save_model, with a right checksum, but some entries of the header changed."""
    header = {
        "format": FORMAT,
        "network": "tiny",
        "mean": "[0.5, 0.5, 0.5]",
        "deviation": "[0.5, 0.5, 0.5]",
        **changes,
    }
    header.setdefault("digest", weights_digest(weights, {key: text for key, text in header.items() if text}))
    kept = {key: value for key, value in header.items() if value is not None}
    safetensors.torch.save_file(weights, path, kept)


def assert_same_weights(network, weights) -> None:
    loaded = network.state_dict()
    assert loaded.keys() == weights.keys()
    for key, value in loaded.items():
        assert torch.equal(value, weights[key].to(value.dtype)), key


def test_round_trip(saved, weights):
    model = load_model(saved)
    assert model.name == "tiny"
    assert model.mean == MEAN
    assert model.deviation == DEVIATION
    assert model.notes == {"licence": "CC0", "val": "0.99"}
    header = {"network": "tiny", "mean": json.dumps(MEAN), "deviation": json.dumps(DEVIATION)}
    assert model.digest == weights_digest(weights, header)
    assert not model.network.training
    assert_same_weights(model.network, weights)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_digest_tells_apart_what_differs_and_nothing_else(weights):
    digest = weights_digest(weights)
    assert digest == weights_digest(dict(reversed(weights.items())))
    key = "classifier.weight"
    for changed in (
        {**weights, key: weights[key] + 1e-6},
        {**weights, key: weights[key].reshape(-1)},
        {**weights, key: weights[key].view(torch.int32)},
        {**weights, "renamed": weights[key]},
    ):
        assert weights_digest(changed) != digest
    for entry in ("network", "mean", "deviation", "size", "scale"):
        assert weights_digest(weights, {entry: "[0.5, 0.5, 0.4]"}) != digest
    assert weights_digest(weights, {"val": "0.99"}) == digest
    turned = weights[key].expand(2, -1, -1, -1).transpose(0, 1)
    assert weights_digest({key: turned}) == weights_digest({key: turned.contiguous()})


def test_notes_cannot_take_the_place_of_what_loading_needs(tmp_path, weights):
    path = tmp_path / "weights.safetensors"
    save_model(path, "tiny", weights, MEAN, DEVIATION, {"mean": "grey", "digest": "none", "network": "mine"})
    model = load_model(path)
    assert (model.name, model.mean) == ("tiny", MEAN)


def test_the_best_weights_of_a_run_folder_are_loaded(tmp_path, weights):
    refused(tmp_path, "no model")
    save_model(tmp_path / "best.safetensors", "tiny", weights, MEAN, DEVIATION, {})
    assert_same_weights(load_model(tmp_path).network, weights)


def test_the_bundled_weights_load_by_name():
    model = load_model("segunet-s")
    assert model.name == "segunet-s"
    assert len(model.digest) == 64


@pytest.mark.parametrize("name", ["segunet-xxl", "no/such.safetensors", "no/such.pth", ""])
def test_what_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"{name}.*segunet-s"):
        load_model(name)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_in_the_tensors_is_found(saved, place):
    content = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(place * (len(content) - 1 - start))] ^= 1
    saved.write_bytes(content)
    refused(saved, "damaged")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    refused(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"no weights at all " * 100, bytes(1000), b"\xff" * 1000])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".BIN", ""])
def test_empty_files_and_garbage_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    refused(path)


def test_whatever_is_damaged_only_model_errors_are_raised(saved, tmp_path, weights):
    # Flipped header bytes may go unseen where they change a note or an input statistic; the tensors may not.
    old_style, new_style = io.BytesIO(), io.BytesIO()
    torch.save(weights, old_style, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": weights}, new_style)
    rng = random.Random(0)
    results = collections.Counter()
    for suffix, whole in (
        (".safetensors", saved.read_bytes()),
        (".pth", old_style.getvalue()),
        (".pth", new_style.getvalue()),
        (".pth", pickle.dumps({"state_dict": [1, 2.0, "text", None]})),
    ):
        path = tmp_path / f"damaged{suffix}"
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(rng.choice([1, 3])):
                content[int(len(content) * rng.random() ** 3)] = rng.randrange(256)
            path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
            try:
                load_model(path)
                results["loaded"] += 1
            except ModelError as error:
                assert str(path) in str(error)
                results["refused"] += 1
    assert results["refused"] > 400


def test_an_unknown_network_is_refused(tmp_path, weights):
    path = tmp_path / "weights.safetensors"
    for name in ("nonet", None):
        write_with_header(path, weights, network=name)
        refused(path, "segunet, segunet-m, segunet-s, tiny, unet")


def test_a_checksum_is_needed(tmp_path, weights):
    path = tmp_path / "weights.safetensors"
    write_with_header(path, weights, digest=None)
    refused(path, "checksum")


def test_weights_of_another_shape_are_refused(tmp_path, weights):
    path = tmp_path / "weights.safetensors"
    weights["classifier.weight"] = torch.zeros(1, 5, 1, 1)
    write_with_header(path, weights)
    refused(path, "classifier.weight", "(1, 5, 1, 1)", "(1, 4, 1, 1)")


def test_missing_and_unknown_tensors_are_refused(tmp_path, weights):
    path = tmp_path / "weights.safetensors"
    write_with_header(path, {**weights, "extra.bias": torch.zeros(1)})
    refused(path, "0 missing, 1 unknown", "extra.bias")
    del weights["classifier.bias"]
    write_with_header(path, weights)
    refused(path, "1 missing, 0 unknown", "classifier.bias")
    write_with_header(path, {})
    refused(path, "missing")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(tmp_path, weights, value, dtype):
    weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
    weights["encoder.0.1.0.weight"][1, 2, 0, 1] = value
    for path in (tmp_path / "weights.safetensors", tmp_path / "weights.pth"):
        if path.suffix == ".pth":
            torch.save(weights, path)
        else:
            write_with_header(path, weights)
        refused(path, "encoder.0.1.0.weight", "not finite")


@pytest.mark.parametrize("key", ["mean", "deviation"])
@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "0.5",
        "[0.5, 0.5]",
        "[1, 1, 1, 1]",
        '["a", 1, 1]',
        "[NaN, 1, 1]",
        "[1, Infinity, 1]",
        "[" * 9999,
    ],
)
def test_input_statistics_that_are_not_three_numbers_are_refused(tmp_path, weights, key, text):
    path = tmp_path / "weights.safetensors"
    write_with_header(path, weights, **{key: text})
    refused(path, key)


@pytest.mark.parametrize("text", ["[0, 1, 1]", "[1, 1, -1]"])
def test_deviations_are_positive(tmp_path, weights, text):
    path = tmp_path / "weights.safetensors"
    write_with_header(path, weights, deviation=text)
    refused(path, "not positive")
    write_with_header(path, weights, mean=text)
    load_model(path)


@pytest.mark.parametrize("size", [None, (480, 320)])
def test_the_size_that_photos_are_averaged_to_is_kept(tmp_path, weights, size):
    save_model(tmp_path / "weights", "tiny", weights, MEAN, DEVIATION, {}, size)
    assert load_model(tmp_path / "weights").size == size


@pytest.mark.parametrize(
    "text", ["480", "[480]", "[0, 320]", "[480, 1e9]", '["a", 1]', "[NaN, 1]", "[1e999, 1]", "{"]
)
def test_a_size_that_is_not_one_of_images_is_refused(tmp_path, weights, text):
    path = tmp_path / "weights.safetensors"
    write_with_header(path, weights, size=text)
    refused(path, "size")


def test_the_scale_of_the_training_photos_is_kept(tmp_path, weights):
    save_model(tmp_path / "scaled", "tiny", weights, MEAN, DEVIATION, {}, scale=1918)
    save_model(tmp_path / "plain", "tiny", weights, MEAN, DEVIATION, {})
    scaled, plain = load_model(tmp_path / "scaled"), load_model(tmp_path / "plain")
    assert (scaled.scale, scaled.size, plain.scale) == (1918, None, None)
    assert scaled.digest != plain.digest
    assert "scale" not in scaled.notes


@pytest.mark.parametrize("text", ["0", "-5", "1e3", "1918.5", "NaN", "[1918]", "100000", "", "\u0661"])
def test_a_scale_that_is_no_number_of_pixels_is_refused(tmp_path, weights, text):
    path = tmp_path / "weights.safetensors"
    header = {"network": "tiny", "mean": "[0.5, 0.5, 0.5]", "deviation": "[0.5, 0.5, 0.5]", "scale": text}
    write_with_header(path, weights, **header, digest=weights_digest(weights, header))
    refused(path, "scale")


def test_a_run_without_best_weights_yet_names_the_latest(tmp_path, weights):
    save_model(tmp_path / "last.safetensors", "tiny", weights, MEAN, DEVIATION, {})
    refused(tmp_path, "no best.safetensors yet", "last.safetensors")


class Canary:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("style", ["zip", "old", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, weights, style, suffix):
    canary, path = tmp_path / "canary", tmp_path / f"weights{suffix}"
    content = {**weights, "epoch": Canary(canary)}
    if style == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=style == "zip")
    refused(path)
    assert not canary.exists()
    if style != "pickle" and suffix != ".safetensors":
        torch.load(path, weights_only=False)
        assert canary.exists()  # so it would have shown


def test_the_message_does_not_explain_how_to_run_the_code(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": Canary(tmp_path / "canary")}, path)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "state_dict()" in str(caught.value)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("suffix", [".pt", ".PTH"])
def test_a_foreign_state_dict_is_recognised_by_its_tensors(
    tmp_path, weights, wrapped, zipped, protocol, suffix
):
    path = tmp_path / f"weights{suffix}"
    content = {"epoch": 3, "state_dict": weights, "lr": [0.1]} if wrapped else weights
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    model = load_model(path)
    assert model.name == "tiny"
    assert (model.mean, model.deviation) == (PLAIN_MEAN, PLAIN_DEVIATION)
    assert model.digest == weights_digest(weights)
    assert not model.network.training
    assert_same_weights(model.network, weights)


def test_safetensors_without_header_are_recognised(tmp_path, weights):
    path = tmp_path / "weights.safetensors"
    for header in (None, {"format": "pt"}):
        safetensors.torch.save_file(weights, path, header)
        model = load_model(path)
        assert model.name == "tiny"
        assert_same_weights(model.network, weights)


def test_foreign_files_of_other_content_are_refused(tmp_path, weights):
    path = tmp_path / "weights.pth"
    for content in ({"a": torch.zeros(3)}, {}, {"state_dict": {}}, {**weights, "more": torch.zeros(1)}):
        torch.save(content, path)
        refused(path, "none of the networks")
    for other in (
        {"a": 1},
        {**weights, "epoch": 3},
        [torch.zeros(3)],
        torch.zeros(3),
        {"state_dict": 1},
        None,
    ):
        torch.save(other, path)
        refused(path, "not a state dict")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load_as_float32(tmp_path, weights, dtype):
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    ours, foreign = tmp_path / "weights.safetensors", tmp_path / "weights.pth"
    save_model(ours, "tiny", stored, MEAN, DEVIATION, {})
    torch.save(stored, foreign)
    for path in (ours, foreign):
        network = load_model(path).network
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert_same_weights(network, stored)


def test_weights_that_overlap_in_memory_can_be_saved(tmp_path, weights):
    weights["classifier.weight"] = torch.randn(8, 1, 1, 1)[::2].reshape(1, 4, 1, 1)
    key = "encoder.0.1.0.weight"
    weights[key] = weights[key].contiguous(memory_format=torch.channels_last)
    path = tmp_path / "weights.safetensors"
    save_model(path, "tiny", weights, MEAN, DEVIATION, {})
    assert_same_weights(load_model(path).network, weights)


def test_a_whole_pickled_model_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "whole.pth"
    for content in (NETWORKS["tiny"](), {"state_dict": {}, "hyper_parameters": torch.nn.ReLU()}):
        torch.save(content, path)
        refused(path, "a pickled object, such as a whole model", "state_dict()", "torch.export")


def test_the_nearest_network_is_named_with_what_does_not_fit(tmp_path, weights):
    path = tmp_path / "weights.pth"
    changed = {f"encoder.{key}" if key.startswith("center") else key: value for key, value in weights.items()}
    torch.save(changed, path)
    moved = [key for key in changed if key not in weights]
    number = len(changed) - len(moved)
    refused(path, f"nearest is tiny, with {number} of its {len(weights)} names", *moved[:3])
    torch.save({"a": torch.zeros(2)}, path)
    refused(path, "no name of a tensor is one of theirs")


def test_what_to_install_for_networks_of_smp_is_told(tmp_path, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    (tmp_path / "config.json").write_text('{"_model_class": "Unet", "encoder_name": "resnet18"}')
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"pip install 'carvana-batch\[smp\]'"):
        load_model(tmp_path)
