# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Means over categories and seeds."""

from typing import NamedTuple

import numpy as np
import pandas as pd


class Mean(NamedTuple):
    """A model's figure on a data set.

    Args:
        value: Mean over categories of the mean over seeds; NaN where there is none.
        spread: Standard deviation over seeds of the mean over categories; NaN for fewer than two seeds that have all
            of the model's categories.
        categories: Number of categories that it is a mean of.
        expected: Number of categories for which any model has this figure.
    """

    value: float
    spread: float
    categories: int
    expected: int

    @property
    def is_complete(self) -> bool:
        """Whether the mean is over all categories, and so may be compared."""
        return 0 < self.categories == self.expected

    def text(self, digits: int = 3) -> str:
        """Return the figure in words, or nothing where there is none."""
        if np.isnan(self.value):
            return ""
        spread = "" if np.isnan(self.spread) else f" ± {self.spread:.{digits}f}"
        part = "" if self.is_complete else f" ({self.categories} of {self.expected})"
        return f"{self.value:,.{digits}f}{spread}{part}"


def means(cells: pd.DataFrame, metric: str) -> dict[str, Mean]:
    """Return each model's mean of a metric.

    Args:
        cells: Cells of one data set and one fraction of the training images.
        metric: Name of a column; figures that are absent are not counted.

    Returns:
        Means by model, of those that have any.
    """
    if metric not in cells:
        return {}
    cells = cells.dropna(subset=[metric])
    found = {}
    for model, group in cells.groupby("model", sort=False):
        table = group.pivot_table(index="category", columns="seed", values=metric)
        by_seed = table.dropna(axis="columns").mean()
        found[str(model)] = Mean(
            float(table.mean(axis="columns").mean()), float(by_seed.std()), len(table), cells["category"].nunique()
        )
    return found


def best(figures: dict[str, float], low_is_good: bool, digits: int = 3) -> set[str]:
    """Return the names of the best figures; more than one where they look the same.

    Args:
        figures: Figures by name; NaN are left out.
        low_is_good: Whether the lowest is the best.
        digits: Decimals that are shown.
    """
    shown = {name: round(value, digits) for name, value in figures.items() if np.isfinite(value)}
    if len(shown) < 2:  # noqa: PLR2004
        return set()
    top = min(shown.values()) if low_is_good else max(shown.values())
    return {name for name, value in shown.items() if value == top}
