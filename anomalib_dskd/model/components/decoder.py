# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Student decoder: the student of inverted structure."""

from collections.abc import Sequence

import torch
from torch import nn

from .residual import ResidualBlock, resize_to


class StudentDecoder(nn.Module):
    """Rebuild the teacher's maps from the embedding, coarsest first.

    The paper calls it a student "of the same scale but inverted structure". Reconstruction: one stage for each
    of the teacher's, in reverse order, each an upsampling residual block and ``blocks - 1`` plain ones (ResNet-18
    has two blocks a stage); a 1x1 convolution reads the map off each stage, since many teachers' maps
    (EfficientNet, ConvNeXt) take negative values and a residual block's output does not.

    Args:
        in_channels: Channels of the embedding.
        in_stride: Stride of the embedding in input pixels.
        channels: Channels of the teacher's maps, finest first.
        strides: Strides of the teacher's maps in input pixels, finest first.
        blocks: Residual blocks to a stage, at least 1.
    """

    def __init__(
        self, in_channels: int, in_stride: int, channels: Sequence[int], strides: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.heads = nn.ModuleList()
        for channel, stride in zip(reversed(channels), reversed(strides), strict=True):
            self.stages.append(
                nn.Sequential(
                    ResidualBlock(in_channels, channel, up=in_stride // stride),
                    *(ResidualBlock(channel, channel) for _ in range(blocks - 1)),
                ),
            )
            self.heads.append(nn.Conv2d(channel, channel, 1))
            in_channels, in_stride = channel, stride

    def forward(self, embedding: torch.Tensor, grids: Sequence[torch.Size]) -> list[torch.Tensor]:
        """Decode the embedding.

        Args:
            embedding: Map of shape ``(B, in_channels, H / in_stride, W / in_stride)``.
            grids: Height and width of each of the teacher's maps, finest first: at odd input sizes they are
                not exact multiples of each other.

        Returns:
            Maps with the teacher's channels and grids, finest first.
        """
        maps = []
        x = embedding
        for stage, head, grid in zip(self.stages, self.heads, reversed(grids), strict=True):
            x = resize_to(stage(x), grid)
            maps.append(head(x))
        return maps[::-1]
