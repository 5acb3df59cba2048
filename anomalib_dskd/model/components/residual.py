# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Residual block that keeps, reduces or raises the resolution."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

MAX_WIDTH = 256
"""Inner channels of a block; wider maps (wide_resnet50_2 has 1024) pass through a waist, as in a bottleneck."""


class ResidualBlock(nn.Module):
    """ResNet's basic block, usable in both directions of a pyramid.

    ``out = relu(shortcut(x) + second(relu(first(x))))`` with batch norm after each convolution. Downwards the
    first changes the resolution, upwards, in inverted order, the second: 3x3 convolutions stay on the coarser grid,
    where at factor 2 they cost a quarter.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        down: Factor by which height and width shrink, by a strided 3x3 convolution. Defaults to ``1``.
        up: Factor by which height and width grow, by a transposed convolution whose kernel is as large as its
            stride, so that no two of its outputs overlap: overlaps would leave a checkerboard. Defaults to ``1``.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H * up, W * up)`` or
        ``(B, out_channels, ceil(H / down), ceil(W / down))``.
    """

    def __init__(self, in_channels: int, out_channels: int, down: int = 1, up: int = 1) -> None:
        super().__init__()
        width = min(out_channels, MAX_WIDTH)
        second = (
            nn.ConvTranspose2d(width, out_channels, up, stride=up, bias=False)
            if up > 1
            else nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
        )
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=down, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            second,
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Sequential()
        if in_channels != out_channels or down > 1 or up > 1:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=down, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))
        if up > 1:
            self.shortcut.append(nn.Upsample(scale_factor=up, mode="nearest"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to a map of shape ``(B, in_channels, H, W)``."""
        return torch.relu(self.shortcut(x) + self.branch(x))


def block_means(features: torch.Tensor, block: int) -> torch.Tensor:
    """Average a map of shape ``(B, C, H, W)`` over blocks of so many locations each way; at the border over fewer."""
    return F.avg_pool2d(features, block, ceil_mode=True) if block > 1 else features


def resize_to(features: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Bring a map of shape ``(B, C, H, W)`` to another grid, bilinearly, unless it is on it."""
    if features.shape[-2:] == grid:
        return features
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
