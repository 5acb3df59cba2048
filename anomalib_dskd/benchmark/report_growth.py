# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What grows with the number of training images."""

import numpy as np
import pandas as pd

from .report_cells import Results
from .report_means import means

MEASURES = {
    "image_AUROC": "image AUROC",
    "latency_ms": "latency (ms)",
    "memory_mib": "memory in inference (MiB)",
    "checkpoint_mb": "checkpoint (MB)",
    "training_s": "training (s)",
}
FROM_CELLS = {
    "image_AUROC": "image_AUROC",
    "checkpoint_mb": "size.checkpoint_mb",
    "training_s": "training.seconds",
}


def growth(results: Results, data: str) -> pd.DataFrame:
    """Return a data set's figures by model and share of the training images.

    Args:
        results: Cells and costs.
        data: Name of the data set.

    Returns:
        Table of ``model``, ``fraction``, ``image_AUROC`` (in [0, 1]), ``latency_ms`` and ``memory_mib`` (medians at
        batch 1, of torch in f32), ``checkpoint_mb`` and ``training_s``, of models with cells at more than one fraction.
        A model's means are over the categories and seeds that it has at all of its fractions. Empty where nothing grew.
    """
    cells = results.cells[(results.cells["data"] == data) & (results.cells["status"] == "done")]
    costs = results.single_f32(data).query("engine == 'torch'")
    rows = []
    for model, of_model in cells.groupby("model", sort=False):
        fractions = sorted(of_model["fraction"].unique())
        counts = of_model.groupby(["category", "seed"])["fraction"].transform("nunique")
        shared = of_model[counts == len(fractions)]
        if len(fractions) < 2 or shared.empty:  # noqa: PLR2004
            continue
        for fraction in fractions:
            here = shared[shared["fraction"] == fraction]
            timed = costs[(costs["model"] == model) & (costs["fraction"] == fraction)]
            figures = {
                name: found[str(model)].value if (found := means(here, column)) else np.nan
                for name, column in FROM_CELLS.items()
            }
            figures |= {"latency_ms": timed["median_ms"].median(), "memory_mib": timed["peak_memory_mib"].median()}
            rows.append({"model": model, "fraction": fraction, **figures})
    return pd.DataFrame(rows, columns=["model", "fraction", *MEASURES])
