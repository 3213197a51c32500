"""The SegNet/U-Net hybrid: max-pooled encoder, two center convolutions, decoder with skips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from carvana_batch.models.blocks import AnySizeNetwork, convolution_stack


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
        super().__init__(stride=unshuffle * 2 ** len(widths), unit=unshuffle)
        self.unshuffle = unshuffle
        channels = 3 * unshuffle**2
        self.encoder = nn.ModuleList()
        for width in widths:
            self.encoder.append(convolution_stack(channels, width, 2))
            channels = width
        self.center = convolution_stack(channels, center, 2)
        channels = center
        self.decoder = nn.ModuleList()
        for width in reversed(widths):
            self.decoder.append(convolution_stack(channels + width, width, decoder_convolutions))
            channels = width
        self.classifier = nn.Conv2d(channels, unshuffle**2, kernel_size=1)

    def padded_logits(self, images: Tensor) -> Tensor:
        features = functional.pixel_unshuffle(images, self.unshuffle)
        if images.is_contiguous(memory_format=torch.channels_last):
            features = features.contiguous(memory_format=torch.channels_last)
        skips = []
        for level in self.encoder:
            features = level(features)
            skips.append(features)
            # An odd row or column at the end keeps a cell of its own, so that no level needs more padding.
            features = functional.max_pool2d(features, kernel_size=2, ceil_mode=True)
        features = self.center(features)
        for level in self.decoder:
            skip = skips.pop()
            enlarged = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            enlarged = enlarged[..., : skip.shape[-2], : skip.shape[-1]]
            features = level(torch.cat((enlarged, skip), dim=1))
        return functional.pixel_shuffle(self.classifier(features), self.unshuffle)
