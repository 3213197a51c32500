"""Prepares a network for inference: operations after a convolution are fused into it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from carvana_batch.errors import ModelError
from carvana_batch.network.blocks import AnySizeNetwork, Convolution, enlarge_twice

MOST_ROUNDING = 0.05
"""Largest accepted difference between fused and usual convolutions, for values near 1 in bfloat16."""


def prepare_network(
    network: nn.Module, device: torch.device, dtype: torch.dtype, fused: bool = True
) -> nn.Module:
    """A copy for inference: channels_last, weights in ``dtype``, batch norms folded into the convolutions.

    On a CPU whose convolutions support it, ReLU and the enlarging and concatenating of feature maps are fused
    into the convolutions as well. Not in float16, where a fused ReLU maps NaN to 0, which would hide
    overflow; bfloat16 and float32 do not overflow with reasonable weights. Modules that are not ours are only
    copied and converted, because what their code does with its parts is not known.

    Args:
        network: the network to copy.
        device: where it is to run.
        dtype: number format of the weights.
        fused: whether to fuse ReLU and feature maps.

    Raises:
        ModelError: folding a batch norm gives weights that are not finite.
    """
    if isinstance(network, AnySizeNetwork) and network.is_foreign:
        return copy.deepcopy(network).to(device=device, dtype=dtype).requires_grad_(False)
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
    """A float32 copy in evaluation mode, with batch norms folded into the convolutions before them.

    Only neighbours in an ``nn.Sequential`` are folded. The result is the same up to rounding.
    """
    copied = copy.deepcopy(network).float().eval()
    for module, index, following in _neighbours(copied):
        convolution, norm = module[index], module[following]
        if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if norm.running_mean is not None and norm.running_var is not None:
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            module[following] = nn.Identity()
    return copied


def _neighbours(network: nn.Module) -> Iterator[tuple[nn.Sequential, int, int]]:
    """Each ``nn.Sequential`` with the indexes of two consecutive modules, identities skipped."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            indexes = [index for index, part in enumerate(module) if not isinstance(part, nn.Identity)]
            for index, following in pairwise(indexes):
                yield module, index, following


class FusedConvolution(nn.Module):
    """A convolution of one feature map, or of several concatenated ones, followed by ReLU.

    The ReLU needs no pass over memory of its own. Several maps are each convolved with their part of the
    weights, and the results are added, which saves a concatenated copy. A coarse map is not enlarged first,
    unless to an odd height or width: a transposed convolution with sums of the weights gives the same, with
    16 instead of 36 multiplications for each of its values and each channel.

    torch has these operations for its compiler and gives no guarantees for them; see :func:`fusing_works`.
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
            return self.convolve(features, self.weight, "relu")
        weights = self.weight.split([part.shape[1] for part in features], dim=1)
        total = self._convolve_first(features[0], weights[0], *features[1].shape[-2:])
        for index in range(1, len(features)):
            activation = "relu" if index == len(features) - 1 else None
            torch.ops.mkldnn._convolution_pointwise_.binary(
                total, features[index], weights[index], None, *self._how, "add", 1.0, activation, [], ""
            )
        return total

    def _convolve_first(self, features: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
        """The result of this height and width for the first of several maps, which may be coarse."""
        if not self.coarse:
            return self.convolve(features, weight, "none")
        if self.enlarging is None or height % 2 or width % 2:  # the part that is cut off must not contribute
            return self.convolve(enlarge_twice(features, height, width), weight, "none")
        return functional.conv_transpose2d(features, self.enlarging, self.bias, stride=2, padding=1)

    def convolve(self, features: Tensor, weight: Tensor, activation: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            features, weight, self.bias, *self._how, activation, [], ""
        )
        return result


def sum_for_enlarged(weight: Tensor) -> Tensor:
    """Weights of a transposed convolution that equals enlarging a map twice and convolving it.

    Each value of the map is multiplied by the sum of the weights that its four copies would be multiplied by.

    Args:
        weight: of the convolution of the enlarged map, (channels out, channels in, 3, 3).

    Returns:
        (channels in, channels out, 4, 4), for stride 2 and padding 1.
    """
    sums = functional.avg_pool2d(weight.flip((2, 3)), 2, stride=1, padding=1, divisor_override=1)
    return sums.transpose(0, 1)


def fuse_relu(network: nn.Module) -> None:
    """Replace each convolution that is followed by ReLU in an ``nn.Sequential``, identities skipped."""
    for module, index, following in _neighbours(network):
        convolution = module[index]
        if not isinstance(convolution, nn.Conv2d) or not isinstance(module[following], nn.ReLU):
            continue
        padded_with_zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
        if convolution.groups == 1 and padded_with_zeros:
            module[index], module[following] = FusedConvolution(convolution), nn.Identity()


@cache
def fusing_works(dtype: torch.dtype) -> bool:
    """Whether torch has these operations for this CPU and precision, and their results are right."""
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
        except (AttributeError, RuntimeError):  # the operation does not exist, or not in this precision
            return False
        if (result.float() - expected).abs().max() > MOST_ROUNDING:
            return False
    return True
