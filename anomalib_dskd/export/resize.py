# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Antialiased resize in matrix products."""

import math

import torch
from torch import nn

LINES = 16
LARGEST = 1024
"""Length up to which the middles of output lines are exact in the 16 bits of a bundle in f16."""
HIGHEST_LEVEL = 255


class ResizeInBands(nn.Module):
    """Bilinear resize with antialiasing, as torchvision's of floats, of decoded images of any size.

    OpenVINO has it as one operation, which for an image of a megapixel takes as long as all networks in INT8, and on
    two threads as long as on one. Here a band of :data:`LINES` output lines at a time is a product of their weights
    with the lines that they are made of, first down the image and then across.

    Args:
        height: Height of the result.
        width: Width of the result.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Resize images.

        Args:
            images: Decoded images, ``(B, H, W, 3)`` in ``uint8``.

        Returns:
            Images from 0 to 1, ``(B, 3, height, width)`` in ``float32``.
        """
        batch, height, width, channels = images.shape
        lines, weights = _bands(height, self.height)
        read = images.flatten(2)[:, lines].float()
        low = (weights @ read).reshape(batch, self.height, width, channels)
        lines, weights = _bands(width, self.width)
        read = low.permute(0, 2, 3, 1).flatten(2)[:, lines]
        small = (weights @ read).reshape(batch, self.width, channels, self.height)
        return small.permute(0, 2, 3, 1) / HIGHEST_LEVEL


def _bands(length: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of ``length`` lines a band of output lines reads, ``(bands, L)``, and their weights for each line.

    Each line's weights, of shape ``(bands, lines, L)``, are those of a triangle around its place, which reaches as far
    as the next output line, or as the next line of the input where that is further.
    """
    step = torch.as_tensor(length).float() / size
    reach = step.clamp(min=1)
    lines = math.gcd(size, LINES)
    centres = (torch.arange(size).reshape(-1, lines) + 0.5) * step
    first = torch.floor(centres[:, :1] - reach - 0.5)
    reads = first + torch.arange(torch.ceil((lines - 1) * step + 2 * reach + 2).long())
    weights = torch.relu(1 - (reads[:, None] + 0.5 - centres[..., None]).abs() / reach)
    weights = weights * ((reads >= 0) & (reads < length))[:, None]
    return reads.clamp(min=0).minimum(torch.as_tensor(length - 1.0)).long(), weights / weights.sum(-1, keepdim=True)
