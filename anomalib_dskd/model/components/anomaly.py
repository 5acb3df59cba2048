# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What a student misses of the teacher at one scale, as the anomaly map shows it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .distance import EPSILON
from .residual import block_means
from .whitening import TINY, ResidualWhitening, half_squared_norm

REGION_PIXELS = 80
BLOCK_PIXELS = 16
CLEAR = 2.0


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

    What a location shows by itself its region need not tell again: a small clear defect would raise the map of all that
    is within 40 pixels of it, and drown a faint large one beside. So a block whose distance :math:`d` is more than
    twice the usual :math:`\bar d` counts the less the further it is,

    .. math:: r' = r \, \min(1, 2 \bar d / d)

    as robust means do, with what they call a redescending influence; where only cosines are known, all count alike.

    How large a part is in its image is not known. Regions half as wide as the image show more of a large defect than
    those of 80 pixels, and blur a small one; so there are both. The wide ones are taken every other block, where four
    times as many tell no more.

    Args:
        channels: Number of the teacher's channels.
        stride: Pixels of the image to one location.
        distance: ``"mahalanobis"``, where residuals, and likewise their means, are counted by what is usual on normal
            images, see :class:`ResidualWhitening`; or ``"cosine"``.
        regions: Whether there are distances of regions, of both widths.
    """

    def __init__(self, channels: int, stride: int, distance: str, regions: bool) -> None:
        super().__init__()
        self.block = max(1, BLOCK_PIXELS // stride)
        self.window = 2 * round(REGION_PIXELS / (self.block * stride) / 2) + 1
        scaling = partial(ResidualWhitening, channels) if distance == "mahalanobis" else nn.Identity
        self.location = scaling()
        self.regions = nn.ModuleList(scaling() for _ in range(2 * regions))

    def forward(self, teacher: torch.Tensor, student: torch.Tensor) -> list[torch.Tensor]:
        """Compute the distances.

        Args:
            teacher: Teacher's map of shape ``(B, C, h, w)``.
            student: The student's map of the same shape.

        Returns:
            Distances of single locations, ``(B, 1, h, w)``, and of regions of each width, ``(B, 1, h', w')``, with h'
            and w' as in :meth:`region_means`; float32 whatever the autocast.
        """
        return self._distances(teacher, student, distance_by)

    @torch.no_grad()
    def learn(self, teacher: torch.Tensor, student: torch.Tensor) -> list[torch.Tensor]:
        """Take normal images into what is usual; arguments, B at least 1, and result as in :meth:`forward`."""
        return self._distances(teacher, student, learned_distance_by)

    def _distances(
        self,
        teacher: torch.Tensor,
        student: torch.Tensor,
        distance_by: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    ) -> list[torch.Tensor]:
        with torch.autocast(teacher.device.type, enabled=False):
            residual = feature_residual(teacher, student)
            distance = distance_by(self.location, residual)
            means = self.region_means(residual, distance)
            return [distance, *(distance_by(region, mean) for region, mean in zip(self.regions, means, strict=True))]

    def level(self, distance: torch.Tensor) -> torch.Tensor:
        """How much the student misses of an image all over, in shares of what is usual.

        A location that is far off counts no more than twice the usual, so that a clear defect hardly raises the level
        of its image. Where only cosines are known, locations count as they are.

        Args:
            distance: Distances of single locations, ``(B, 1, h, w)``, as :meth:`forward` returns them.

        Returns:
            Levels of shape ``(B,)``, between 0 and 2; of cosines the mean distance.
        """
        if isinstance(self.location, ResidualWhitening):
            usual = self.location.usual().clamp_min(TINY)
            distance = torch.minimum(distance, CLEAR * usual) / usual
        return distance.mean(dim=(-3, -2, -1))

    def region_means(self, residual: torch.Tensor, distance: torch.Tensor) -> list[torch.Tensor]:
        """Means of residuals over regions of each width, the wide ones for every other block each way.

        Args:
            residual: Residuals, ``(B, C, h, w)``.
            distance: Their distances, ``(B, 1, h, w)``.

        Returns:
            Means, ``(B, C, h', w')`` with h' = ceil(h / block), and half of that for the wide ones.
        """
        if not self.regions:
            return []
        blocks = block_means(residual, self.block)
        if isinstance(self.location, ResidualWhitening):
            usual_share = CLEAR * self.location.usual() / block_means(distance, self.block).clamp_min(TINY)
            blocks = blocks * usual_share.clamp_max(1)
        side = min(int(length) for length in blocks.shape[-2:])  # an export wants the window as a constant
        widths = (self.window, 1), (2 * max(1, side // 4), 2)
        return [region_mean(blocks, *width) for width in widths]


def distance_by(scaling: nn.Module, residual: torch.Tensor) -> torch.Tensor:
    """Distance of residuals ``(B, C, h, w)``, ``(B, 1, h, w)``, as a scaling counts them."""
    return half_squared_norm(scaling(residual))


def learned_distance_by(scaling: nn.Module, residual: torch.Tensor) -> torch.Tensor:
    """As :func:`distance_by`, once a scaling that learns has learned from the residuals."""
    return scaling.update(residual) if isinstance(scaling, ResidualWhitening) else distance_by(scaling, residual)


def feature_residual(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Difference of features of length one, ``(B, C, h, w)`` in float32."""
    return F.normalize(teacher.float(), dim=1, eps=EPSILON) - F.normalize(student.float(), dim=1, eps=EPSILON)


def region_mean(blocks: torch.Tensor, window: int, stride: int) -> torch.Tensor:
    """Mean over the region around each location of a map, or around the middle of each two by two.

    Args:
        blocks: The map, ``(B, C, h, w)``.
        window: Locations to one side of a region, odd as ``stride`` is or even; at the border only those inside count.
        stride: ``1`` or ``2``.

    Returns:
        Means, ``(B, C, ceil(h / stride), ceil(w / stride))``.
    """
    beside = (window - stride) // 2
    return F.avg_pool2d(blocks, window, stride=stride, padding=beside, ceil_mode=True, count_include_pad=False)
