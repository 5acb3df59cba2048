# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""How many pixels have which value, in memory that does not grow without end."""

import numpy as np


def sortable(values: np.ndarray) -> np.ndarray:
    """Turn floats into integers of the same order.

    The bits of a positive float, read as an integer, keep its order, those of a negative one reverse it. The leading
    bits alone number bins whose width is a fixed share of the value.

    Args:
        values: Values without NaN, rounded to float32, any shape.

    Returns:
        Keys of type uint32, same shape.

    Example:
        >>> np.argsort(sortable(np.array([0.5, -2.0, 1e-9, -1e-9]))).tolist()
        [1, 3, 2, 0]
    """
    # + 0.0 makes -0.0 equal to 0.0
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


class PixelCounts:
    """Counts of pixels per bin, a bin being all keys that share their leading bits.

    Attributes:
        keys: Occupied bins in ascending order, uint32, shape ``(K,)``.
        counts: Pixels of each bin, int64, shape ``(K,)``.
        weights: Sum of the weights of each bin's pixels, float64, shape ``(K,)``; empty where no weights are given.
    """

    def __init__(self) -> None:
        self.keys: np.ndarray = np.empty(0, dtype=np.uint32)
        self.counts: np.ndarray = np.empty(0, dtype=np.int64)
        self.weights: np.ndarray = np.empty(0)
        self._pending: list[np.ndarray] = []
        self._pending_weights: list[np.ndarray] = []

    def add(self, keys: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Keep pixels to be counted later.

        Args:
            keys: Keys, uint32, shape ``(n,)``.
            weights: Weights, shape ``(n,)``; either always given or never.
        """
        if not len(keys):
            return
        self._pending.append(keys)
        if weights is not None:
            self._pending_weights.append(weights)

    def count(self, shift: int) -> None:
        """Count the kept pixels into the bins, which stand for keys without their last ``shift`` bits."""
        if not self._pending:
            return
        keys = np.concatenate(self._pending)
        keys >>= np.uint32(shift)
        self._pending.clear()
        weights = np.empty(0)
        if self._pending_weights:
            order = np.argsort(keys)
            keys = keys[order]
            weights = np.concatenate(self._pending_weights)[order]
            self._pending_weights.clear()
            del order
        else:
            keys.sort()
        starts = _starts(keys)
        new = keys[starts]
        counts = np.diff(starts, append=len(keys))
        weights = np.add.reduceat(weights, starts) if len(weights) else weights
        del keys, starts
        if len(self.keys):
            new = np.concatenate([self.keys, new])
            order = np.argsort(new, kind="stable")
            self.keys = new[order]
            self.counts = np.concatenate([self.counts, counts])[order]
            self.weights = np.concatenate([self.weights, weights])
            self.weights = self.weights[order] if len(self.weights) else self.weights
            self._merge()
        else:
            self.keys, self.counts, self.weights = new, counts, weights

    def width_for(self, bins: int) -> int:
        """Return how many more of the last bits must go for at most ``bins`` bins to be occupied."""
        bits = 0
        while len(self.keys) > bins and len(_starts(self.keys >> np.uint32(bits))) > bins:
            bits += 1
        return bits

    def coarsen(self, bits: int) -> None:
        """Widen the bins by that many bits; pixels that are not counted yet are left as they are."""
        self.keys >>= np.uint32(bits)
        self._merge()

    def above(self, keys: np.ndarray) -> np.ndarray:
        """Return the number of pixels in bins above each of ``keys``, int64, same shape."""
        return self._above(np.asarray(np.searchsorted(self.keys, keys, side="right")))

    def at_or_above(self, keys: np.ndarray) -> np.ndarray:
        """Return the number of pixels in each of ``keys`` or in bins above, int64, same shape."""
        return self._above(np.asarray(np.searchsorted(self.keys, keys, side="left")))

    def highest(self, share: float) -> int:
        """Return the lowest bin with no more than this share of the pixels in bins above it."""
        return int(self.keys[np.searchsorted(np.cumsum(self.counts), (1 - share) * self.counts.sum() - 1e-6)])

    def _above(self, index: np.ndarray) -> np.ndarray:
        below: np.ndarray = np.append(0, np.cumsum(self.counts))
        return below[-1] - below[index]

    def _merge(self) -> None:
        if not len(self.keys):
            return
        starts = _starts(self.keys)
        if len(starts) < len(self.keys):
            self.keys = self.keys[starts]
            self.counts = np.add.reduceat(self.counts, starts)
            self.weights = np.add.reduceat(self.weights, starts) if len(self.weights) else self.weights


def _starts(keys: np.ndarray) -> np.ndarray:
    """Return where each run of equal keys starts."""
    return np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
