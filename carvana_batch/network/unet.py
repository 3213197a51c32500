"""The plain U-Net: two convolutions a level, transposed convolutions on the way up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from carvana_batch.network.blocks import AnySizeNetwork, convolution_stack, halve


class UNet(AnySizeNetwork):
    """Ronneberger et al. 2015 (arXiv:1505.04597) with padded convolutions and batch norm.

    Args:
        widths: channels of the levels, finest first.
        bottleneck: channels of the two convolutions below the last pooling.
    """

    def __init__(self, widths: Sequence[int], bottleneck: int) -> None:
        super().__init__(stride=2 ** len(widths))
        channels = 3
        self.down = nn.ModuleList()
        for width in widths:
            self.down.append(convolution_stack(channels, width, 2, bias=True))
            channels = width
        self.bottleneck = convolution_stack(channels, bottleneck, 2, bias=True)
        channels = bottleneck
        self.enlarge = nn.ModuleList()
        self.up = nn.ModuleList()
        for width in reversed(widths):
            self.enlarge.append(nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2))
            self.up.append(convolution_stack(2 * width, width, 2, bias=True))
            channels = width
        self.classifier = nn.Conv2d(channels, 1, kernel_size=1)

    def padded_logits(self, images: Tensor) -> Tensor:
        features = images
        skips = []
        for level in self.down:
            features = level(features)
            skips.append(features)
            features = halve(features)
        features = self.bottleneck(features)
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            features = level((skips.pop(), enlarge(features)))
        logits: Tensor = self.classifier(features)
        return logits
