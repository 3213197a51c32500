"""A network made ready for inference: what follows a convolution is computed with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from carvana_batch.errors import ModelError
from carvana_batch.network.blocks import AnySizeNetwork, Convolution, enlarge_twice

MOST_ROUNDING = 0.05
"""How far fused convolutions may be off the usual ones, with values near 1 and eight bits of precision."""


def prepare_network(
    network: nn.Module, device: torch.device, dtype: torch.dtype, fused: bool = True
) -> nn.Module:
    """A copy for inference: channels_last, weights in ``dtype``, batch norm folded into the convolutions, and
    on a CPU, if ``fused``, ReLU and the enlarging and joining of feature maps as well, where its convolutions
    can do that.

    Not in float16: such a ReLU makes 0 of NaN, which would hide that numbers became too large for it. In
    bfloat16 and float32 they do not with finite weights of any sense.

    Raises:
        ModelError: folding a batch norm gives weights that are not finite.
    """
    copied = fold_batch_norm(network)
    for name, parameter in copied.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"{name}: its batch norm makes values of it that are not finite; use other weights"
            )
    if device.type == "cpu" and isinstance(copied, AnySizeNetwork):
        copied.simplify()
    if fused and device.type == "cpu" and dtype != torch.float16 and fusing_works(dtype):
        fuse_relu(copied)
    copied.to(device=device, dtype=dtype)
    return copied.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload,no-any-return]


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A float32 copy in evaluation mode in which no convolution is followed by a batch norm.

    Folds pairs that are neighbours in an ``nn.Sequential``; the result is the same up to rounding.
    """
    copied = copy.deepcopy(network).float().eval()
    for module, place, following in _neighbours(copied):
        convolution, norm = module[place], module[following]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module[place], module[following] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return copied


def _neighbours(network: nn.Module) -> Iterator[tuple[nn.Sequential, int, int]]:
    """Each ``nn.Sequential`` with the places of two parts that follow one another, identities aside."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            places = [place for place, part in enumerate(module) if not isinstance(part, nn.Identity)]
            for place, following in pairwise(places):
                yield module, place, following


class FusedConvolution(nn.Module):
    """A convolution of one feature map or of several that belong side by side, and a ReLU.

    The ReLU costs no pass over the memory of its own. Of several maps each is convolved with its part of the
    weights and the results are added, which spares a joined copy. A coarse map is not enlarged first either,
    unless to an odd height or width: where its values stand four times, a transposed convolution with sums of
    weights gives the same, in 16 instead of 36 multiplications for each value of it and each channel.

    torch has these operations for its compiler and promises nothing about them: see :func:`fusing_works`.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.coarse = convolution.coarse if isinstance(convolution, Convolution) else 0
        self.enlarging: nn.Parameter | None = None
        if self.coarse:
            self.enlarging = nn.Parameter(sum_for_enlarged(self.weight[:, : self.coarse]))
        self._how = (
            list(convolution.padding),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )

    def forward(self, features: Tensor | tuple[Tensor, ...]) -> Tensor:
        if isinstance(features, Tensor):
            return self._convolve(features, self.weight, "relu")
        weights = self.weight.split([part.shape[1] for part in features], dim=1)
        total = self._convolve_first(features[0], weights[0], *features[1].shape[-2:])
        for place in range(1, len(features)):
            activation = "relu" if place == len(features) - 1 else None
            torch.ops.mkldnn._convolution_pointwise_.binary(
                total, features[place], weights[place], None, *self._how, "add", 1.0, activation, [], ""
            )
        return total

    def _convolve_first(self, features: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
        """The result of this size for the first of several maps, which may be a coarse one."""
        if not self.coarse:
            return self._convolve(features, weight, "none")
        if self.enlarging is None or height % 2 or width % 2:  # what is cut off has no part in the result
            return self._convolve(enlarge_twice(features, height, width), weight, "none")
        return functional.conv_transpose2d(features, self.enlarging, self.bias, stride=2, padding=1)

    def _convolve(self, features: Tensor, weight: Tensor, activation: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            features, weight, self.bias, *self._how, activation, [], ""
        )
        return result


def sum_for_enlarged(weight: Tensor) -> Tensor:
    """Weights (channels in, channels out, 4, 4) with which a transposed convolution, stride 2 and padding 1,
    gives what ``weight`` (channels out, channels in, 3, 3) gives for a map of which each value stands four
    times, as neighbours: each value meets the sum of the weights that its four copies would meet."""
    sums = functional.avg_pool2d(weight.flip((2, 3)), 2, stride=1, padding=1, divisor_override=1)
    return sums.transpose(0, 1)


def fuse_relu(network: nn.Module) -> None:
    """Replace each convolution that a ReLU follows in an ``nn.Sequential``, identities between them aside."""
    for module, place, following in _neighbours(network):
        convolution = module[place]
        if not isinstance(convolution, nn.Conv2d) or not isinstance(module[following], nn.ReLU):
            continue
        padded_with_zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
        if convolution.groups == 1 and padded_with_zeros:
            module[place], module[following] = FusedConvolution(convolution), nn.Identity()


@cache
def fusing_works(dtype: torch.dtype) -> bool:
    """Whether torch has the operations, for this CPU and precision, and they compute what they should."""
    generator = torch.Generator().manual_seed(0)
    maps = {size: torch.randn((1, 2, *size), generator=generator) for size in ((6, 4), (3, 2))}
    fine, coarse = (one.to(dtype).contiguous(memory_format=torch.channels_last) for one in maps.values())
    for features, of_coarse in (
        (torch.cat((fine, fine), dim=1), 0),
        ((fine, fine), 0),
        ((coarse, fine), 2),
    ):
        convolution = Convolution(4, 3, coarse=of_coarse).requires_grad_(False)
        for parameter in convolution.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 6)
        exact = features.float() if isinstance(features, Tensor) else tuple(one.float() for one in features)
        expected = functional.relu(convolution(exact))
        fused = FusedConvolution(convolution).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            result = fused(features)
        except (AttributeError, RuntimeError):  # no such operation, or none for this precision
            return False
        if (result.float() - expected).abs().max() > MOST_ROUNDING:
            return False
    return True
