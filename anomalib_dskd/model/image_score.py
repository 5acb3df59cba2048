# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Image score: what stands out in the anomaly map, and how unusual the image is as a whole."""

from collections.abc import Sequence

import torch
from torch import nn

from .components import WholeImage
from .components.whitening import follow, momentum_of, spread_of


class ImageScore(nn.Module):
    r"""Score of an image from its map and the teacher's features.

    Some normal images are further from what was trained on than others, all over: another exposure, a rougher surface.
    Their map is high everywhere, and its maximum alone calls them defective. A defect stands out from its own image,
    :math:`c = \max m - \operatorname{mean} m`; an image that is unusual as a whole is left to
    :class:`~anomalib_dskd.model.components.WholeImage`, which knows how usual that is. Both are counted in standard
    deviations from their means over normal images, :math:`z_c` and :math:`z_w`, and the score

    .. math:: \log (1 + e^{z_c} + e^{z_w})

    is a soft maximum of the two: whichever is far out decides, and where one says nothing its noise hardly adds.

    Args:
        channels: Channels of the teacher's maps, finest first.
        strides: Their strides in input pixels.
    """

    contrast: torch.Tensor
    contrast_variance: torch.Tensor
    updates: torch.Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.whole_image = WholeImage(channels, strides)
        self.register_buffer("contrast", torch.zeros(()))
        self.register_buffer("contrast_variance", torch.ones(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, maps: torch.Tensor) -> None:
        """Take the maps of normal images, ``(B, 1, H, W)`` with B at least 1, into moving averages of the contrast."""
        follow(self.contrast, self.contrast_variance, map_contrast(maps), momentum_of(self.updates))
        self.updates += 1

    def forward(self, maps: torch.Tensor, teacher: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the score.

        Args:
            maps: Anomaly maps, ``(B, 1, H, W)``.
            teacher: The teacher's maps, ``(B, C, h, w)`` each, finest first.

        Returns:
            Scores of shape ``(B,)``, greater than 0; about 1 for a normal image.
        """
        stands_out = (map_contrast(maps) - self.contrast) / spread_of(self.contrast, self.contrast_variance)
        unusual = self.whole_image(teacher)
        return torch.stack([torch.zeros_like(unusual), stands_out, unusual]).logsumexp(dim=0)


def map_contrast(maps: torch.Tensor) -> torch.Tensor:
    """Maximum minus mean of each map ``(B, 1, H, W)``, of shape ``(B,)``."""
    return maps.amax(dim=(-3, -2, -1)) - maps.mean(dim=(-3, -2, -1))
