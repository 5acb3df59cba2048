# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""How unusual an image is as a whole."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .distance import EPSILON
from .whitening import TINY, whitening_matrix

BLOCK_PIXELS = 16
WINDOW_BLOCKS = 2
SHRINKAGE = 0.1
LEAST_SHRINKAGE = 1e-5


class WholeImage(nn.Module):
    r"""Mahalanobis distance of an image's descriptor to those of normal images.

    The third after those of locations and regions: an uneven surface, a part of the wrong kind or a wrong light change
    an image as a whole and need not stand out anywhere. Deep features of normal images as one Gaussian are Rippel,
    Mertens & Merhof's, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection"
    (2021). Here an image is described by its teacher's features of length one, of each scale their mean and the maximum
    of their means over windows of 32 pixels, every 16 pixels, so that what shows in one place counts too. With
    :math:`g` the descriptor, :math:`\mu` and :math:`S` mean and covariance of normal images', and :math:`\bar{s}` the
    mean of the diagonal of :math:`S`,

    .. math:: q = (g - \mu)^\top (S + 0.1 \, \bar{s} I)^{-1} (g - \mu)

    is returned in standard deviations from its mean over normal images. These are mostly fewer than the descriptor has
    components, so that the distances of those that :math:`S` was taken from are far too small; mean and deviation are
    of the distances that each would have if its part had been left out, see :func:`left_out`.

    Args:
        channels: Channels of the teacher's maps, finest first.
        strides: Their strides in input pixels.
    """

    mean: torch.Tensor
    weight: torch.Tensor
    usual: torch.Tensor
    spread: torch.Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        length = 2 * sum(channels)
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("weight", torch.zeros(length, length))  # until it has learned all images are usual
        self.register_buffer("usual", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def describe(self, teacher: Sequence[torch.Tensor]) -> torch.Tensor:
        """Describe images.

        Args:
            teacher: The teacher's maps, ``(B, C, h, w)`` each, finest first.

        Returns:
            Descriptors of shape ``(B, D)``, float32 whatever the autocast; D is twice the sum of the channels.
        """
        found = []
        with torch.autocast(teacher[0].device.type, enabled=False):
            for features, stride in zip(teacher, self.strides, strict=True):
                direction = F.normalize(features.float(), dim=1, eps=EPSILON)
                blocks = F.avg_pool2d(direction, block) if (block := BLOCK_PIXELS // stride) > 1 else direction
                window = min(max(1, WINDOW_BLOCKS * BLOCK_PIXELS // max(stride, BLOCK_PIXELS)), *blocks.shape[-2:])
                found += [direction.mean(dim=(-2, -1)), F.avg_pool2d(blocks, window, stride=1).amax(dim=(-2, -1))]
            return torch.cat(found, dim=1)

    @torch.no_grad()
    def learn(self, descriptors: torch.Tensor, parts: torch.Tensor) -> None:
        """Learn what is usual.

        Args:
            descriptors: Those of normal images, ``(N, D)``.
            parts: Number of the part that each image shows, ``(N,)``, at least two different ones; with fewer
                nothing is learned.
        """
        if len(parts.unique()) < 2:  # noqa: PLR2004
            return
        samples = descriptors.cpu().double()  # on the CPU, since Apple's GPUs have no float64
        mean = samples.mean(dim=0)
        centred = samples - mean
        covariance = centred.T @ centred / len(centred)
        # differences below 0.3 % of the features' length are rounding, of an 8-bit network at the latest
        shrinkage = (SHRINKAGE * covariance.diagonal().mean()).clamp_min(LEAST_SHRINKAGE)
        weight = whitening_matrix(covariance, shrinkage)
        distances = left_out(centred @ weight.T, parts.cpu())
        self.mean.copy_(mean)
        self.weight.copy_(weight)
        self.usual.copy_(distances.mean())
        self.spread.copy_(distances.std().clamp_min(TINY))

    def forward(self, teacher: torch.Tensor) -> torch.Tensor:
        """Return how many standard deviations images are further than normal ones, ``(B,)``; see :meth:`describe`."""
        descriptors = self.describe(teacher)
        with torch.autocast(descriptors.device.type, enabled=False):
            distances = F.linear(descriptors - self.mean, self.weight).square().sum(dim=1)
            return (distances - self.usual) / self.spread


def left_out(whitened: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    r"""Distances that samples would have if those of their part were not among those that whitening was taken from.

    With :math:`Z` the :math:`n` whitened samples of a part and :math:`Q = Z Z^\top`, leaving the part out moves the
    mean, so that its samples become :math:`A Z` with :math:`A = I + \mathbf{1} \mathbf{1}^\top / (N - n)`, and takes
    :math:`Z^\top A Z / N` off the second moment, whose inverse is Woodbury's. The distances are the diagonal of

    .. math:: A \, (I - Q A / N)^{-1} \, Q A

    up to a factor between :math:`1 - n / N`, where samples are many, and 1, where they are fewer than components.

    Args:
        whitened: Centred and whitened samples, ``(N, D)``.
        parts: Number of each sample's part, ``(N,)``, at least two different ones.

    Returns:
        Squared distances, ``(N,)``.
    """
    count = len(whitened)
    distances = whitened.new_empty(count)
    for part in parts.unique():
        own = parts == part
        size = int(own.sum())
        products = whitened[own] @ whitened[own].T
        identity = torch.eye(size, dtype=products.dtype)
        moved = identity + 1 / (count - size)
        without = torch.linalg.solve(identity - products @ moved / count, products)
        distances[own] = (moved @ without @ moved).diagonal()
    return distances
