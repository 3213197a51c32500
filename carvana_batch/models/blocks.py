"""What the networks are built of: convolution blocks, and padding to any height and width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.tiles import round_up


def convolution_block(channels_in: int, channels_out: int, bias: bool = False) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU; height and width stay."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=bias),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def convolution_stack(channels_in: int, channels_out: int, count: int, bias: bool = False) -> nn.Sequential:
    """``count`` convolution blocks, the first of which changes the number of channels."""
    first = convolution_block(channels_in, channels_out, bias)
    rest = (convolution_block(channels_out, channels_out, bias) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def pad_to(images: Tensor, height: int, width: int) -> Tensor:
    """(N, C, h, w) to (N, C, height, width) by repeating the last row and column.

    Padding is at the bottom and on the right only, so that pixel (0, 0) stays on the stride grid.
    """
    missing_rows, missing_columns = height - images.shape[-2], width - images.shape[-1]
    if missing_rows == 0 and missing_columns == 0:
        return images
    return functional.pad(images, (0, missing_columns, 0, missing_rows), mode="replicate")


class AnySizeNetwork(nn.Module):
    """A segmentation network that pads its input to a multiple of ``unit`` and crops its logits back.

    A subclass implements :meth:`padded_logits`. ``stride`` is the product of its down-samplings: windows
    that start on multiples of it see the same grid. ``unit`` is the stride unless a subclass needs less.
    """

    def __init__(self, stride: int, unit: int | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.unit = unit or stride

    def padded_logits(self, images: Tensor) -> Tensor:
        """Logits (N, 1, H, W) of images (N, 3, H, W) whose H and W are multiples of ``unit``."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 1, H, W), in the dtype of the weights, of normalised images (N, 3, H, W) of any size."""
        height, width = images.shape[-2:]
        padded = pad_to(images, round_up(height, self.unit), round_up(width, self.unit))
        return self.padded_logits(padded)[..., :height, :width]
