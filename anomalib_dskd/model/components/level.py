# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""How much is missed of an image all over."""

from collections.abc import Sequence

import torch
from torch import nn

from .whitening import TINY


class ImageLevel(nn.Module):
    """Geometric mean of the levels that each student and scale gives an image.

    A module, though it learns nothing, so that an export names its operations, and INT8 can correct their logarithm.
    """

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the level.

        Args:
            levels: Levels of shape ``(B,)``, see :meth:`~anomalib_dskd.model.components.ScaleAnomaly.level`.

        Returns:
            Their geometric mean, ``(B,)``.
        """
        return torch.stack(list(levels)).clamp_min(TINY).log().mean(dim=0).exp()
