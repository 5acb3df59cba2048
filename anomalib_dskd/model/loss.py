# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Pyramid-matching loss."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class PyramidMatchingLoss(nn.Module):
    """Mean distance to the teacher, summed over scales and students.

    The paper distils on the multi-scale maps of the intermediate layers for both students; equal weights are
    reconstruction. The mean over batch and grid makes the loss independent of batch size and resolution
    (anomalib's STFPM sums over the batch).
    """

    def forward(self, distances: Mapping[str, Sequence[torch.Tensor]]) -> torch.Tensor:
        """Compute the loss.

        Args:
            distances: For each student, its distances to the teacher at each scale, ``(B, 1, h, w)``.

        Returns:
            Scalar loss.
        """
        return torch.stack([scale.mean() for scales in distances.values() for scale in scales]).sum()
