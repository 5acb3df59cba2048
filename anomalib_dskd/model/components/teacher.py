# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen teacher."""

from collections.abc import Sequence

import torch
from torch import nn

from .backbone import build_backbone


class Teacher(nn.Module):
    """Pre-trained network, frozen beyond doubt.

    No parameter takes a gradient, and ``train()`` leaves batch norm in evaluation mode, so that no tensor of it
    changes in training.

    Args:
        backbone: Name of a timm CNN.
        layers: Layers whose maps are returned. Defaults to those at strides 4, 8 and 16.
    """

    def __init__(self, backbone: str, layers: Sequence[str] | None = None) -> None:
        super().__init__()
        self.network = build_backbone(backbone, layers)
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def channels(self) -> list[int]:
        """Channels of the maps, finest first."""
        return self.network.feature_info.channels()

    @property
    def strides(self) -> list[int]:
        """Strides of the maps in input pixels, finest first."""
        return self.network.feature_info.reduction()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever the mode asked for."""
        del mode
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of images ``(B, 3, H, W)``, finest first."""
        return self.network(images)
