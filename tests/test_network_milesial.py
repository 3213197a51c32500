"""State dicts of milesial/Pytorch-UNet, against a functional implementation of its forward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import make_predictor, predict_one, random_photo
from torch import Tensor
from torch.nn import functional

from carvana_batch.errors import ModelError
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.checkpoints import load_model
from carvana_batch.network.cpu_fusion import prepare_network
from carvana_batch.network.measuring import measure_context, measure_stride

WIDTH = 4


def add_convolutions(
    weights: dict[str, Tensor], name: str, channels: tuple[int, int, int], bias: bool
) -> None:
    """The tensors of DoubleConv in that project: two 3x3 convolutions, each with a batch norm."""
    for index, (before, after) in ((0, channels[:2]), (3, channels[1:])):
        weights[f"{name}.double_conv.{index}.weight"] = torch.randn(after, before, 3, 3) / (3 * before**0.5)
        if bias:
            weights[f"{name}.double_conv.{index}.bias"] = torch.randn(after)
        norm = f"{name}.double_conv.{index + 1}"
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = torch.rand(after) + 0.5, torch.randn(after) / 2
        weights[f"{norm}.running_mean"] = torch.randn(after) / 2
        weights[f"{norm}.running_var"] = torch.rand(after) + 0.3
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)


def make_weights(bilinear: bool = False, classes: int = 1, bias: bool = False) -> dict[str, Tensor]:
    """A state dict as that project saves it, with random weights."""
    torch.manual_seed(2 * classes + bilinear)
    weights: dict[str, Tensor] = {}
    factor = 2 if bilinear else 1
    add_convolutions(weights, "inc", (3, WIDTH, WIDTH), bias)
    for level in range(1, 5):
        after = WIDTH * 2**level // (factor if level == 4 else 1)
        before = WIDTH * 2 ** (level - 1)
        add_convolutions(weights, f"down{level}.maxpool_conv.1", (before, after, after), bias)
    for level in range(1, 5):
        before = WIDTH * 2 ** (5 - level)
        after = before // 2 // (factor if level < 4 else 1)
        if not bilinear:
            weights[f"up{level}.up.weight"] = torch.randn(before, before // 2, 2, 2) / before**0.5
            weights[f"up{level}.up.bias"] = torch.randn(before // 2)
        middle = before // 2 if bilinear else after
        add_convolutions(weights, f"up{level}.conv", (before, middle, after), bias)
    weights["outc.conv.weight"] = torch.randn(classes, WIDTH, 1, 1)
    weights["outc.conv.bias"] = torch.randn(classes)
    return weights


def convolve_twice(weights: dict[str, Tensor], name: str, features: Tensor) -> Tensor:
    for index in (0, 3):
        part, norm = f"{name}.double_conv.{index}", f"{name}.double_conv.{index + 1}"
        features = functional.conv2d(
            features, weights[f"{part}.weight"], weights.get(f"{part}.bias"), padding=1
        )
        statistics = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        features = functional.batch_norm(
            features, *statistics, weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        )
        features = torch.clamp(features, min=0)
    return features


def reference(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """What that project computes: (N, 3, h, w) to (N, classes, h, w)."""
    skips = [convolve_twice(weights, "inc", images)]
    for level in range(1, 5):
        pooled = functional.max_pool2d(skips[-1], 2)
        skips.append(convolve_twice(weights, f"down{level}.maxpool_conv.1", pooled))
    features = skips.pop()
    for level in range(1, 5):
        if f"up{level}.up.weight" in weights:
            up = weights[f"up{level}.up.weight"], weights[f"up{level}.up.bias"]
            features = functional.conv_transpose2d(features, *up, stride=2)
        else:
            features = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
        skip = skips.pop()
        rows, columns = skip.shape[2] - features.shape[2], skip.shape[3] - features.shape[3]
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        features = torch.cat((skip, functional.pad(features, sides)), dim=1)
        features = convolve_twice(weights, f"up{level}.conv", features)
    return functional.conv2d(features, weights["outc.conv.weight"], weights["outc.conv.bias"])


def car_logits(output: Tensor) -> Tensor:
    """Of two classes, by softmax."""
    if output.shape[1] == 1:
        return output
    return torch.logit(torch.softmax(output.double(), dim=1)[:, 1:]).float()


@pytest.mark.parametrize("size", [(48, 64), (37, 91), (16, 31)], ids=str)
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("bilinear", [False, True], ids=["transposed", "bilinear"])
def test_the_logits_are_those_of_the_project(tmp_path, bilinear, classes, size):
    weights = make_weights(bilinear, classes)
    torch.save(weights | {"mask_values": [0, 1]}, tmp_path / "unet.pth")
    model = load_model(tmp_path / "unet.pth")
    assert (model.name, model.mean, model.deviation) == ("milesial", (0, 0, 0), (1, 1, 1))
    images = torch.rand((2, 3, *size))
    with torch.inference_mode():
        expected = car_logits(reference(weights, images))
        torch.testing.assert_close(model.network(images), expected, atol=1e-5, rtol=1e-5)
        prepared = prepare_network(model.network, torch.device("cpu"), torch.float32)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(prepared(channels_last), expected, atol=1e-4, rtol=1e-4)


def test_a_whole_photo_is_masked_as_the_project_does(tmp_path):
    weights = make_weights()
    torch.save(weights, tmp_path / "unet.pth")
    photo = random_photo(50, 70)
    predictor = make_predictor(load_model(tmp_path / "unet.pth"), keep_probability=True)
    images = torch.from_numpy(photo.pixels).permute(2, 0, 1)[None] / 255
    expected = torch.sigmoid(reference(weights, images))[0, 0]
    found = torch.from_numpy(predict_one(predictor, photo).probability)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_variants_are_recognised(tmp_path):
    images = torch.rand((1, 3, 32, 32))
    plain = make_weights()
    expected = reference(plain, images)
    for number, saved in enumerate(
        (
            {f"module.{key}": value for key, value in plain.items()},
            {f"module._orig_mod.{key}": value for key, value in plain.items()},
            {"state_dict": {f"model.{key}": value for key, value in plain.items()}, "epoch": 3},
            {
                "state_dict": {f"net.{key}": value for key, value in plain.items()}
                | {"mean": torch.zeros(3), "loss.weight": torch.ones(1)},
                "pytorch-lightning_version": "2.5.0",
                "hyper_parameters": {"lr": 1e-3},
            },
        )
    ):
        path = tmp_path / f"{number}.ckpt"
        torch.save(saved, path)
        network = load_model(path).network
        with torch.inference_mode():
            torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)
    with_bias = make_weights(bias=True)
    torch.save(with_bias, tmp_path / "bias.pth")
    with torch.inference_mode():
        found = load_model(tmp_path / "bias.pth").network(images)
    torch.testing.assert_close(found, reference(with_bias, images), atol=1e-5, rtol=1e-5)


def test_a_photo_smaller_than_the_coarsest_pixel_has_a_mask(tmp_path):
    torch.save(make_weights(), tmp_path / "unet.pth")
    with torch.inference_mode():
        assert load_model(tmp_path / "unet.pth").network(torch.rand(1, 3, 5, 70)).shape == (1, 1, 5, 70)


def test_the_declared_stride_and_context_are_those_that_are_measured(tmp_path):
    torch.save(make_weights(), tmp_path / "unet.pth")
    network = load_model(tmp_path / "unet.pth").network
    stride = measure_stride(network)
    assert 1 < stride <= network.stride == 16
    assert 16 < measure_context(network) <= network.context == 108
    torch.save(make_weights(bilinear=True), tmp_path / "bilinear.pth")
    assert load_model(tmp_path / "bilinear.pth").network.context == math.inf


def test_the_values_of_the_masks_tell_which_class_is_car(tmp_path, count_faults):
    path = tmp_path / "unet.pth"
    images = torch.rand((1, 3, 32, 32))
    weights = make_weights(classes=2)
    output = reference(weights, images)
    for values in ([0, 1], [0, 255]):
        torch.save(weights | {"mask_values": values}, path)
        with torch.inference_mode():
            found = load_model(path).network(images)
        torch.testing.assert_close(found, output[:, 1:] - output[:, :1], atol=1e-5, rtol=1e-5)
    odd: tuple[list[Any], ...] = ([0, 7], [1, 0], [0, 1, 2], [[0, 0, 0], [255, 255, 255]], [])
    for unclear in odd:
        torch.save(weights | {"mask_values": unclear}, path)
        with pytest.raises(ModelError, match="car-class = 0 or 1"):
            load_model(path)
    with torch.inference_mode():
        found = load_model(path, ModelSettings(car_class=0)).network(images)
    torch.testing.assert_close(found, output[:, :1] - output[:, 1:], atol=1e-5, rtol=1e-5)
    count_faults("a network of the user's own that does not fit is refused", len(odd))


def test_what_does_not_fit_is_refused(tmp_path, count_faults):
    path = tmp_path / "unet.pth"
    whole = make_weights()
    without = {key: value for key, value in whole.items() if key != "up2.conv.double_conv.3.weight"}
    not_finite = whole | {"inc.double_conv.0.weight": torch.full((WIDTH, 3, 3, 3), math.nan)}
    faults = (
        (make_weights(classes=3), "has 3 classes"),
        (without, "up2.conv.double_conv.3.weight missing"),
        (whole | {"extra": torch.ones(1)}, r"extra (1,)"),
        (whole | {"up1.up.bias": torch.ones(3)}, "up1.up.bias (3,), not (32,)"),
        (whole | {"inc.double_conv.0.weight": torch.ones(WIDTH, 4, 3, 3)}, "(4, 4, 3, 3), not (4, 3, 3, 3)"),
        (not_finite, "inc.double_conv.0.weight holds values that are not finite"),
    )
    for weights, word in faults:
        torch.save(weights, path)
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert word in str(caught.value)
        assert str(path) in str(caught.value)
    torch.save(whole, path)
    for settings, word in (
        (ModelSettings(output="probability"), "leave out output"),
        (ModelSettings(classes=2), "1 class(es)"),
        (ModelSettings(network="nothing"), "there is no network 'nothing'"),
        (ModelSettings(network="unet"), "fit none of the networks unet"),
        (ModelSettings(encoder="resnet34"), "--encoder is for --network smp:NAME"),
    ):
        with pytest.raises(ModelError) as caught:
            load_model(path, settings)
        assert word in str(caught.value)
    count_faults("a network of the user's own that does not fit is refused", len(faults) + 5)


def test_a_digest_covers_what_changes_masks(tmp_path):
    path = tmp_path / "unet.pth"
    torch.save(make_weights(classes=2), path)
    settings = (
        ModelSettings(),
        ModelSettings(mean=(0.1, 0.1, 0.1)),
        ModelSettings(deviation=(0.5, 0.5, 0.5)),
        ModelSettings(size=(64, 48)),
        ModelSettings(car_class=0),
    )
    digests = {load_model(path, one).digest for one in settings}
    assert len(digests) == len(settings)
    assert load_model(path, ModelSettings(mean=(0.0, 0.0, 0.0))).digest in digests
