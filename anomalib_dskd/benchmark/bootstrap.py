# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Interval of the difference between two models, from their scores on the same images."""

import numpy as np

from anomalib_dskd.errors import DskdError, check_choice

from .image_metrics import IMAGE_METRICS, checked
from .ranking import RankCurve

CONFIDENCE = 0.95
CHUNK = 1 << 21


def paired_bootstrap(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    labels: np.ndarray,
    metric: str = "image_AUROC",
    rounds: int = 2000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> tuple[float, float, float]:
    """Bootstrap the difference of a metric between two models.

    Each round draws images with replacement, as many normal and as many anomalous ones as there are, and scores both
    models on them (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). It tells how
    the difference varies with the test images, not with the seed of training.

    Args:
        scores_a: Raw scores of the first model, shape ``(n,)``.
        scores_b: Raw scores of the second model on the same images, shape ``(n,)``.
        labels: 1 or ``True`` for anomalous, shape ``(n,)``.
        metric: A key of what :func:`~anomalib_dskd.benchmark.image_metrics.image_metrics` returns.
        rounds: Number of rounds, at least 1.
        seed: Seed of the draws.
        groups: What each image shows, any values, shape ``(n,)``; images of the same part, which are not independent,
            are drawn together. Groups are then drawn among those with normal images only, with anomalous ones only,
            and with both. Every image by itself by default.

    Returns:
        Difference ``a - b`` on all images, and the 2.5 % and 97.5 % percentiles of the rounds; NaN where a class is
        absent.

    Raises:
        DskdError: If an argument is not as described.

    Example:
        >>> good, bad = np.arange(40.0), np.tile([1.0, 0.0], 20)
        >>> paired_bootstrap(good, bad, np.arange(40) >= 20)
        (0.5, 0.3..., 0.6...)
    """
    check_choice("metric", metric, IMAGE_METRICS)
    if rounds < 1:
        msg = f"rounds={rounds} must be at least 1."
        raise DskdError(msg)
    scores_a, labels = checked(scores_a, labels)
    scores_b, labels = checked(scores_b, labels)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if groups.shape != labels.shape:
        msg = f"groups of shape {groups.shape} for {len(labels)} images: give one per image."
        raise DskdError(msg)
    if labels.all() or not labels.any():
        return np.nan, np.nan, np.nan

    def difference(weights: np.ndarray | None) -> np.ndarray:
        first, second = (RankCurve.of(scores, labels, weights) for scores in (scores_a, scores_b))
        return IMAGE_METRICS[metric](first) - IMAGE_METRICS[metric](second)

    random = np.random.default_rng(seed)
    size = max(CHUNK // len(labels), 1)
    drawn = [difference(_draws(labels, groups, min(size, rounds - start), random)) for start in range(0, rounds, size)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(drawn), [tail, 100 - tail])
    return float(difference(None)), float(low), float(high)


def _draws(labels: np.ndarray, groups: np.ndarray, rounds: int, random: np.random.Generator) -> np.ndarray:
    """Return how often each image is drawn in each round, shape ``(rounds, n)``."""
    _, member = np.unique(groups, return_inverse=True)
    anomalous, normal = (np.bincount(member, weights=kind) > 0 for kind in (labels, ~labels))
    counts = np.zeros((rounds, len(normal)))
    for stratum in (normal & ~anomalous, anomalous & ~normal, normal & anomalous):
        number = int(stratum.sum())
        if number:
            counts[:, stratum] = random.multinomial(number, np.full(number, 1 / number), size=rounds)
    return counts[:, member]
