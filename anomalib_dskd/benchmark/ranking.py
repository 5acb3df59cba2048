# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Curve of hits against false alarms over all thresholds, and what is read off it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankCurve:
    """Counts at each level of score, from the highest to the lowest.

    A level is a score, or a bin of scores, that all of the samples it holds share: no threshold separates them, and
    the curve is a straight line across it. Levels that hold no anomalous sample may be left out. All arrays may
    have leading dimensions, one curve each.

    Args:
        before: Normal samples above each level, shape ``(..., K)``.
        after: Normal samples at or above each level, shape ``(..., K)``.
        hits: Anomalous samples, or their weights, at or above each level, shape ``(..., K)``.
        normal: Number of normal samples, shape ``(...)``.
    """

    before: np.ndarray
    after: np.ndarray
    hits: np.ndarray
    normal: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> "RankCurve":
        """Rank scores.

        Args:
            scores: Scores without NaN, higher is more anomalous, shape ``(n,)``.
            labels: ``True`` for anomalous, shape ``(n,)``.
            weights: How often each sample counts, shape ``(..., n)``; once each by default.
        """
        order = np.argsort(scores, kind="stable")[::-1]
        weights = np.ones(len(scores)) if weights is None else weights
        weights, labels = weights[..., order], labels[order]
        ranked = scores[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], np.ones(min(len(scores), 1), dtype=bool)))
        after = np.cumsum(weights * ~labels, axis=-1)[..., ends]
        hits = np.cumsum(weights * labels, axis=-1)[..., ends]
        return cls(_shifted(after), after, hits, (weights * ~labels).sum(axis=-1))

    @property
    def anomalous(self) -> np.ndarray:
        """Number of anomalous samples, shape ``(...)``."""
        return self.hits[..., -1] if self.hits.shape[-1] else np.zeros(self.hits.shape[:-1])

    def area(self, limit: float = 1.0) -> np.ndarray:
        """Area under the share of hits against the false-positive rate up to ``limit``, divided by ``limit``.

        Without a limit it is the area under the ROC curve, where a tie counts half. The curve is interpolated at the
        limit.

        Returns:
            Areas, shape ``(...)``; NaN where a class is absent.
        """
        end = self._end(limit)
        before, after = np.minimum(self.before, end), np.minimum(self.after, end)
        area = (self.hits * (_advanced(before, end) - after)).sum(axis=-1)
        width = after - before
        # of the one tie that holds the limit only the left part counts, over which the curve rises by that part
        part = np.divide(width, self.after - self.before, out=np.zeros_like(width), where=width > 0)
        previous = _shifted(self.hits)
        area += (width * (previous + (self.hits - previous) * part / 2)).sum(axis=-1)
        return self._ratio(area, self.anomalous * end[..., 0])

    def area_bounds(self, limit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest area if the samples within a level could stand in any order."""
        end = self._end(limit)
        before, after = np.minimum(self.before, end), np.minimum(self.after, end)
        low = (self.hits * (_advanced(after, end) - after)).sum(axis=-1)
        high = (self.hits * (_advanced(before, end) - before)).sum(axis=-1)
        whole = self.anomalous * end[..., 0]
        return self._ratio(low, whole), self._ratio(high, whole)

    def average_precision(self) -> np.ndarray:
        """Precision at each level, weighted by the recall it adds, shape ``(...)``; NaN where a class is absent."""
        precision = self.hits / np.maximum(self.hits + self.after, 1)
        return self._ratio((self._added() * precision).sum(axis=-1), self.anomalous)

    def average_precision_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the average precision if the samples within a level could stand in any order."""
        added = self._added()
        first = np.minimum(_shifted(self.hits) + 1, self.hits)
        low = added * (first / np.maximum(first + self.after, 1))
        high = added * (self.hits / np.maximum(self.hits + self.before, 1))
        return self._ratio(low.sum(axis=-1), self.anomalous), self._ratio(high.sum(axis=-1), self.anomalous)

    def f1_max(self) -> np.ndarray:
        """Highest F1 of all thresholds, shape ``(...)``; NaN where a class is absent."""
        return self._highest_f1(self.after)

    def f1_max_bound(self) -> np.ndarray:
        """Highest F1 if the anomalous samples of a level could all stand above its normal ones."""
        return self._highest_f1(self.before)

    def fpr_at_recall(self, recall: float) -> np.ndarray:
        """False-positive rate at the highest threshold of at least that recall; NaN where a class is absent."""
        if not self.hits.shape[-1]:
            return np.full(self.hits.shape[:-1], np.nan)
        needed = np.ceil(recall * self.anomalous[..., None] - 1e-9)
        level = np.argmax(self.hits >= needed, axis=-1, keepdims=True)
        return self._ratio(np.take_along_axis(self.after, level, axis=-1)[..., 0], self.normal)

    def points(self, limit: float = 1.0, number: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """Thin a single curve out for a plot.

        Args:
            limit: Highest false-positive rate.
            number: About how many points to keep, evenly spaced along the curve.

        Returns:
            False-positive rates from 0 to ``limit`` and shares of hits; empty where a class is absent.
        """
        if not self.normal or not self.anomalous:
            return np.empty(0), np.empty(0)
        end = limit * self.normal
        levels = np.searchsorted(self.before, end)
        length = np.minimum(self.after[:levels], end) / end + self.hits[:levels] / self.anomalous
        kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], number // 2))) if levels else []
        previous = np.where(np.equal(kept, 0), 0, self.hits[np.subtract(kept, 1, dtype=int)])
        # both ends of each level kept, between the corners of the curve
        x = np.column_stack([self.before[kept], self.after[kept]]).ravel() / self.normal
        y = np.column_stack([previous, self.hits[kept]]).ravel() / self.anomalous
        x, y = np.concatenate([[0], x, [1]]), np.concatenate([[0], y, [1]])
        inside = x < limit
        return np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))

    def _end(self, limit: float) -> np.ndarray:
        return limit * np.asarray(self.normal, dtype=np.float64)[..., None]

    def _added(self) -> np.ndarray:
        return self.hits - _shifted(self.hits)

    def _highest_f1(self, false_alarms: np.ndarray) -> np.ndarray:
        anomalous = self.anomalous[..., None]
        f1 = 2 * self.hits / np.maximum(self.hits + false_alarms + anomalous, 1)
        return self._ratio(f1.max(axis=-1, initial=0), 1)

    def _ratio(self, part: np.ndarray, whole: np.ndarray | float) -> np.ndarray:
        both = (np.asarray(self.normal) > 0) & (self.anomalous > 0)
        return np.divide(part, whole, out=np.full(both.shape, np.nan), where=both)


def _shifted(values: np.ndarray) -> np.ndarray:
    """Return the value of the level above, 0 above the first."""
    return np.concatenate([np.zeros_like(values[..., :1]), values[..., :-1]], axis=-1)


def _advanced(values: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the value of the level below, ``end`` below the last."""
    return np.concatenate([values[..., 1:], np.broadcast_to(end, values[..., :1].shape)], axis=-1)
