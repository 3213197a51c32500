"""The SegNet/U-Net hybrid: max-pooled encoder, two center convolutions, decoder with skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from carvana_batch.network.blocks import AnySizeNetwork, convolution_stack, halve, spread_channels


class SegUNet(AnySizeNetwork):
    """Encoder levels of two convolutions, two center convolutions, one decoder level per encoder level.

    Args:
        widths: channels of the encoder levels, finest first; one decoder level mirrors each.
        center: channels of the two center convolutions.
        decoder_convolutions: 3x3 convolutions of each decoder level.
        unshuffle: factor of the PixelUnshuffle stem; 1 means none. The classification layer then
            gives ``unshuffle ** 2`` channels that PixelShuffle spreads back to full resolution.
    """

    def __init__(
        self,
        widths: Sequence[int],
        center: int,
        decoder_convolutions: int,
        unshuffle: int = 1,
    ) -> None:
        # Twice what the stem needs, because enlarging to an even size is faster on a CPU at the finest level.
        super().__init__(stride=unshuffle * 2 ** len(widths), unit=2 * unshuffle)
        self.unshuffle = unshuffle
        self.stem: nn.Module = nn.PixelUnshuffle(unshuffle)
        channels = 3 * unshuffle**2
        self.encoder = nn.ModuleList()
        for width in widths:
            self.encoder.append(convolution_stack(channels, width, 2))
            channels = width
        self.center = convolution_stack(channels, center, 2)
        channels = center
        self.decoder = nn.ModuleList()
        for width in reversed(widths):
            stack = convolution_stack(channels + width, width, decoder_convolutions, coarse=channels)
            self.decoder.append(stack)
            channels = width
        self.classifier = nn.Conv2d(channels, unshuffle**2, kernel_size=1)

    def padded_logits(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        if images.is_contiguous(memory_format=torch.channels_last):
            features = features.contiguous(memory_format=torch.channels_last)
        skips = []
        for level in self.encoder:
            features = level(features)
            skips.append(features)
            features = halve(features)  # an odd last row stays, so that no level needs more padding
        features = self.center(features)
        for level in self.decoder:
            features = level((features, skips.pop()))
        return spread_channels(self.classifier(features), self.unshuffle)

    def simplify(self) -> None:
        """Merge the stem and the first convolution into one strided convolution of the image."""
        level: Any = self.encoder[0]
        block, factor = level[0], self.unshuffle
        size = block[0].kernel_size[0]
        whole = nn.Conv2d(3, block[0].out_channels, factor * size, factor, factor * (size // 2))
        # (out, 3, rows in a cell, columns in a cell, rows of cells, columns of cells)
        weight = block[0].weight.unflatten(1, (3, factor, factor)).permute(0, 1, 4, 2, 5, 3)
        whole.weight = nn.Parameter(weight.flatten(4, 5).flatten(2, 3))
        whole.bias = block[0].bias
        self.stem, block[0] = nn.Identity(), whole
