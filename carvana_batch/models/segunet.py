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
        unshuffle: factor of the PixelUnshuffle stem; 1 means none. The classification layer gives the
            channels that PixelShuffle spreads back over the pixels.
        detail: channels of a refinement at twice the resolution of the finest level, 0 for none. It sees the
            photo and the finest decoder features, and its logits are added to those of the rest, which
            have half the photo's resolution then and are enlarged. Needs an even ``unshuffle``.
    """

    def __init__(
        self,
        widths: Sequence[int],
        center: int,
        decoder_convolutions: int,
        unshuffle: int = 1,
        detail: int = 0,
    ) -> None:
        super().__init__(stride=unshuffle * 2 ** len(widths), unit=unshuffle)
        self.unshuffle = unshuffle
        self.shuffle = unshuffle // 2 if detail else unshuffle
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
        self.classifier = nn.Conv2d(channels, self.shuffle**2, kernel_size=1)
        self.detail: nn.Module | None = None
        if detail:
            self.detail = convolution_stack(3 * self.shuffle**2, detail, 2)
            self.refinement = nn.Sequential(
                convolution_stack(channels + detail, detail, 2),
                nn.Conv2d(detail, self.shuffle**2, kernel_size=1),
            )

    def padded_logits(self, images: Tensor) -> Tensor:
        features = _unshuffled(images, self.unshuffle)
        skips = []
        for level in self.encoder:
            features = level(features)
            skips.append(features)
            # An odd row or column at the end keeps a cell of its own, so that no level needs more padding.
            features = functional.max_pool2d(features, kernel_size=2, ceil_mode=True)
        features = self.center(features)
        for level in self.decoder:
            features = level(_joined(features, skips.pop()))
        logits = functional.pixel_shuffle(self.classifier(features), self.shuffle)
        if self.detail is None:
            return logits
        refined = self.refinement(_joined(features, self.detail(_unshuffled(images, self.shuffle))))
        coarse = functional.interpolate(logits, scale_factor=2.0, mode="bilinear")
        return coarse + functional.pixel_shuffle(refined, self.shuffle)


def _unshuffled(images: Tensor, factor: int) -> Tensor:
    features = functional.pixel_unshuffle(images, factor)
    if images.is_contiguous(memory_format=torch.channels_last):
        features = features.contiguous(memory_format=torch.channels_last)
    return features


def _joined(features: Tensor, skip: Tensor) -> Tensor:
    """Coarser features, enlarged to the size of the skip and beside its channels."""
    height, width = skip.shape[-2:]
    enlarged = functional.interpolate(features, scale_factor=2.0, mode="nearest")
    return torch.cat((enlarged[..., :height, :width], skip), dim=1)
