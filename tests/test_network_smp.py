"""Networks of segmentation_models_pytorch, against its own forward pass."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import make_predictor, predict_one, random_photo

from carvana_batch.commands.models import command
from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.measuring import measure_stride
from carvana_batch.network.wrapped import WrappedNetwork

smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GIVEN = ModelSettings(mean=IMAGENET[0], deviation=IMAGENET[1], context=100)
"""So that the context is not measured in each test."""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing may be downloaded: a name that is looked up fails the test."""

    def refuse(*arguments, **_):
        raise AssertionError(f"looked up {arguments[0]}")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


def make(architecture: str, encoder: str = "resnet18", seed: int = 0, **options):
    """A network with random weights and batch norms that are not neutral."""
    torch.manual_seed(seed)
    network = getattr(smp, architecture)(encoder, encoder_weights=None, **options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def save(network, folder) -> None:
    network.save_pretrained(folder)


def car_logits(output: torch.Tensor) -> torch.Tensor:
    return output if output.shape[1] == 1 else output[:, 1:] - output[:, :1]


CASES = (
    ("Unet", "resnet18", {"decoder_attention_type": "scse"}),
    ("Unet", "mobilenet_v2", {"encoder_depth": 4, "decoder_channels": [64, 32, 16, 8], "classes": 2}),
    ("UnetPlusPlus", "resnet18", {"decoder_interpolation": "bilinear"}),
    ("FPN", "resnet18", {"classes": 2}),
    ("DeepLabV3Plus", "resnet18", {"encoder_output_stride": 8}),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_the_logits_are_those_of_the_package(tmp_path, case):
    architecture, encoder, options = case
    network = make(architecture, encoder, **options)
    save(network, tmp_path)
    model = load_model(tmp_path, GIVEN)
    images = torch.randn((2, 3, 96, 64))
    with torch.inference_mode():
        torch.testing.assert_close(model.network(images), car_logits(network(images)), atol=1e-5, rtol=1e-5)
    assert model.network.stride == network.encoder.output_stride
    assert model.name == f"smp:{architecture}, encoder {encoder}"


def test_a_state_dict_needs_the_names_of_network_and_encoder(tmp_path):
    network = make("FPN", "resnet18", classes=2)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, path)
    images = torch.randn((1, 3, 64, 64))
    found = load_model(path, replace(GIVEN, network="smp:FPN", encoder="resnet18"))
    with torch.inference_mode():
        torch.testing.assert_close(found.network(images), car_logits(network(images)), atol=1e-5, rtol=1e-5)
    (tmp_path / "model.toml").write_text('network = "smp:FPN"\nencoder = "resnet18"\ncontext = 100\n')
    beside = load_model(path)
    assert (beside.mean, beside.deviation) == IMAGENET
    assert "ImageNet" in beside.origins["mean"]
    assert beside.origins["encoder"].endswith("model.toml")
    assert beside.digest == found.digest


def test_the_declared_stride_is_the_measured_one():
    assert measure_stride(WrappedNetwork(make("Unet"), 1)) == 32


def test_a_photo_is_masked_as_the_package_does(tmp_path):
    network = make("Unet")
    save(network, tmp_path)
    photo = random_photo(64, 96)
    predictor = make_predictor(load_model(tmp_path, replace(GIVEN, mean=None)), keep_probability=True)
    images = (torch.from_numpy(photo.pixels) / 255 - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
    with torch.inference_mode():
        expected = torch.sigmoid(network(images.permute(2, 0, 1)[None]))[0, 0].numpy()
    np.testing.assert_allclose(predict_one(predictor, photo).probability, expected, atol=1e-5)


def test_the_preprocessing_of_an_encoder_is_used(tmp_path):
    for encoder, expected in (
        ("vgg11", IMAGENET),
        ("tu-mobilenetv3_small_050", IMAGENET),
        ("tu-tf_efficientnet_lite0", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ):
        save(make("FPN", encoder), tmp_path / encoder)
        model = load_model(tmp_path / encoder, ModelSettings(context=100))
        assert (model.mean, model.deviation) == expected
        assert encoder.removeprefix("tu-") in model.origins["mean"]


def test_sigmoid_at_the_end_gives_the_same_masks(tmp_path):
    network = make("Unet", activation="sigmoid")
    save(network, tmp_path)
    model = load_model(tmp_path, GIVEN)
    images = torch.randn((1, 3, 64, 64))
    with torch.inference_mode():
        found = torch.sigmoid(model.network(images))
        torch.testing.assert_close(found, network(images), atol=1e-5, rtol=0)


def test_what_cannot_be_used_is_refused(tmp_path, count_faults):
    network = make("Unet")
    save(network, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    faults = (
        ({"_model_class": "PSPNet"}, "there is no smp:PSPNet here, but Unet"),
        ({"_model_class": None}, "there is no smp:None here"),
        ({"in_channels": 4}, "takes 4 channels"),
        ({"classes": 3}, "has 3 classes"),
        ({"aux_params": {"classes": 1}}, "aux_params"),
        ({"activation": "tanh"}, "activation tanh"),
        ({"activation": ["sigmoid"]}, "activation"),
        ({"activation": "sigmoid", "classes": 2}, "not exclusive"),
        ({"encoder_name": "resnet81"}, "did you mean resnet18?"),
        ({"encoder_name": "tu-nothing"}, "cannot build Unet with tu-nothing"),
        ({"encoder_name": 7}, "no encoder_name"),
        ({"unknown_option": 1}, "has no option unknown_option"),
        ({"decoder_channels": [8, 8, 8, 8, 8]}, "(8, "),
        ({"classes": 2}, "(1, 16, 3, 3), not (2, 16, 3, 3)"),
    )
    for changes, word in faults:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ModelError) as caught:
            load_model(tmp_path, GIVEN)
        assert word in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for settings, word in (
        (ModelSettings(network="smp:Unet"), "leave out --network"),
        (ModelSettings(output="probability"), "leave out --output"),
    ):
        with pytest.raises(ModelError, match=word):
            load_model(tmp_path, settings)
    weights = tmp_path / "model.safetensors"
    for settings, word in (
        (ModelSettings(network="smp:Unet"), "needs --encoder"),
        (ModelSettings(network="smp:Unet", encoder="resnet34"), "encoder.layer1.2.conv1.weight missing"),
        (ModelSettings(network="smp:Unte", encoder="resnet18"), "there is no smp:Unte"),
    ):
        with pytest.raises(ModelError) as caught:
            load_model(weights, settings)
        assert word in str(caught.value)
    count_faults("a network of the user's own that does not fit is refused", len(faults) + 6)


def test_show_tells_where_the_normalisation_is_from(tmp_path):
    save(make("Unet", classes=2), tmp_path)
    result = CliRunner().invoke(command, ["show", str(tmp_path)], catch_exceptions=False)
    text = result.output
    assert f"kind              segmentation_models_pytorch {smp.__version__}" in text
    assert "network           smp:Unet, encoder resnet18" in text
    origin = "ImageNet, for which the trained weights of resnet18 are"
    assert f"mean              0.485 0.456 0.406 ({origin})" in text
    assert "output            logits, 2 channels, car is number 1" in text
    assert "stride            32 pixels" in text
    assert "memory            " in text
