# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What the border of an anomaly map has more than its inside."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .whitening import TINY, momentum_of

INSIDE_SHARE = 4


class BorderLevel(nn.Module):
    r"""Divide maps by what their border has more than their inside on normal images.

    Near the border of an image convolutions read zeros in place of a surface, and the mean of a region is one of fewer
    locations, so that students miss the teacher by more there on every image. Where an image is a crop of a surface,
    its border is then what stands out. With :math:`m_k` the mean over normal images of the map's ring of locations at
    distance :math:`k` from the border, and :math:`m` that of all further inside, a ring is divided by

    .. math:: \max(1, m_k / m)

    Where there is less at the border than inside, as with a part amid an empty background, nothing is changed: rings
    are not a map of what is usual where, which would take as much off a part as off its background. The means are
    moving averages over training.

    Args:
        maps: Number of maps, K.
        rings: Width of the border in locations; of small maps a quarter of the shorter side at most.
    """

    means: torch.Tensor
    updates: torch.Tensor

    def __init__(self, maps: int, rings: int) -> None:
        super().__init__()
        self.rings = rings
        self.register_buffer("means", torch.ones(maps, rings + 1))  # the last is the inside
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, maps: torch.Tensor) -> None:
        """Take maps of normal images, ``(B, K, h, w)`` with B at least 1, into the moving averages."""
        member = F.one_hot(self._ring(maps), self.rings + 1).flatten(0, 1).to(maps)
        rings = maps.mean(dim=0).flatten(1) @ member / member.sum(dim=0).clamp_min(1)
        inside = rings[:, -1:]
        rings = torch.where(member.any(dim=0), rings, inside)  # small maps do not have all rings
        self.means.lerp_(rings, momentum_of(self.updates))
        self.updates += 1

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Divide maps ``(B, K, h, w)``."""
        more = (self.means / self.means[:, -1:].clamp_min(TINY)).clamp_min(1)
        return maps / more[:, self._ring(maps)]

    def _ring(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the number of each location's ring, ``(h, w)``."""
        rows, columns = (_to_border(int(side), maps.device) for side in maps.shape[-2:])
        ring = torch.minimum(rows[:, None], columns)
        border = min(self.rings, min(int(side) for side in maps.shape[-2:]) // INSIDE_SHARE)
        return torch.where(ring < border, ring, self.rings)


def _to_border(side: int, device: torch.device) -> torch.Tensor:
    """Return how many locations there are between each of an axis and its nearer end."""
    location = torch.arange(side, device=device)
    return torch.minimum(location, side - 1 - location)
