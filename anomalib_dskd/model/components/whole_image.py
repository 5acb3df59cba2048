# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""How unusual an image is as a whole."""

from collections.abc import Sequence

import torch
from anomalib.models.components import DynamicBufferMixin
from torch.nn import functional as F  # noqa: N812

from .distance import EPSILON
from .whitening import LEAST_SPREAD, whitening_matrix

BLOCK_PIXELS = 16
WINDOW_BLOCKS = 2
SHRINKAGE = 0.1
FOLDS = 10
LEAST_SHRINKAGE = 1e-5
MOST_FAMILIAR = -3.0


class WholeImage(DynamicBufferMixin):
    r"""Distance of an image's descriptor to the nearest of normal images'.

    The third after those of locations and regions: an uneven surface, a part of the wrong kind or a wrong light change
    an image as a whole and need not stand out anywhere. Nearest neighbours among deep features of normal images are
    Bergman, Cohen & Hoshen's, "Deep Nearest Neighbor Anomaly Detection" (arXiv 2002.10445); a metric from their
    covariance is Rippel, Mertens & Merhof's, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for
    Anomaly Detection" (2021). Here an image is described by its teacher's features of length one, of each scale their
    mean and the maximum of their means over windows of 32 pixels, every 16 pixels, so that what shows in one place
    counts too. With :math:`g` the descriptor, :math:`g_n` those of normal images, :math:`S` their covariance, and
    :math:`\bar{s}` the mean of its diagonal,

    .. math:: q = \log \min_n \; (g - g_n)^\top (S + 0.1 \, \bar{s} I)^{-1} (g - g_n)

    counts in standard deviations from its mean over normal images, and no less than -3, since a part that is known
    well can have a defect all the same. An image among the :math:`g_n` is at no distance, so that mean and deviation
    are of each tenth of the parts beside the others, as in cross-validation.

    Normal images that were held out for a threshold are among the :math:`g_n` too, but not for the threshold itself,
    for which they have to be as new as a line's; :math:`S` is of the other images alone.

    Args:
        channels: Channels of the teacher's maps, finest first.
        strides: Their strides in input pixels.
    """

    mean: torch.Tensor
    weight: torch.Tensor
    memory_bank: torch.Tensor
    is_held_out: torch.Tensor
    usual: torch.Tensor
    spread: torch.Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        length = 2 * sum(channels)
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("weight", torch.zeros(length, length))  # until it learns all images are usual
        self.register_buffer("memory_bank", torch.zeros(1, length))
        self.register_buffer("is_held_out", torch.zeros(1, dtype=torch.bool))
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
        if held_out is None:
            held_out = torch.zeros(len(descriptors), dtype=torch.bool)
        samples = descriptors.cpu().double()  # on the CPU, since Apple's GPUs have no float64
        number = torch.searchsorted(numbers, parts).cpu()
        fold = number * min(FOLDS, len(numbers)) // len(numbers)
        distances = []
        for k in fold.unique():
            inside = fold == k
            metric = _metric(samples[~inside])
            one, others = (_whitened(samples[chosen], *metric) for chosen in (inside, ~inside))
            distances.append(_logarithm(_distance_to_nearest(one, others)))
        self.usual.copy_(torch.cat(distances).mean())
        # of two images both distances are the same; a logarithm is not told more exactly than to a twentieth
        self.spread.copy_(torch.cat(distances).std().clamp_min(LEAST_SPREAD))
        mean, weight = _metric(samples[~held_out.cpu()])
        self.mean.copy_(mean)
        self.weight.copy_(weight)
        self.memory_bank = _whitened(samples, mean, weight).to(self.mean)
        self.is_held_out = held_out.to(self.mean.device)

    def forward(self, teacher: Sequence[torch.Tensor], held_out: bool = False) -> torch.Tensor:
        """Compute how far images are from the nearest normal one.

        Args:
            teacher: See :meth:`describe`.
            held_out: Whether the images are those held out for a threshold.

        Returns:
            Squared distances, ``(B,)``.
        """
        descriptors = self.describe(teacher)
        known = self.memory_bank[~self.is_held_out] if held_out else self.memory_bank
        with torch.autocast(descriptors.device.type, enabled=False):
            return _distance_to_nearest(_whitened(descriptors, self.mean, self.weight), known)

    def deviations(self, distance: torch.Tensor) -> torch.Tensor:
        """Return in how many standard deviations images are further than normal ones, at least -3.

        Args:
            distance: Squared distances, as :meth:`forward` returns them.
        """
        return ((_logarithm(distance) - self.usual) / self.spread).clamp_min(MOST_FAMILIAR)


def _metric(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of samples ``(N, D)`` and the matrix that whitens them."""
    mean = samples.mean(dim=0)
    centred = samples - mean
    covariance = centred.T @ centred / len(centred)
    # differences below 0.3 % of the features' length are rounding, of an 8-bit network at the latest
    shrinkage = (SHRINKAGE * covariance.diagonal().mean()).clamp_min(LEAST_SHRINKAGE)
    return mean, whitening_matrix(covariance, shrinkage)


def _whitened(samples: torch.Tensor, mean: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Samples ``(N, D)`` in coordinates in which the metric is the Euclidean; the mean is taken off for exactness."""
    return F.linear(samples - mean, weight)


def _distance_to_nearest(samples: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Squared distances of samples ``(B, D)`` to the nearest of ``(N, D)``, of shape ``(B,)``."""
    to_each = known.square().sum(dim=1) - 2 * F.linear(samples, known)
    return samples.square().sum(dim=1) + to_each.amin(dim=1)


def _logarithm(distance: torch.Tensor) -> torch.Tensor:
    return distance.clamp_min(1).log()  # below there is nothing but the shrinkage to be far from
