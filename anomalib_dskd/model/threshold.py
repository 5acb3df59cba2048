# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds: for a false-alarm rate where only normal images are at hand, for the best F1 where defects are too."""

import math
import warnings

import numpy as np
import pandas as pd
import torch
from anomalib.data import Batch
from anomalib.metrics import AnomalibMetric
from sklearn.metrics import precision_recall_curve
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

TAIL_SHARE = 0.25
TAIL_SIZE = 25
BIN_SHIFT = 12
BINS = 1 << (31 - BIN_SHIFT)


def false_alarm_threshold(scores: np.ndarray, rate: float) -> float:
    r"""Threshold that a new normal score exceeds with probability ``rate``.

    The largest ``k`` of ``n`` scores are taken for an exponential tail above the next lower score ``u``. With ``S``
    the sum of their excesses over ``u``, a new score exceeds ``u`` with probability ``(k + 1) / (n + 1)`` (ranks of
    exchangeable scores), and then exceeds ``u + x`` with probability ``(1 + x / S) ** -k``, the predictive
    distribution that accounts for the scale being estimated (Lawless, Statistical Models and Methods for Lifetime
    Data, 2003, section 4.1; the excesses over an order statistic are independent by Renyi's representation). Hence

    .. math:: t = u + S \left[ \left( \frac{k + 1}{(n + 1)\, rate} \right)^{1/k} - 1 \right]

    The fewer scores there are, the more cautious it is: the rate is met on average over such samples.

    Args:
        scores: Raw scores of held-out normal parts, not negative, shape ``(n,)``.
        rate: Share of good parts allowed to raise an alarm, between 0 and 1.

    Returns:
        Threshold, not negative. With one score that score, since nothing is known of the spread.

    Raises:
        ValueError: If there is no score, or the rate is not between 0 and 1.

    Example:
        >>> normal = np.random.default_rng(0).exponential(size=1000)
        >>> round(false_alarm_threshold(normal, 0.01), 1)  # the exact one is 4.6
        4.7
    """
    if not 0 < rate < 1:
        msg = f"rate={rate} must lie between 0 and 1."
        raise ValueError(msg)
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(scores)
    if n == 0:
        msg = "No scores to set a threshold from."
        raise ValueError(msg)
    if n == 1:
        return float(scores[0])
    k = max(min(math.ceil(TAIL_SHARE * n), TAIL_SIZE), math.ceil(2 * rate * (n + 1)))
    k = min(k, n - 1)
    u = scores[-k - 1]
    excess = (scores[-k:] - u).sum()
    return max(0.0, float(u + excess * (((k + 1) / ((n + 1) * rate)) ** (1 / k) - 1)))


def f1_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Threshold of the best F1, midway between the scores on its two sides, so that rounding flips no verdict.

    Args:
        scores: Raw scores, not negative, shape ``(n,)``.
        labels: 1 or ``True`` for anomalous, shape ``(n,)``; at least one is.

    Returns:
        Threshold to be exceeded; where all are best called anomalous, half of the lowest score (none is negative).

    Example:
        >>> f1_threshold(np.array([1.0, 2.0, 4.0]), np.array([0, 0, 1]))
        3.0
    """
    precision, recall, levels = precision_recall_curve(labels, np.asarray(scores, dtype=np.float64))
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(np.argmax(f1[:-1]))
    below = levels[best - 1] if best > 0 else 0.0
    return float((levels[best] + below) / 2)


def highest_of_each_part(scores: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Reduce the scores of photographs to one a part: those of one part are no independent witnesses of the tail.

    Args:
        scores: Raw scores of images, shape ``(n,)``.
        parts: Number of the part that each image shows, shape ``(n,)``; ``-1`` for a part of its own.

    Returns:
        Highest score of each part, shape ``(number of parts,)``.

    Example:
        >>> highest_of_each_part(np.array([1.0, 2.0, 3.0, 4.0]), np.array([-1, 0, 0, -1]))
        array([1., 4., 3.])
    """
    alone = parts < 0
    several = pd.Series(scores[~alone]).groupby(parts[~alone]).max()
    return np.concatenate([scores[alone], several.to_numpy(scores.dtype)])


class _ScoreThreshold(Metric):
    """Threshold of image scores.

    Args:
        false_alarm_rate: Share of good parts that may raise an alarm; used where no anomalous image was seen.
    """

    scores: list[torch.Tensor]
    labels: list[torch.Tensor]
    parts: list[torch.Tensor]

    def __init__(self, false_alarm_rate: float = 0.01, **kwargs) -> None:
        super().__init__(**kwargs)
        self.false_alarm_rate = false_alarm_rate
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.add_state("parts", default=[], dist_reduce_fx="cat")

    def update(self, scores: torch.Tensor, labels: torch.Tensor, parts: torch.Tensor | None = None) -> None:
        """Add raw scores, labels and numbers of parts, all ``(B,)``; without parts each image is one."""
        self.scores.append(scores.flatten().float())
        self.labels.append(labels.flatten().bool())
        self.parts.append(_or_alone(parts, scores))

    def compute(self) -> torch.Tensor:
        """Return the threshold, a scalar."""
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels).cpu().numpy()
        if labels.any():
            threshold = f1_threshold(scores.cpu().numpy(), labels)
        else:
            normal = highest_of_each_part(scores.cpu().numpy(), dim_zero_cat(self.parts).cpu().numpy())
            warn_if_few(len(normal), self.false_alarm_rate)
            threshold = false_alarm_threshold(normal, self.false_alarm_rate)
        return torch.tensor(threshold, dtype=scores.dtype, device=scores.device)


