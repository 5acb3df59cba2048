# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""How fast models learn."""

import numpy as np
import pandas as pd

from .report_cells import Results
from .report_document import Entry, Row, Table
from .training_curve import FILE

POINT = ["model", "step", "seconds", "image_AUROC"]


def training(results: Results, data: str) -> pd.DataFrame:
    """Return a data set's accuracy in the course of training, by model.

    Args:
        results: Cells.
        data: Name of the data set.

    Returns:
        Table of ``model``, ``step``, ``seconds`` of training and ``image_AUROC`` (in [0, 1]), each the mean over the
        categories and seeds of the model, test by test. Empty where nothing was tested before its end.
    """
    tables = []
    for cell in results.done(data).itertuples():
        path = cell.folder / FILE
        if path.is_file():
            tables.append(pd.read_csv(path).assign(model=cell.model).rename_axis("test").reset_index())
    if not tables:
        return pd.DataFrame(columns=POINT)
    points = pd.concat(tables).groupby(["model", "test"], sort=False).mean()
    return points.reset_index()[POINT]


def time_to_accuracy(points: pd.DataFrame, reference: str) -> Table | None:
    """Return how long each model trains until it is as accurate as the best of the others is at its end.

    Args:
        points: As :func:`training` returns it.
        reference: Model to which the others are compared.
    """
    last = points.groupby("model", sort=False).last()
    others = last.drop(index=reference, errors="ignore")["image_AUROC"].dropna()
    if others.empty:
        return None
    target = others.max()
    reached = points[points["image_AUROC"] >= target].groupby("model")["seconds"].min().reindex(last.index)
    rows = [
        Row(
            str(model),
            [
                Entry(f"{end.seconds / 60:.1f}"),
                Entry(f"{end.image_AUROC:.3f}"),
                Entry("not reached" if np.isnan(reached[model]) else f"{reached[model] / 60:.1f}"),
            ],
        )
        for model, end in last.iterrows()
    ]
    caption = (
        f"Training, and how long it takes to reach {target:.3f}, the image AUROC of {others.idxmax()} at its end: at "
        "the first of the tests in the course of training that is as high. Minutes without those of the tests."
    )
    columns = ["model", "minutes in all", "image AUROC at the end", f"minutes to {target:.3f}"]
    return Table(caption, columns, rows)
