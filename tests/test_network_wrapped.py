"""Modules of any origin as networks: what is measured of them, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import WHOLE, make_predictor, predict_one, random_photo
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.errors import CarvanaBatchError, ModelError, UsageError
from carvana_batch.inference import planning
from carvana_batch.inference.tiles import Tiling, describe_context
from carvana_batch.main_memory import keep_freed_memory, peak_memory
from carvana_batch.model_settings import ModelSettings
from carvana_batch.network.measuring import context_of
from carvana_batch.network.model import MissingSettingsError
from carvana_batch.network.wrapped import Output, WrappedNetwork, wrap_module
from carvana_batch.options import Options

SETTINGS = ModelSettings(mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5))


class Hourglass(nn.Module):
    """A small U-Net without padding: it takes sides that are multiples of 2 ** levels only."""

    def __init__(self, levels: int = 2, classes: int = 1, kernel: int = 3) -> None:
        super().__init__()
        torch.manual_seed(levels)
        padding = kernel // 2
        self.down = nn.ModuleList(
            nn.Conv2d(3 if level == 0 else 8, 8, kernel, padding=padding) for level in range(levels)
        )
        self.middle = nn.Conv2d(8 if levels else 3, 8, kernel, padding=padding)
        self.up = nn.ModuleList(nn.Conv2d(16, 8, kernel, padding=padding) for _ in range(levels))
        self.last = nn.Conv2d(8, classes, 1)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        skips = []
        features = images
        for convolution in self.down:
            features = functional.relu(convolution(features))
            skips.append(features)
            features = functional.max_pool2d(features, 2)
        features = functional.relu(self.middle(features))
        for convolution in self.up:
            enlarged = functional.interpolate(features, scale_factor=2.0)
            features = functional.relu(convolution(torch.cat((skips.pop(), enlarged), dim=1)))
        return self.last(features)


class Changed(nn.Module):
    """What a function makes of the output of another module."""

    def __init__(self, module: nn.Module, change) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, images: Tensor):
        return self.change(self.module(images))


@pytest.mark.parametrize("levels", [0, 1, 2, 3, 4])
def test_the_stride_is_measured(levels):
    assert wrap_module(Hourglass(levels), SETTINGS).network.stride == 2**levels


def test_masks_of_tiles_on_the_measured_stride_are_those_of_the_whole_photo():
    model = wrap_module(Hourglass(2), SETTINGS)
    photo = random_photo(150, 202)
    overlap = math.ceil(context_of(model.network) * 16 / 7)
    whole = predict_one(make_predictor(model, WHOLE, keep_probability=True), photo)
    tiles = Tiling((overlap + 16, overlap + 16), 10**9, overlap)
    predictor = make_predictor(model, tiles, keep_probability=True)
    cut = predict_one(predictor, photo)
    assert predictor.runner.plan(photo, tiles).tile_count > 4
    assert predictor.warnings == []
    np.testing.assert_allclose(cut.probability, whole.probability, atol=2e-3)


def test_the_module_itself_is_not_changed():
    module = Hourglass().half().train()
    wrap_module(module, SETTINGS)
    assert module.training
    assert module.last.weight.dtype == torch.float16


def test_modules_that_view_or_change_their_input_give_the_same_masks():
    class Careless(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            count, channels, height, width = images.shape
            images.mul_(3.0)
            return images.view(count, channels, height * width)[:, :1].view(count, 1, height, width)

    model = wrap_module(Careless(), SETTINGS)
    photo = random_photo(40, 52)
    prediction = predict_one(make_predictor(model, flip=True, keep_probability=True), photo)
    expected = 1 / (1 + np.exp(-3 * (photo.pixels[:, :, 0] / 255 - 0.5) / 0.5))
    np.testing.assert_allclose(prediction.probability, expected, atol=1e-5)


def logits_of(model, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.network(images)


@pytest.mark.parametrize("car", [None, 0, 1])
def test_two_classes_are_joined_by_softmax(car):
    module = Hourglass(1, classes=2)
    images = torch.randn((2, 3, 32, 48))
    values = module(images).detach()
    chosen = 1 if car is None else car
    expected = torch.softmax(values, dim=1)[:, chosen : chosen + 1]
    model = wrap_module(module, replace(SETTINGS, car_class=car))
    torch.testing.assert_close(torch.sigmoid(logits_of(model, images)), expected, atol=1e-5, rtol=0)
    probable = wrap_module(
        Changed(module, lambda values: values.softmax(1)),
        replace(SETTINGS, car_class=car, output="probability"),
    )
    torch.testing.assert_close(torch.sigmoid(logits_of(probable, images)), expected, atol=1e-5, rtol=0)
    assert model.digest != probable.digest


def test_probabilities_become_logits():
    module = Hourglass(1)
    images = torch.randn((1, 3, 32, 48))
    probable = wrap_module(Changed(module, torch.sigmoid), replace(SETTINGS, output="probability"))
    expected = torch.sigmoid(module(images)).detach()
    torch.testing.assert_close(torch.sigmoid(logits_of(probable, images)), expected, atol=1e-5, rtol=0)


def test_what_is_no_probability_is_found_by_the_finite_check():
    values = torch.tensor([0.0, 1.0, 0.5, -0.0005, 1.0005, -0.1, 1.1, math.inf, -math.inf, math.nan])
    logits = Output(is_probability=True).to_logits(values.reshape(1, 1, 1, -1)).flatten()
    assert torch.isfinite(logits).tolist() == [True] * 5 + [False] * 5


class Pixelwise(nn.Module):
    """A logit of three times the red of a pixel, for images of one size."""

    def __init__(self, height: int, width: int, most: int = 10**9) -> None:
        super().__init__()
        self.size, self.most = (height, width), most

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) != self.size or len(images) > self.most:
            raise ValueError(f"expected {self.size}")
        return 3 * images[:, :1]


@pytest.mark.parametrize("size", [(40, 30), (48, 64), (49, 64), (100, 230)], ids=str)
@pytest.mark.parametrize("most", [1, 8])
def test_photos_of_any_size_are_cut_into_tiles_of_the_only_size(size, most):
    model = wrap_module(Pixelwise(48, 64, most), replace(SETTINGS, fixed_size=(64, 48)))
    options = Options(device="cpu", precision="fp32")
    predictor, _ = planning.make_predictor(model, options)
    photo = random_photo(*size)
    np.testing.assert_array_equal(predict_one(predictor, photo).mask.to_bool(), photo.pixels[:, :, 0] >= 128)
    for tile in ((64, 64), (128, 96)):
        with pytest.raises(UsageError, match="64x48 only"):
            planning.make_predictor(model, replace(options, tile=tile))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_number_format_is_checked_on_tiles_of_the_only_size(precision):
    model = wrap_module(Pixelwise(48, 64), replace(SETTINGS, fixed_size=(64, 48)))
    predictor, _ = planning.make_predictor(model, Options(device="cpu", precision=precision))
    photo = random_photo(60, 100)
    clear = np.abs(photo.pixels[:, :, 0] / 255 - 0.5) > 0.02
    mask = predict_one(predictor, photo).mask.to_bool()
    np.testing.assert_array_equal(mask[clear], (photo.pixels[:, :, 0] >= 128)[clear])


class OnlyFloat32(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1] @ torch.eye(images.shape[3])


def test_a_module_that_fails_in_half_precision_runs_in_float32(monkeypatch):
    model = wrap_module(OnlyFloat32(), replace(SETTINGS, stride=1))
    monkeypatch.setattr("carvana_batch.inference.precision.has_bfloat16_instructions", lambda: True)
    predictor, line = planning.make_predictor(model, Options(device="cpu"))
    assert predictor.limits.dtype == torch.float32
    assert "fails in another" in line
    with pytest.raises(UsageError, match="--precision bf16: its network fails"):
        planning.make_predictor(model, Options(device="cpu", precision="bf16"))


def test_an_opaque_module_is_measured_by_a_trial_and_not_copied():
    class Session(nn.Module):
        """Like one of another runtime: torch sees neither its tensors nor its weights."""

        def __deepcopy__(self, _memo):
            return self

        def forward(self, images: Tensor) -> Tensor:
            big = np.repeat(images.numpy(), 30, axis=1)
            return torch.from_numpy(big[:, :1] * 2)

    module = Session()
    keep_freed_memory(True)  # as after a run
    np.zeros((30, 512, 512, 4), np.float32).fill(1)
    before = peak_memory()
    model = wrap_module(module, SETTINGS, digest="of the file", opaque=True)
    assert model.network.module is module
    assert peak_memory() >= before
    assert model.network.stride == 1
    assert 60 < model.network.values_per_pixel < 300  # 90 of the array and some of a copy
    predictor, line = planning.make_predictor(model, Options(device="cpu"))
    assert "fp32" in line
    photo = random_photo(40, 52)
    np.testing.assert_array_equal(predict_one(predictor, photo).mask.to_bool(), photo.pixels[:, :, 0] >= 128)


def test_tiles_that_show_less_than_the_network_looks_at_are_warned_of_once():
    model = wrap_module(Hourglass(2), SETTINGS)
    predictor = make_predictor(model, Tiling((32, 32), 10**9, 8))
    list(predictor.predict([random_photo(20, 24)]))
    assert predictor.warnings == []
    list(predictor.predict([random_photo(100, 120), random_photo(100, 120, seed=1)]))
    (line,) = predictor.warnings
    needed = int(line.partition("--overlap ")[2].partition(",")[0])
    assert needed * 7 / 16 >= context_of(model.network) > 8 * 7 / 16
    assert describe_context(context_of(model.network), needed) is None
    assert "more than 512" in describe_context(math.inf, 10**6)
    assert describe_context(None, 0) is None


def not_finite(module: Hourglass) -> nn.Module:
    nn.init.constant_(module.get_parameter("last.bias"), math.nan)
    return module


class OfTheBatch(Hourglass):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) - super().forward(images).mean()


class Failing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise KeyError("no such thing\x1b[31m")


class Padded(Hourglass):
    """Takes sides of any length, though tiles must start on multiples of its stride all the same."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = functional.pad(images, (0, -width % 8, 0, -height % 8))
        return super().forward(padded)[..., :height, :width]