class _MapThreshold(Metric):
    """Threshold of anomaly maps.

    Where only normal images are seen, as for image scores, from the highest pixel of each part: at most that share of
    good parts shows a region. Where there are masks, the best F1 over all pixels. Those are counted in bins of
    0.05 % relative width, so that memory does not grow with the images; the threshold is the edge of a bin. Where there
    are defects and no masks nobody knows which of their pixels are normal, and the normal images alone are looked at.

    Args:
        false_alarm_rate: Share of good parts that may show a region; used where no mask was seen.
    """

    maxima: list[torch.Tensor]
    parts: list[torch.Tensor]
    normal: torch.Tensor
    anomalous: torch.Tensor

    def __init__(self, false_alarm_rate: float = 0.01, **kwargs) -> None:
        super().__init__(**kwargs)
        self.false_alarm_rate = false_alarm_rate
        self.add_state("maxima", default=[], dist_reduce_fx="cat")
        self.add_state("parts", default=[], dist_reduce_fx="cat")
        self.add_state("normal", default=torch.zeros(BINS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("anomalous", default=torch.zeros(BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        maps: torch.Tensor,
        labels: torch.Tensor,
        masks: torch.Tensor | None = None,
        parts: torch.Tensor | None = None,
    ) -> None:
        """Add raw maps ``(B, H, W)``, labels ``(B,)``, masks ``(B, H, W)`` if any, and numbers of parts ``(B,)``."""
        if masks is None:
            normal = ~labels.flatten().bool()
            maps = maps[normal]
            parts = None if parts is None else parts[normal]
            masks = torch.zeros_like(maps)
        masks = masks.bool().reshape(maps.shape)
        self.maxima.append(maps.flatten(1).amax(dim=1).float())
        self.parts.append(_or_alone(parts, self.maxima[-1]))
        bins = _bins(maps)
        self.normal += torch.bincount(bins[~masks], minlength=BINS)
        self.anomalous += torch.bincount(bins[masks], minlength=BINS)

    def compute(self) -> torch.Tensor:
        """Return the threshold, a scalar; not a number where neither a normal image nor a mask was seen."""
        maxima = dim_zero_cat(self.maxima)
        if not len(maxima):
            return maxima.new_tensor(math.nan)
        if not self.anomalous.any():
            highest = highest_of_each_part(maxima.cpu().numpy(), dim_zero_cat(self.parts).cpu().numpy())
            threshold = false_alarm_threshold(highest, self.false_alarm_rate)
            return torch.tensor(threshold, dtype=maxima.dtype, device=maxima.device)
        anomalous, normal = self.anomalous.cpu(), self.normal.cpu()  # Apple's GPUs have no float64
        hits, alarms = (counts.flip(0).cumsum(0).flip(0).double() for counts in (anomalous, normal))
        f1 = 2 * hits / (hits + alarms + anomalous.sum())
        edge = _edge(int(f1.argmax())).to(maxima.device)
        return torch.nextafter(edge, torch.zeros_like(edge))


def _or_alone(parts: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
    return torch.full_like(scores.flatten(), -1, dtype=torch.long) if parts is None else parts.flatten()


def warn_if_few(number: int, rate: float) -> None:
    """Warn where a rate is too small for so few images to show it."""
    needed = math.ceil(1 / rate) - 1
    if number < needed:
        warnings.warn(
            f"The threshold for a false_alarm_rate of {rate:.2%} rests on {number} held-out normal parts and is "
            f"extrapolated: fewer than {needed} cannot show so small a rate. It errs on the side of missed defects; "
            "give more normal parts, or a larger rate.",
            stacklevel=2,
        )


def _bins(maps: torch.Tensor) -> torch.Tensor:
    """Number the bins of non-negative floats by their sign-free leading bits, which keep their order."""
    return maps.flatten().float().clamp_min(0).view(torch.int32).long().reshape(maps.shape) >> BIN_SHIFT


def _edge(number: int) -> torch.Tensor:
    """Return the smallest value of a bin."""
    return torch.tensor(number << BIN_SHIFT, dtype=torch.int32).view(torch.float32)


class ImageThreshold(AnomalibMetric, _ScoreThreshold):  # type: ignore[misc]
    """Threshold of image scores that reads anomalib's batches, and the parts of those that know them."""

    def update(self, batch: Batch) -> None:  # type: ignore[override]
        """Add a batch's scores."""
        super().update(batch, getattr(batch, "part", None))


class PixelThreshold(AnomalibMetric, _MapThreshold):  # type: ignore[misc]
    """Threshold of anomaly maps that reads anomalib's batches, and the parts of those that know them."""

    def update(self, batch: Batch) -> None:  # type: ignore[override]
        """Add a batch's maps."""
        super().update(batch, batch.gt_mask, getattr(batch, "part", None))
