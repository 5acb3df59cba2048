# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Deep feature embedding: where the two students meet."""

from collections.abc import Sequence

import torch
from torch import nn

from .residual import ResidualBlock, block_means, resize_to


class DeepFeatureEmbedding(nn.Module):
    """Fuse the maps of all scales into one compact map for the student decoder.

    The paper (arXiv 2402.00448) describes a bottleneck that fuses multi-scale semantic information and lets
    the students interact; its layers are not published. Reconstruction: every map is averaged over the locations of
    the coarsest grid, all are concatenated, mixed by a 1x1 convolution and compressed by a residual block to half the
    coarsest resolution. Stride-2 convolutions in place of averages are three times the work, and as good.

    Args:
        channels: Channels of the maps, finest first.
        strides: Strides of the maps in input pixels, finest first, each a power of two times the first.

    Attributes:
        out_channels: Channels of the embedding, those of the coarsest map.
        out_stride: Stride of the embedding in input pixels, twice that of the coarsest map.

    Shape:
        Maps ``(B, channels[i], H / strides[i], W / strides[i])`` to
        ``(B, out_channels, H / out_stride, W / out_stride)``.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = channels[-1]
        self.out_stride = 2 * strides[-1]
        self.windows = [strides[-1] // stride for stride in strides]
        self.fuse = nn.Sequential(
            nn.Conv2d(sum(channels), channels[-1], 1, bias=False),
            nn.BatchNorm2d(channels[-1]),
            nn.ReLU(inplace=True),
        )
        self.compress = ResidualBlock(channels[-1], channels[-1], down=2)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embed maps given finest first."""
        coarse = [resize_to(block_means(*each), maps[-1].shape[-2:]) for each in zip(maps, self.windows, strict=True)]
        return self.compress(self.fuse(torch.cat(coarse, dim=1)))