class Placed(Hourglass):
    """Adds to each logit what depends on its place."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.arange(images.shape[3]) / 10


REFUSED = (
    (lambda: Changed(Hourglass(), lambda values: (values, 1)), {}, "returns a tuple, not a tensor"),
    (lambda: Changed(Hourglass(), lambda values: {"out": values}), {}, "returns a dict, not a tensor"),
    (lambda: Changed(Hourglass(), lambda values: values[:, 0]), {}, "returns the shape (1, 128, 128)"),
    (
        lambda: Changed(Hourglass(), lambda values: values[..., ::2, ::2]),
        {},
        "64x64 pixels for images of 128x128",
    ),
    (lambda: Hourglass(classes=3), {}, "has 3 classes"),
    (lambda: Hourglass(classes=1), {"classes": 2}, "has 1 channels of output, not the 2"),
    (lambda: Hourglass(classes=1), {"car_class": 0}, "it has one"),
    (lambda: not_finite(Hourglass()), {}, "last.bias holds values that are not finite"),
    (lambda: Changed(Hourglass(), lambda values: values / 0), {}, "output for noise is not finite"),
    (lambda: Changed(Hourglass(), functional.dropout), {}, "differs from one call to the next"),
    (OfTheBatch, {}, "depends on the other images of a batch"),
    (Failing, {}, r"fails on 1 image(s) of 128x128 pixels (KeyError: 'no such thing\x1b[31m')"),
    (lambda: Pixelwise(64, 64), {}, "fixed-size"),
    (lambda: Pixelwise(64, 64), {"fixed_size": (32, 32)}, "of 32x32 pixels"),
    (Placed, {}, "do not move along with the image"),
    (lambda: Hourglass(3), {"stride": 4}, "odd multiples of its stride 4"),
    (lambda: Padded(3), {"stride": 4}, "with an image that is moved by its stride 4"),
    (lambda: Changed(Hourglass(), torch.sigmoid), {}, "--output probability or --output logits"),
    (Hourglass, {"output": "probability"}, "so it is no probability"),
    (Hourglass, {"mean": None}, "--mean R,G,B"),
    (Hourglass, {"deviation": None}, "--deviation R,G,B"),
)


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault[2])
def test_what_cannot_be_used_is_refused_with_what_to_do(fault, count_faults):
    make, changes, word = fault
    with pytest.raises(ModelError) as caught:
        wrap_module(make(), replace(SETTINGS, **changes), name="mine")
    assert word in str(caught.value)
    assert str(caught.value).startswith("mine: ")
    assert str(caught.value).isprintable()
    count_faults("a network of the user's own that does not fit is refused", 1)


def test_what_is_missing_is_told():
    with pytest.raises(MissingSettingsError) as caught:
        wrap_module(Hourglass(), ModelSettings())
    assert caught.value.missing == ("mean", "deviation")


class Limited(nn.Module):
    """A logit of three times the red of a pixel, with memory for so many images and pixels of an image."""

    def __init__(self, most_images: int, most_pixels: int) -> None:
        super().__init__()
        self.most_images, self.most_pixels = most_images, most_pixels

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most_images or images.shape[2] * images.shape[3] > self.most_pixels:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 3 * images[:, :1]


def test_when_memory_runs_out_batches_and_tiles_become_smaller(count_faults):
    model = wrap_module(Limited(2, 256 * 256), replace(SETTINGS, stride=4))
    limited = replace(model, network=WrappedNetwork(Limited(2, 2000), 4))
    predictor = make_predictor(limited, batch=4)
    photos = [random_photo(70, 90, seed) for seed in range(5)]
    masks = {result.photo.ref.key: result.mask.to_bool() for result in predictor.predict(photos)}
    for photo in photos:
        np.testing.assert_array_equal(masks[photo.ref.key], photo.pixels[:, :, 0] >= 128)
    assert predictor.limits.batch <= 2
    count_faults("a network of the user's own that does not fit is refused", 1)


def test_tiles_of_the_only_size_do_not_become_smaller_when_memory_runs_out():
    model = wrap_module(Pixelwise(48, 64), replace(SETTINGS, fixed_size=(64, 48)))
    short = replace(model, network=WrappedNetwork(Limited(1, 1000), 1))
    short.network.fixed_size = (48, 64)
    predictor = make_predictor(short, Tiling((64, 48), 10**9, 24))
    with pytest.raises(CarvanaBatchError, match="memory on cpu for the smallest tile, 64x48 pixels"):
        list(predictor.predict([random_photo(100, 100)]))


def test_what_is_not_finite_in_a_photo_is_no_mask():
    class SometimesInfinite(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            is_white = images.amin(dim=(1, 2, 3), keepdim=True) > 0.9
            return torch.where(is_white, torch.inf, images[:, :1])

    model = wrap_module(SometimesInfinite(), replace(SETTINGS, stride=1))
    photos = [random_photo(20, 24, seed) for seed in range(2)]
    photos[1].pixels[:] = 255
    first, second = make_predictor(model).predict(photos)
    np.testing.assert_array_equal(first.mask.to_bool(), photos[0].pixels[:, :, 0] >= 128)
    assert "not finite" in second.reason


def test_the_stride_of_a_network_that_takes_any_size_is_measured():
    assert wrap_module(Padded(3), SETTINGS).network.stride == 8


def test_code_that_fails_in_a_run_ends_it_with_one_line():
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[3] > 600:
                raise KeyError("wide")
            return images[:, :1]

    predictor = make_predictor(wrap_module(Fails(), replace(SETTINGS, stride=1)))
    with pytest.raises(ModelError, match="Fails: its code fails on tiles, 1 of 601x20 pixels"):
        list(predictor.predict([random_photo(20, 600), random_photo(20, 601)]))


@pytest.mark.parametrize("fault", [KeyError("wide"), torch.OutOfMemoryError("CUDA out of memory.")], ids=repr)
def test_a_context_that_cannot_be_measured_is_told(fault):
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[3] > 256:
                raise fault
            return images[:, :1]

    predictor = make_predictor(wrap_module(Fails(), replace(SETTINGS, stride=1)), Tiling((32, 32), 10**9, 8))
    if isinstance(fault, KeyError):
        with pytest.raises(ModelError, match="say how far it looks: context = N"):
            list(predictor.predict([random_photo(40, 60)]))
    else:
        predict_one(predictor, random_photo(40, 60))
        assert predictor.warnings == ["not enough memory to measure how far the network looks beyond a tile"]
