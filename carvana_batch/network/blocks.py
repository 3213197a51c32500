"""Building blocks of the networks: convolutions, resampling, and padding for any height and width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Conv2d):
    """A 3x3 convolution of one feature map, or of several that are concatenated along their channels.

    Height and width are kept.

    Args:
        channels_in: of all feature maps together.
        channels_out: of the result.
        bias: whether there is one.
        coarse: channels of the first map, if it has half the height and width of the others, rounded up, and
            is to be enlarged; else 0.
    """

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True, coarse: int = 0) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1, bias=bias)
        self.coarse = coarse

    def forward(self, features: Tensor | tuple[Tensor, ...]) -> Tensor:
        if isinstance(features, Tensor):
            return super().forward(features)
        if self.coarse:
            features = (enlarge_twice(features[0], *features[1].shape[-2:]), *features[1:])
        return super().forward(torch.cat(features, dim=1))


def convolution_block(
    channels_in: int, channels_out: int, bias: bool = False, coarse: int = 0
) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU; height and width are kept."""
    return nn.Sequential(
        Convolution(channels_in, channels_out, bias, coarse),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def convolution_stack(
    channels_in: int, channels_out: int, count: int, bias: bool = False, coarse: int = 0
) -> nn.Sequential:
    """``count`` convolution blocks, the first of which changes the number of channels; ``coarse`` as in
    :class:`Convolution`."""
    first = convolution_block(channels_in, channels_out, bias, coarse)
    rest = (convolution_block(channels_out, channels_out, bias) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def halve(features: Tensor) -> Tensor:
    """2x2 max pooling; an odd last row or column is pooled on its own."""
    if features.device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        # The same values in half the time, because max_pool2d also records their indexes.
        return _larger_of_pairs(_larger_of_pairs(features, dim=2), dim=3)
    return functional.max_pool2d(features, kernel_size=2, ceil_mode=True)


def _larger_of_pairs(features: Tensor, dim: int) -> Tensor:
    pairs, lonely = divmod(features.shape[dim], 2)
    first, second = (features[(slice(None),) * dim + (slice(start, 2 * pairs, 2),)] for start in (0, 1))
    larger = torch.maximum(first, second)
    return torch.cat((larger, features.narrow(dim, 2 * pairs, 1)), dim) if lonely else larger


def spread_channels(features: Tensor, factor: int) -> Tensor:
    """PixelShuffle: (N, factor ** 2, h, w) to (N, 1, h * factor, w * factor).

    If the memory format is channels_last, this is one fast copy.
    """
    count, _, height, width = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(count, height, width, factor, factor)
    return cells.permute(0, 1, 3, 2, 4).reshape(count, 1, height * factor, width * factor)


def enlarge_twice(features: Tensor, height: int, width: int) -> Tensor:
    """Enlarge (N, C, h, w) twice to (N, C, height, width) by nearest neighbours; an odd last row or column is
    cut off."""
    if features.device.type == "cpu" and not torch.compiler.is_compiling():
        # interpolate calls this, but does not accept both factor and size, which saves a copy.
        enlarged: Tensor = torch.ops.aten.upsample_nearest2d(features, [height, width], 2.0, 2.0)
        return enlarged
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")[..., :height, :width]


def pad_to(images: Tensor, height: int, width: int) -> Tensor:
    """Pad (N, C, h, w) to (N, C, height, width) by repeating the last row and column.

    Only the bottom and the right are padded, so that pixel (0, 0) stays on the stride grid.
    """
    missing_rows, missing_columns = height - images.shape[-2], width - images.shape[-1]
    if not torch.compiler.is_compiling() and missing_rows == 0 and missing_columns == 0:
        return images  # an exported network must not depend on that: it is for images of all sizes
    return functional.pad(images, (0, missing_columns, 0, missing_rows), mode="replicate")


class AnySizeNetwork(nn.Module):
    """A segmentation network that pads its input to a multiple of ``unit`` and crops its logits back.

    A subclass implements :meth:`padded_logits`, and :meth:`simplify` if possible.

    Args:
        stride: product of the down-sampling factors; windows that start on multiples of it see the same grid.
        unit: the stride, unless the network needs less padding.

    Attributes:
        context: how many pixels away the logit of a pixel depends on others; None if it is not known yet.
        fixed_size: (height, width) in pixels, if it takes images of this size only.
        values_per_pixel: float32 values per pixel of memory, if it was measured by a trial.
        only_float32: it runs in no other number format.
        is_foreign: its modules are not ours: nothing is fused or folded in them.
    """

    def __init__(self, stride: int, unit: int | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.unit = unit or stride
        self.context: float | None = None
        self.fixed_size: tuple[int, int] | None = None
        self.values_per_pixel: float | None = None
        self.only_float32 = False
        self.is_foreign = False

    def padded_logits(self, images: Tensor) -> Tensor:
        """Logits (N, 1, H, W) of images (N, 3, H, W) whose H and W are multiples of ``unit``."""
        raise NotImplementedError

    def simplify(self) -> None:
        """Replace modules by faster ones that give the same up to rounding, for inference on a CPU.

        It is called after batch norms were folded into the convolutions.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 1, H, W), in the dtype of the weights, of normalised images (N, 3, H, W) of any size."""
        height, width = images.shape[-2:]
        padded = pad_to(images, height + -height % self.unit, width + -width % self.unit)
        return self.padded_logits(padded)[..., :height, :width]
