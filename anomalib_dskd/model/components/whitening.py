# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Whitening of what a student misses of the teacher's features."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

MOMENTUM = 0.02
TINY = 1e-12


class ResidualWhitening(nn.Module):
    r"""Scale residuals by what is usual on normal images.

    In some directions of the feature space a student misses the teacher on every normal image, in others hardly ever;
    a defect that shows in the latter is lost among the former when all count alike. With :math:`S` the second moment
    of normal residuals and :math:`\bar{s}` the mean of its diagonal, half the squared norm of the result is a
    Mahalanobis distance

    .. math:: d = \tfrac{1}{2 u} \; r^\top (S + \bar{s} I)^{-1} r, \qquad u = \operatorname{tr} (S + \bar{s} I)^{-1} S

    which is one half on average on normal images, so that scales and students can be added. The shrinkage
    :math:`\bar{s} I` keeps directions in which normal images hardly differ from ruling the map.

    :math:`S` is a moving average over training, as batch normalisation keeps its own; it becomes the weight when the
    module is put into evaluation mode.

    Args:
        channels: Number of channels, C.
    """

    second_moment: torch.Tensor
    weight: torch.Tensor
    updates: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("second_moment", torch.eye(channels) / channels)
        self.register_buffer("weight", torch.eye(channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._weigh()

    @torch.no_grad()
    def update(self, residual: torch.Tensor) -> None:
        """Take residuals of normal images, ``(B, C, h, w)`` with B at least 1, into the moving average."""
        locations = residual.transpose(0, 1).flatten(1)
        self.updates += 1
        momentum = (1 / self.updates).clamp_min(MOMENTUM)  # at first a plain mean
        self.second_moment.lerp_(locations @ locations.T / locations.shape[1], momentum)

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        """Whiten residuals ``(B, C, h, w)``."""
        return F.conv2d(residual, self.weight[..., None, None])

    def train(self, mode: bool = True) -> "ResidualWhitening":
        """Set the mode; the weight follows what was learned in training."""
        if not mode and self.training:
            self._weigh()
        return super().train(mode)

    @torch.no_grad()
    def _weigh(self) -> None:
        moment = self.second_moment.cpu().double()  # on the CPU, since Apple's GPUs have no float64
        shrinkage = moment.diagonal().mean().clamp_min(TINY)
        inverse, _ = torch.linalg.inv_ex(moment + shrinkage * torch.eye(len(moment), dtype=moment.dtype))
        usual = (inverse @ moment).trace().clamp_min(TINY)
        # without checks: of a training that has gone to NaN the loss tells
        self.weight.copy_(torch.linalg.cholesky_ex(inverse / usual)[0].T)
