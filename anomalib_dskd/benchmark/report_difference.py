# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""How sure it is that one model is better than another."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from .report_cells import Results

Bootstrap = Callable[..., tuple[float, float, float]]


class Interval(NamedTuple):
    """A difference of image AUROC with its 95 % interval.

    Args:
        difference: Mean over categories and seeds.
        low: Lower bound.
        high: Upper bound.
        categories: Number of categories that both models have.
    """

    difference: float
    low: float
    high: float
    categories: int


def interval(results: Results, data: str, model: str, reference: str, bootstrap: Bootstrap) -> Interval | None:
    r"""Return how far a model's image AUROC is above another's on a data set.

    Each category's interval is a paired bootstrap over its test images, by their groups where ``scores.csv`` has a
    column ``group``. All seeds of a category see the same test images, so their bounds are averaged as if they were
    fully dependent. Categories have different images; for the mean of K of them the bounds combine as in Zou and
    Donner, *Construction of confidence limits about effect measures* (Statistics in Medicine 27, 2008):

    .. math::
        L = \bar d - \frac{1}{K} \sqrt{\sum_k (d_k - l_k)^2}, \quad
        U = \bar d + \frac{1}{K} \sqrt{\sum_k (u_k - d_k)^2}

    Args:
        results: Cells and their scores.
        data: Name of the data set.
        model: The model.
        reference: The model that it is compared with.
        bootstrap: Takes scores of the model, scores of the reference and labels, and gives difference, low and high.

    Returns:
        The interval over all categories and seeds that both models have, or nothing where there are none.
    """
    bounds = []
    for _, cells in results.with_scores(data).groupby("category"):
        folders = cells.set_index(["model", "seed"])["folder"]
        seeds = [
            seed for seed in sorted(cells["seed"].unique()) if {(model, seed), (reference, seed)} <= {*folders.index}
        ]
        pairs = [
            _pair(results.scores[folders[model, seed]], results.scores[folders[reference, seed]]) for seed in seeds
        ]
        found = [
            bootstrap(
                pair["score"].to_numpy(),
                pair["score_reference"].to_numpy(),
                pair["label"].to_numpy(),
                **({"groups": pair["group"].to_numpy()} if "group" in pair else {}),
            )
            for pair in pairs
        ]
        if found and not np.isnan(found).any():
            bounds.append(np.mean(found, axis=0))
    if not bounds:
        return None
    difference, low, high = np.transpose(bounds)
    mean, count = difference.mean(), len(bounds)
    lower = mean - np.linalg.norm(difference - low) / count
    upper = mean + np.linalg.norm(high - difference) / count
    return Interval(float(mean), float(lower), float(upper), count)


def _pair(scores: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return two models' scores of the images that both have seen."""
    return scores.merge(reference[["path", "score"]], on="path", suffixes=("", "_reference"), validate="one_to_one")
