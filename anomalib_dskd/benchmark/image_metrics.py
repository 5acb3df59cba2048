# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Image metrics from raw scores."""

from collections.abc import Callable

import numpy as np

from anomalib_dskd.errors import DskdError

from .ranking import RankCurve

IMAGE_METRICS: dict[str, Callable[[RankCurve], np.ndarray]] = {
    "image_AUROC": RankCurve.area,
    "image_AP": RankCurve.average_precision,
    "image_F1max": RankCurve.f1_max,
    "image_FPR95": lambda curve: curve.fpr_at_recall(0.95),
    "image_FPR100": lambda curve: curve.fpr_at_recall(1.0),
}


def image_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the image metrics, which depend on the order of the scores alone.

    Args:
        scores: Raw scores of any sign and scale, higher is more anomalous, shape ``(n,)``.
        labels: 1 or ``True`` for anomalous, shape ``(n,)``.

    Returns:
        ``image_AUROC``, ``image_AP`` (average precision), ``image_F1max`` (highest F1 of all thresholds),
        ``image_FPR95`` and ``image_FPR100`` (false-positive rate at the highest threshold that finds at least 95 % and
        all of the anomalous images), all between 0 and 1; NaN where a class is absent.

    Raises:
        DskdError: If there are not as many scores as labels, or a score is NaN.

    Example:
        >>> image_metrics(np.array([-3.0, 1.0, 0.0, 2.0]), np.array([0, 0, 1, 1]))["image_AUROC"]
        0.75
    """
    curve = RankCurve.of(*checked(scores, labels))
    return {name: float(metric(curve)) for name, metric in IMAGE_METRICS.items()}


def checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as floats and labels as booleans, both ``(n,)``.

    Raises:
        DskdError: If there are not as many scores as labels, or a score is NaN.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if scores.ndim != 1 or scores.shape != labels.shape:
        msg = f"Scores of shape {scores.shape} and labels of shape {labels.shape}: give one of each per image."
        raise DskdError(msg)
    if np.isnan(scores).any():
        number = np.isnan(scores).sum()
        msg = f"{number} of {len(scores)} image scores are NaN: the model diverged, or an input is broken."
        raise DskdError(msg)
    return scores, labels
