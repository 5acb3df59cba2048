# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""How unusual an image is as a whole."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .distance import EPSILON
from .whitening import LEAST_SPREAD, whitening_matrix

BLOCK_PIXELS = 16
WINDOW_BLOCKS = 2
SHRINKAGE = 0.1
FOLDS = 10
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
    of the distances of each tenth of the parts to the Gaussian of the others, as in cross-validation.

    Normal images that were held out for a threshold are taken into :math:`\mu` and :math:`S` too. For the threshold
    itself they have to be as new as a line's, so that a second Gaussian, of the other images alone, is kept for it.

    Args:
        channels: Channels of the teacher's maps, finest first.
        strides: Their strides in input pixels.
    """

    mean: torch.Tensor
    weight: torch.Tensor
    mean_without_held_out: torch.Tensor
    weight_without_held_out: torch.Tensor
    usual: torch.Tensor
    spread: torch.Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        length = 2 * sum(channels)
        for which in ("", "_without_held_out"):
            self.register_buffer(f"mean{which}", torch.zeros(length))
            self.register_buffer(f"weight{which}", torch.zeros(length, length))  # until it learns all images are usual
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
                block = max(1, BLOCK_PIXELS // stride)
                blocks = F.avg_pool2d(direction, block, ceil_mode=True)
                window = min(max(1, WINDOW_BLOCKS * BLOCK_PIXELS // max(stride, BLOCK_PIXELS)), *blocks.shape[-2:])
                found += [direction.mean(dim=(-2, -1)), F.avg_pool2d(blocks, window, stride=1).amax(dim=(-2, -1))]
            return torch.cat(found, dim=1)

    @torch.no_grad()
    def learn(self, descriptors: torch.Tensor, parts: torch.Tensor, held_out: torch.Tensor | None = None) -> None:
        """Learn what is usual.

        Args:
            descriptors: Those of normal images, ``(N, D)``.
            parts: Number of the part that each image shows, ``(N,)``, at least two different ones; with fewer
                nothing is learned.
            held_out: Whether each image is held out for a threshold, ``(N,)``; by default none is.
        """
        numbers = parts.unique()
        if len(numbers) < 2:  # noqa: PLR2004
            return
        samples = descriptors.cpu().double()  # on the CPU, since Apple's GPUs have no float64
        number = torch.searchsorted(numbers, parts).cpu()
        fold = number * min(FOLDS, len(numbers)) // len(numbers)
        distances = torch.cat([_distances(samples[fold == k], *_gaussian(samples[fold != k])) for k in fold.unique()])
        mean, weight = _gaussian(samples)
        self.mean.copy_(mean)
        self.weight.copy_(weight)
        if held_out is not None and held_out.any():
            mean, weight = _gaussian(samples[~held_out.cpu()])
        self.mean_without_held_out.copy_(mean)
        self.weight_without_held_out.copy_(weight)
        self.usual.copy_(distances.mean())
        # of two images both distances are the same, and below 1 there is nothing but the shrinkage to be far from
        self.spread.copy_(torch.maximum(distances.std(), LEAST_SPREAD * distances.mean()).clamp_min(1))

    def forward(self, teacher: Sequence[torch.Tensor], held_out: bool = False) -> torch.Tensor:
        """Compute how many standard deviations images are further than normal ones.

        Args:
            teacher: See :meth:`describe`.
            held_out: Whether the images are those held out for a threshold.

        Returns:
            Standard deviations, ``(B,)``.
        """
        descriptors = self.describe(teacher)
        gaussian = (self.mean_without_held_out, self.weight_without_held_out) if held_out else (self.mean, self.weight)
        with torch.autocast(descriptors.device.type, enabled=False):
            return (_distances(descriptors, *gaussian) - self.usual) / self.spread


def _gaussian(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of samples ``(N, D)`` and the matrix that whitens them."""
    mean = samples.mean(dim=0)
    centred = samples - mean
    covariance = centred.T @ centred / len(centred)
    # differences below 0.3 % of the features' length are rounding, of an 8-bit network at the latest
    shrinkage = (SHRINKAGE * covariance.diagonal().mean()).clamp_min(LEAST_SHRINKAGE)
    return mean, whitening_matrix(covariance, shrinkage)


def _distances(samples: torch.Tensor, mean: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Squared Mahalanobis distances of samples ``(N, D)``."""
    return F.linear(samples - mean, weight).square().sum(dim=1)
