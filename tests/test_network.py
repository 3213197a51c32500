import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.errors import ModelError
from carvana_batch.network import NETWORKS
from carvana_batch.network import cpu_fusion as inference
from carvana_batch.network.activations import activations_per_pixel, count_multiply_adds, measure_activations
from carvana_batch.network.blocks import (
    AnySizeNetwork,
    Convolution,
    enlarge_twice,
    halve,
    pad_to,
    spread_channels,
)
from carvana_batch.network.cpu_fusion import FusedConvolution, fold_batch_norm, prepare_network
from carvana_batch.network.segunet import SegUNet
from carvana_batch.network.unet import UNet

SMALL_NETWORKS = {
    "segunet": lambda: SegUNet((4, 6), center=8, decoder_convolutions=2),
    "segunet with unshuffle": lambda: SegUNet((4, 6), center=8, decoder_convolutions=1, unshuffle=2),
    "unet": lambda: UNet((4, 6), bottleneck=8),
}


def make_lively(network: nn.Module) -> nn.Module:
    """Weights and batch norms as after a training, where folding them wrongly would show."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
            nn.init.normal_(module.running_mean, 0, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 3)
    return network.eval()


@pytest.fixture(scope="module", params=SMALL_NETWORKS)
def small_network(request):
    torch.manual_seed(0)
    return make_lively(SMALL_NETWORKS[request.param]())


def convolution(channels_in: int, channels_out: int, size: int, bias: bool) -> int:
    return size**2 * channels_in * channels_out + (channels_out if bias else 0)


def block(channels_in: int, channels_out: int) -> int:
    """Parameters of a 3x3 convolution without bias and a batch norm."""
    return convolution(channels_in, channels_out, 3, bias=False) + 2 * channels_out


def segunet_parameters(widths, center, decoder_convolutions, unshuffle):
    channels = 3 * unshuffle**2
    total = 0
    for width in widths:
        total += block(channels, width) + block(width, width)
        channels = width
    total += block(channels, center) + block(center, center)
    channels = center
    for width in reversed(widths):
        total += block(channels + width, width) + (decoder_convolutions - 1) * block(width, width)
        channels = width
    return total + convolution(channels, unshuffle**2, 1, bias=True)


def build_without_weights(name: str) -> AnySizeNetwork:
    with torch.device("meta"):
        return NETWORKS[name]().eval()


def count_parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in build_without_weights(name).parameters())


def test_parameter_counts():
    assert count_parameters("unet") == 31_043_521
    assert count_parameters("segunet-s") == segunet_parameters((16, 32, 64, 96, 128, 160), 160, 1, 2)
    assert count_parameters("segunet-s") == pytest.approx(2.46e6, rel=0.001)
    assert count_parameters("segunet-m") == segunet_parameters((24, 48, 96, 128, 176, 224), 224, 1, 2)
    assert 2 * count_parameters("segunet-m") < 10e6  # bytes in half precision
    widths = (8, 24, 64, 128, 256, 512, 768)
    assert count_parameters("segunet") == segunet_parameters(widths, 768, 3, 1)


def output_sizes(modules: nn.ModuleList | list[nn.Module], network: nn.Module, side: int) -> list[tuple]:
    """(channels, height) that each module gives for an image of side x side, found by listening in."""
    sizes = []

    def listen(_module, _inputs, output):
        sizes.append(tuple(output.shape[1:3]))

    for module in modules:
        module.register_forward_hook(listen)
    network(torch.zeros(1, 3, side, side, device="meta"))
    return sizes


def count_convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) for part in module.modules())


def test_the_structure_of_segunet():
    network: Any = build_without_weights("segunet")
    parts = [*network.encoder, network.center, *network.decoder, network.classifier]
    sizes = output_sizes(parts, network, 128)
    encoder = [(8, 128), (24, 64), (64, 32), (128, 16), (256, 8), (512, 4), (768, 2)]
    assert sizes == [*encoder, (768, 1), *reversed(encoder), (1, 128)]
    assert [count_convolutions(part) for part in parts] == [2] * 7 + [2] + [3] * 7 + [0]
    assert network.stride == 128


def test_the_structure_of_segunet_s():
    network: Any = build_without_weights("segunet-s")
    sizes = output_sizes([*network.encoder, network.center, *network.decoder], network, 128)
    encoder = [(16, 64), (32, 32), (64, 16), (96, 8), (128, 4), (160, 2)]
    assert sizes == [*encoder, (160, 1), *reversed(encoder)]
    assert network.stride == 128


def test_the_structure_of_unet():
    network: Any = build_without_weights("unet")
    sizes = output_sizes([*network.down, network.bottleneck, *network.up], network, 16)
    encoder = [(64, 16), (128, 8), (256, 4), (512, 2)]
    assert sizes == [*encoder, (1024, 1), *reversed(encoder)]
    assert network.stride == 16


def test_odd_levels_need_no_more_padding_than_the_finest():
    """Features of an odd height or width keep their last row and column on the way down and up."""
    torch.manual_seed(3)
    network = SegUNet((4, 8, 8), center=8, decoder_convolutions=1, unshuffle=2).eval()
    images = torch.randn(1, 3, 12, 20, requires_grad=True)
    network(images)[0, 0, -1, -1].backward()
    assert network.unit == 4
    assert network.stride == 16
    assert (images.grad[..., -2:, -2:] != 0).all()


def padded_by_hand(images: Tensor, unit: int) -> Tensor:
    height, width = images.shape[-2:]
    missing = ((0, 0), (0, 0), (0, -height % unit), (0, -width % unit))
    return torch.from_numpy(np.pad(images.numpy(), missing, mode="edge"))


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
@example(height=1, width=1)
@example(height=37, width=23)
@example(height=16, width=8)
def test_any_size_is_padded_and_cropped_back(small_network, height, width):
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * 41 + width))
    with torch.inference_mode():
        logits = small_network(images)
        padded = small_network.padded_logits(padded_by_hand(images, small_network.unit))
    assert logits.shape == (2, 1, height, width)
    assert torch.equal(logits, padded[..., :height, :width])
    assert logits.std() > 0 or height * width == 1


@pytest.mark.parametrize("name", ["segunet-s", "unet"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 23)])
def test_networks_of_the_registry_take_any_size(name, height, width):
    network = NETWORKS[name]().eval()
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = network(images)
        padded = network.padded_logits(padded_by_hand(images, network.unit))
    assert torch.equal(logits, padded[..., :height, :width])


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 20),
    st.integers(0, 20),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_pad_to_repeats_the_last_row_and_column(height, width, more_rows, more_columns, dtype):
    images = torch.arange(2 * 3 * height * width).reshape(2, 3, height, width).to(dtype)
    padded = pad_to(images, height + more_rows, width + more_columns)
    rows = [min(row, height - 1) for row in range(height + more_rows)]
    columns = [min(column, width - 1) for column in range(width + more_columns)]
    assert torch.equal(padded, images[:, :, rows][:, :, :, columns])


def test_each_pixel_of_an_unshuffled_block_has_its_own_logit():
    network: Any = SMALL_NETWORKS["segunet with unshuffle"]().eval()
    nn.init.zeros_(network.classifier.weight)
    network.classifier.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    logits = network(torch.zeros(1, 3, 5, 4))
    expected = torch.tensor([[1.0, 2, 1, 2], [3, 4, 3, 4]]).repeat(3, 1)[:5]
    assert torch.equal(logits[0, 0], expected)


def test_folding_batch_norm_does_not_change_the_output(small_network):
    before = {key: value.clone() for key, value in small_network.state_dict().items()}
    folded = fold_batch_norm(small_network)
    images = torch.randn(2, 3, 33, 29, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, logits = small_network(images), folded(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for key, value in small_network.state_dict().items():
        assert torch.equal(value, before[key])


def test_folding_uses_running_statistics(small_network):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = small_network(images)
        small_network.train()
        try:
            logits = fold_batch_norm(small_network)(images)
            assert small_network.training
        finally:
            small_network.eval()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (1, 1), (1, 50), (37, 23)])
def test_prepared_networks_are_close_in_any_precision(small_network, dtype, height, width):
    prepared = prepare_network(small_network, torch.device("cpu"), dtype)
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = small_network(images)
        logits = prepared(images.to(dtype).contiguous(memory_format=torch.channels_last))
    assert logits.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=tolerance)
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


def count_fused(network: nn.Module) -> int:
    return sum(isinstance(module, FusedConvolution) for module in network.modules())


NEEDS_FUSING = pytest.mark.skipif(
    not inference.fusing_works(torch.float32), reason="this torch has no fused convolutions"
)


@NEEDS_FUSING
def test_every_convolution_before_a_relu_is_fused_on_a_cpu(small_network):
    prepared = prepare_network(small_network, torch.device("cpu"), torch.float32)
    count = sum(isinstance(module, nn.ReLU) for module in small_network.modules())
    assert count_fused(prepared) == count > 0
    assert not any(isinstance(module, nn.ReLU) for module in prepared.modules())
    assert count_fused(small_network) == 0
    for unfused in (
        prepare_network(small_network, torch.device("cpu"), torch.float32, fused=False),
        prepare_network(small_network, torch.device("cpu"), torch.float16),
    ):
        assert count_fused(unfused) == 0


def test_weights_that_folding_makes_infinite_are_refused(small_network):
    damaged = copy.deepcopy(small_network)
    norm = next(module for module in damaged.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_var[0] = -1
    with pytest.raises(ModelError, match="not finite"):
        prepare_network(damaged, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("trouble", [AttributeError("no such operation"), RuntimeError("not for bf16"), None])
def test_broken_fused_convolutions_are_not_used(small_network, trouble, monkeypatch):
    def convolve(_self, features, *_):
        if trouble is not None:
            raise trouble
        return torch.zeros((1, 3, *features.shape[2:]))  # something else than it should be

    monkeypatch.setattr(FusedConvolution, "convolve", convolve)
    inference.fusing_works.cache_clear()
    try:
        assert not inference.fusing_works(torch.float32)
        prepared = prepare_network(small_network, torch.device("cpu"), torch.float32)
    finally:
        inference.fusing_works.cache_clear()
    assert count_fused(prepared) == 0
    images = torch.randn(2, 3, 17, 30, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(prepared(images), small_network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, kernel_size=3, padding=1, stride=2),
        nn.Conv2d(4, 6, kernel_size=3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 6, kernel_size=(1, 5), padding=(0, 2)),
        nn.Conv2d(4, 6, kernel_size=3, padding=1, groups=2),
        nn.Conv2d(4, 6, kernel_size=3, padding="same"),
        nn.Conv2d(4, 6, kernel_size=3, padding=1, padding_mode="reflect"),
    ],
)
def test_convolutions_of_all_kinds_give_the_same_once_prepared(convolution):
    torch.manual_seed(0)
    network = make_lively(nn.Sequential(convolution, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 1)))
    images = torch.randn(2, 4, 15, 12)
    with torch.inference_mode():
        prepared = prepare_network(network, torch.device("cpu"), torch.float32)
        torch.testing.assert_close(prepared(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_maps_equal_concatenated_ones(dtype):
    if not inference.fusing_works(dtype):
        pytest.skip(f"this torch has no fused convolutions in {dtype} on this CPU")
    torch.manual_seed(0)
    convolution = Convolution(9, 5).requires_grad_(False)
    parts = [torch.randn(2, channels, 7, 11).to(dtype).float() for channels in (2, 4, 3)]
    expected = functional.relu(convolution(tuple(parts)))
    torch.testing.assert_close(expected, functional.relu(convolution(torch.cat(parts, dim=1))))
    fused = FusedConvolution(convolution.to(dtype))
    result = fused(tuple(part.to(dtype).contiguous(memory_format=torch.channels_last) for part in parts))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (2, 2), (7, 12), (8, 11), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_coarse_map_equals_an_enlarged_one(height, width, dtype, bias):
    if not inference.fusing_works(dtype):
        pytest.skip(f"this torch has no fused convolutions in {dtype} on this CPU")
    torch.manual_seed(0)
    convolution = Convolution(9, 5, bias, coarse=6).requires_grad_(False)
    coarse = torch.randn(2, 6, -(-height // 2), -(-width // 2)).to(dtype).float()
    fine = torch.randn(2, 3, height, width).to(dtype).float()
    enlarged = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[..., :height, :width]
    joined = torch.cat((enlarged, fine), dim=1)
    expected = functional.conv2d(joined, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution((coarse, fine)), expected)
    fused: Any = FusedConvolution(convolution).to(dtype)
    fused = fused.to(memory_format=torch.channels_last)
    result = fused(
        tuple(part.to(dtype).contiguous(memory_format=torch.channels_last) for part in (coarse, fine))
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(result.float(), functional.relu(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4), (639, 959), (3, 20_001)])
def test_maps_are_enlarged_by_repeating_rows_and_columns(height, width):
    features = torch.randn(1, 2, -(-height // 2), -(-width // 2))
    expected = features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[..., :height, :width]
    assert torch.equal(enlarge_twice(features, height, width), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 3), (5, 4), (8, 6), (33, 47)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_pooling_and_spreading_give_what_torch_gives(height, width, layout):
    features = torch.randn(2, 4, height, width).contiguous(memory_format=layout)
    features[0, 0, 0, 0] = float("nan")
    pooled, spread = functional.max_pool2d(features, 2, ceil_mode=True), functional.pixel_shuffle(features, 2)
    with torch.inference_mode():
        torch.testing.assert_close(halve(features), pooled, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(spread_channels(features, 2), spread, rtol=0, atol=0, equal_nan=True)


def test_multiply_adds_by_hand():
    # Images of 8 x 8 = 64 pixels, below the pooling 16; a 3x3 convolution costs 9 x in x out a pixel.
    segunet = SegUNet((4,), center=8, decoder_convolutions=1)
    by_hand = 64 * 9 * (3 * 4 + 4 * 4) + 16 * 9 * (4 * 8 + 8 * 8) + 64 * 9 * (8 + 4) * 4 + 64 * 4
    assert count_multiply_adds(segunet, 8, 8) == by_hand
    # Behind the stem there are a quarter of the pixels, with twelve channels, and four logits for each.
    stem = SegUNet((4,), center=8, decoder_convolutions=1, unshuffle=2)
    by_hand = 16 * 9 * (12 * 4 + 4 * 4) + 4 * 9 * (4 * 8 + 8 * 8) + 16 * 9 * (8 + 4) * 4 + 16 * 4 * 4
    assert count_multiply_adds(stem, 8, 8) == by_hand
    # The transposed convolution gives each of 64 pixels 4 channels out of 8.
    unet = UNet((4,), bottleneck=8)
    by_hand = 64 * 9 * (12 + 16) + 16 * 9 * (32 + 64) + 64 * 8 * 4 + 64 * 9 * (32 + 16) + 64 * 4
    assert count_multiply_adds(unet, 8, 8) == by_hand


@pytest.mark.parametrize("width", [1920, 1918])
def test_segunet_s_takes_24_billion_multiply_adds(width):
    assert count_multiply_adds(build_without_weights("segunet-s"), 1280, width) == pytest.approx(
        24e9, rel=0.01
    )


class WithSkip(AnySizeNetwork):
    def __init__(self) -> None:
        super().__init__(stride=2)
        self.first = nn.Conv2d(3, 8, kernel_size=3, padding=1)
        self.last = nn.Conv2d(16, 1, kernel_size=1)

    def padded_logits(self, images: Tensor) -> Tensor:
        skip = functional.relu_(self.first(images))
        features = functional.max_pool2d(skip, kernel_size=2)
        features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
        joined = torch.cat((skip, features), dim=1)
        del skip, features
        return self.last(joined)


def test_activations_by_hand():
    # The peak is at the concatenation: the image (3 channels), both inputs (8 each) and the result (16).
    assert measure_activations(WithSkip(), 10, 12) == 10 * 12 * (3 + 8 + 8 + 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_grow_in_step_with_the_tile(name):
    network = NETWORKS[name]()
    larger = measure_activations(network, 256, 384) / (256 * 384)
    assert activations_per_pixel(network) == pytest.approx(larger, rel=0.02)


def test_measuring_leaves_the_network_as_it_was(small_network):
    before = {key: value.clone() for key, value in small_network.state_dict().items()}
    assert measure_activations(small_network, 64, 64) > 64 * 64 * 3
    assert count_multiply_adds(small_network, 64, 64) > 0
    for key, value in small_network.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])
