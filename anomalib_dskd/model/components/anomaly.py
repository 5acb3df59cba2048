# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What a student misses of the teacher at one scale, as the anomaly map shows it."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .distance import EPSILON
from .residual import resize_to
from .whitening import ResidualWhitening, half_squared_norm

REGION_PIXELS = 80
BLOCK_PIXELS = 16


class ScaleAnomaly(nn.Module):
    r"""Distances of one student to the teacher at one scale, at single locations and of regions.

    With :math:`r = \hat{t} - \hat{s}` the difference of features of length one, the distance at a location is
    :math:`\tfrac{1}{2} \lVert r \rVert^2 = 1 - \cos(t, s)`, and that of its region

    .. math:: \tfrac{1}{2} \lVert \operatorname{mean}_{k \times k} r \rVert^2

    On normal images a student misses the teacher by a little in directions that change from place to place, and their
    mean nearly vanishes; in the inner area of a large defect it misses it in the same direction everywhere, and the
    mean remains. The distance at each location alone cannot tell one from the other. A region is about 80 pixels wide
    at any scale. Finer maps are first averaged over blocks of 16 pixels, since the means of regions that far apart
    hardly differ, and their distances interpolated.

    Args:
        channels: Number of the teacher's channels.
        stride: Pixels of the image to one location.
        distance: ``"mahalanobis"``, where residuals, and likewise their means, are counted by what is usual on normal
            images, see :class:`ResidualWhitening`; or ``"cosine"``.
        regions: Whether the distances of regions are added.
    """

    def __init__(self, channels: int, stride: int, distance: str, regions: bool) -> None:
        super().__init__()
        self.block = max(1, BLOCK_PIXELS // stride)
        self.window = 2 * round(REGION_PIXELS / (self.block * stride) / 2) + 1
        whitened = distance == "mahalanobis"
        self.location = ResidualWhitening(channels) if whitened else nn.Identity()
        self.region = (ResidualWhitening(channels) if whitened else nn.Identity()) if regions else None

    def forward(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """Compute the distances.

        Args:
            teacher: Teacher's map of shape ``(B, C, h, w)``.
            student: The student's map of the same shape.

        Returns:
            Distances of shape ``(B, 1, h, w)``, float32 whatever the autocast.
        """
        with torch.autocast(teacher.device.type, enabled=False):
            residual = feature_residual(teacher, student)
            distance = half_squared_norm(self.location(residual))
            if self.region is None:
                return distance
            region = half_squared_norm(self.region(region_mean(residual, self.block, self.window)))
            return distance + resize_to(region, distance.shape[-2:])

    @torch.no_grad()
    def learn(self, teacher: torch.Tensor, student: torch.Tensor) -> None:
        """Take normal images into what is usual; arguments as in :meth:`forward`, B at least 1."""
        if not isinstance(self.location, ResidualWhitening):
            return
        with torch.autocast(teacher.device.type, enabled=False):
            residual = feature_residual(teacher, student)
            self.location.update(residual)
            if isinstance(self.region, ResidualWhitening):
                self.region.update(region_mean(residual, self.block, self.window))


def feature_residual(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Difference of features of length one, ``(B, C, h, w)`` in float32."""
    return F.normalize(teacher.float(), dim=1, eps=EPSILON) - F.normalize(student.float(), dim=1, eps=EPSILON)


def region_mean(residual: torch.Tensor, block: int, window: int) -> torch.Tensor:
    """Mean over regions of a map ``(B, C, h, w)``.

    Args:
        residual: The map.
        block: Locations to one side of a block; there is a region for each block.
        window: Blocks to one side of a region, odd; at the border only those inside count.

    Returns:
        Means of shape ``(B, C, ceil(h / block), ceil(w / block))``.
    """
    if block > 1:
        residual = F.avg_pool2d(residual, block, ceil_mode=True)
    half = window // 2
    rows = F.avg_pool2d(residual, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, half), count_include_pad=False)
