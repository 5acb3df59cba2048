# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Whitening of what a student misses of the teacher's features."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

MOMENTUM = 0.02
UPDATES_A_WEIGHT = 10
LEAST_SPREAD = 0.05
TINY = 1e-12


class ResidualWhitening(nn.Module):
    r"""Scale residuals by what is usual on normal images.

    In some directions of the feature space a student misses the teacher on every normal image, in others hardly ever;
    a defect that shows in the latter is lost among the former when all count alike. With :math:`S` the second moment
    of normal residuals and :math:`\bar{s}` the mean of its diagonal, half the squared norm of the result is a
    Mahalanobis distance

    .. math:: d = \tfrac{1}{2 \sigma} \; r^\top (S + \bar{s} I)^{-1} r

    The shrinkage :math:`\bar{s} I` keeps directions in which normal images hardly differ from ruling the map.
    :math:`\sigma` is the standard deviation, over normal images, of the largest distance in an image: what ranks images
    is their largest distance, and a map that varies there by itself must not rule the sum of scales and students.

    All are moving averages over training, as batch normalisation keeps its own; :math:`S` becomes the weight every few
    steps and when the module is put into evaluation mode.

    Args:
        channels: Number of channels, C.
    """

    second_moment: torch.Tensor
    weight: torch.Tensor
    mean_distance: torch.Tensor
    peak: torch.Tensor
    peak_variance: torch.Tensor
    updates: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("second_moment", torch.eye(channels) / channels)
        self.register_buffer("weight", torch.eye(channels))
        self.register_buffer("mean_distance", torch.ones(()))
        self.register_buffer("peak", torch.ones(()))
        self.register_buffer("peak_variance", torch.ones(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._weigh()

    @torch.no_grad()
    def update(self, residual: torch.Tensor) -> torch.Tensor:
        """Take residuals of normal images into the moving averages.

        Args:
            residual: Residuals, ``(B, C, h, w)`` with B at least 1.

        Returns:
            Their distances by what is usual now, ``(B, 1, h, w)``, whitened once where :meth:`forward` would again.
        """
        locations = residual.transpose(0, 1).flatten(1)
        momentum = momentum_of(self.updates)
        self.second_moment.lerp_(locations @ locations.T / locations.shape[1], momentum)
        if self.updates % UPDATES_A_WEIGHT == 0:
            self._weigh()
        distance = half_squared_norm(whiten(residual, self.weight))
        follow(self.peak, self.peak_variance, distance.flatten(1).amax(dim=1), momentum)
        self.updates += 1
        return distance / spread_of(self.peak, self.peak_variance)

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        """Whiten residuals ``(B, C, h, w)``."""
        return whiten(residual, self.weight * spread_of(self.peak, self.peak_variance).rsqrt())

    def usual(self) -> torch.Tensor:
        """Return the mean distance over normal images."""
        return self.mean_distance / spread_of(self.peak, self.peak_variance)

    def train(self, mode: bool = True) -> "ResidualWhitening":
        """Set the mode; the weight follows what was learned in training."""
        if not mode and self.training:
            self._weigh()
        return super().train(mode)

    @torch.no_grad()
    def _weigh(self) -> None:
        moment = self.second_moment.cpu().double()  # on the CPU, since Apple's GPUs have no float64
        shrinkage = moment.diagonal().mean().clamp_min(TINY)
        weight = whitening_matrix(moment, shrinkage)
        self.weight.copy_(weight)
        # half the trace of W S W', and W' W is the inverse of S and what was added to it
        self.mean_distance.copy_((len(weight) - shrinkage * weight.square().sum()) / 2)


def whitening_matrix(second_moment: torch.Tensor, shrinkage: torch.Tensor) -> torch.Tensor:
    r"""Return ``W`` with :math:`W^\top W = (S + \lambda I)^{-1}`.

    Args:
        second_moment: :math:`S`, of shape ``(C, C)``.
        shrinkage: :math:`\lambda`, greater than 0.
    """
    identity = torch.eye(len(second_moment), dtype=second_moment.dtype)
    inverse, _ = torch.linalg.inv_ex(second_moment + shrinkage * identity)
    return torch.linalg.cholesky_ex(inverse)[0].T  # without checks: of a training that has gone to NaN the loss tells


def momentum_of(updates: torch.Tensor) -> torch.Tensor:
    """Return the weight of what is new in a moving average: at first that of a plain mean."""
    return (1 / (updates + 1)).clamp_min(MOMENTUM)


def follow(
    mean: torch.Tensor, variance: torch.Tensor, values: torch.Tensor, momentum: torch.Tensor, quicker: float = 1
) -> None:
    """Take values ``(B, ...)`` into moving averages of their mean and variance, in place.

    A mean that lags behind values that drift adds to their variance; it may follow so many times as quickly.
    """
    before = mean.clone()
    mean.lerp_(values.mean(dim=0), (quicker * momentum).clamp_max(1))
    variance.lerp_(((values - before) * (values - mean)).mean(dim=0), momentum)


def spread_of(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation, at least a twentieth of the mean: one image alone has none."""
    return torch.maximum(variance.sqrt(), LEAST_SPREAD * mean).clamp_min(TINY)


def whiten(residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply residuals ``(B, C, h, w)`` by a matrix ``(C, C)`` at each location."""
    return F.conv2d(residual, weight[..., None, None])


def half_squared_norm(residual: torch.Tensor) -> torch.Tensor:
    """Half the squared norm at each location of a map ``(B, C, h, w)``, of shape ``(B, 1, h, w)``."""
    # the norm is one operation in an export, a sum of squares two, between which NNCF would round
    return 0.5 * torch.linalg.vector_norm(residual, dim=1, keepdim=True).square()
