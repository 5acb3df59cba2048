# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Tables of the report: accuracy, cost, growth, and what failed."""

from fractions import Fraction

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from .report_cells import Results
from .report_difference import Bootstrap, interval
from .report_document import Entry, Row, Table
from .report_growth import MEASURES
from .report_means import best, means

IMAGE_METRICS = {
    "image_AUROC": "AUROC",
    "image_AP": "AP",
    "image_F1max": "F1-max",
    "image_FPR95": "false alarms at 95 % recall",
    "image_FPR100": "false alarms at 100 % recall",
}
PIXEL_METRICS = {
    "pixel_AUROC": "AUROC",
    "pixel_AP": "AP",
    "pixel_F1max": "F1-max",
    "AUPRO_30": "AUPRO to 30 %",
    "AUPRO_5": "AUPRO to 5 %",
    "core_recall": "recall in the core of large defects",
    "ring_false_alarms": "false alarms around small defects",
}
LOW_IS_GOOD = {"image_FPR95", "image_FPR100", "ring_false_alarms"}
BY_CATEGORY = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC", "AUPRO_30": "AUPRO to 30 %"}
# what anomalib's evaluator calls the figures, and their nearest relatives among ours
ANOMALIB = {
    "image_AUROC": "image_AUROC",
    "image_F1Score": "image_F1max",
    "image_F1Max": "image_F1max",
    "image_AUPR": "image_AP",
    "pixel_AUROC": "pixel_AUROC",
    "pixel_F1Score": "pixel_F1max",
    "pixel_F1Max": "pixel_F1max",
    "pixel_AUPR": "pixel_AP",
    "pixel_AUPRO": "AUPRO_30",
    "AUPRO": "AUPRO_30",
}
COSTS = {
    "p99_ms": "p99",
    "images_per_second": "images/s",
    "ratio": "ratio",
    "ratio_to_torch": "ratio to torch",
    "file_to_verdict_ms": "file to verdict",
    "peak_memory_mib": "peak memory (MiB)",
    "exported_mb": "exported (MB)",
    "map_error": "map error",
    "rounds": "rounds",
}
GROWTH_DIGITS = {"image_AUROC": 3, "latency_ms": 1, "memory_mib": 0, "checkpoint_mb": 1, "training_s": 0}
DIGITS = {"ratio": 2, "ratio_to_torch": 2, "map_error": 5, "rounds": 0}
SIZES = {
    "size.parameters": ("parameters (M)", 1e-6, 2),
    "size.gmacs": ("GMACs", 1.0, 2),
    "training.seconds": ("training (s)", 1.0, 0),
    "training.peak_memory_mib": ("peak memory in training (MiB)", 1.0, 0),
    "training.peak_gpu_memory_mib": ("of the GPU (MiB)", 1.0, 0),
    "size.checkpoint_mb": ("checkpoint (MB)", 1.0, 1),
    "size.bank_mb": ("memory bank (MB)", 1.0, 1),
}


def accuracy(results: Results, data: str, metrics: dict[str, str], caption: str) -> Table | None:
    """Return a data set's headline table, a row a model.

    Args:
        results: Cells.
        data: Name of the data set.
        metrics: Metrics and the heads of their columns.
        caption: What the table shows.

    Returns:
        The table, or nothing where no cell has any of the metrics.
    """
    cells = results.whole(data)
    done = cells[cells["status"] == "done"]
    figures = {metric: found for metric in metrics if (found := means(done, metric))}
    if not figures:
        return None
    winners = {
        metric: best({name: mean.value for name, mean in found.items() if mean.is_complete}, metric in LOW_IS_GOOD)
        for metric, found in figures.items()
    }
    rows = []
    for model in cells["model"].unique():
        of_model = cells[cells["model"] == model]
        finished = of_model[of_model["status"] == "done"]
        entries = [
            Entry(found[model].text() if model in found else "", model in winners[metric])
            for metric, found in figures.items()
        ]
        note = "" if len(finished) else _why_blank(of_model)
        cells_done = Entry(f"{len(finished)} of {len(of_model)}")
        rows.append(Row(model, [*entries, cells_done], mark=not_converged(finished), note=note))
    return Table(caption, ["model", *(metrics[metric] for metric in figures), "cells done"], rows)


def differences(results: Results, data: str, bootstrap: Bootstrap) -> Table | None:
    """Return how far each model's image AUROC is from Dskd's, or from the best one's where Dskd has none.

    Args:
        results: Cells and their scores.
        data: Name of the data set.
        bootstrap: As in :func:`~anomalib_dskd.benchmark.report_difference.interval`.
    """
    figures = means(results.done(data), "image_AUROC")
    if len(figures) < 2:  # noqa: PLR2004
        return None
    reference = "Dskd" if "Dskd" in figures else max(figures, key=lambda model: figures[model].value)
    found = {model: interval(results, data, model, reference, bootstrap) for model in figures if model != reference}
    rows = [
        Row(
            model,
            [
                Entry(f"{value.difference:+.3f}"),
                Entry(f"{value.low:+.3f} to {value.high:+.3f}"),
                Entry("yes" if value.low > 0 or value.high < 0 else "no"),
                Entry(str(value.categories)),
            ],
        )
        for model, value in found.items()
        if value is not None
    ]
    caption = (
        f"Image AUROC minus that of {reference}, with the 95 % interval of a paired bootstrap over the test images. It "
        "says what other test images of the same kind would change; what another seed would change is the spread "
        "above. Means over the categories and seeds that both models have; bounds of several categories are combined "
        "by their squares, those of several seeds averaged."
    )
    columns = ["model", f"minus {reference}", "95 % interval", "excludes 0", "categories"]
    return Table(caption, columns, rows) if rows else None


def by_category(results: Results, data: str, metric: str, name: str) -> Table | None:
    """Return a metric by category and model, or nothing where there is one category only.

    Args:
        results: Cells.
        data: Name of the data set.
        metric: The metric.
        name: What it is called.
    """
    done = results.done(data)
    if metric not in done or done.dropna(subset=[metric])["category"].nunique() < 2:  # noqa: PLR2004
        return None
    models = list(done.dropna(subset=[metric])["model"].unique())
    rows = []
    for category, cells in done.groupby("category"):
        figures = means(cells, metric)
        winners = best({model: mean.value for model, mean in figures.items()}, metric in LOW_IS_GOOD)
        texts = {model: figures[model].text() + _star(cells, model) for model in figures}
        rows.append(Row(str(category), [Entry(texts.get(model, ""), model in winners) for model in models]))
    starred = any(entry.text.endswith("*") for row in rows for entry in row.entries)
    caption = f"{name} by category, mean ± standard deviation over seeds." + (" * not converged." if starred else "")
    return Table(caption, ["category", *models], rows)


def by_class(results: Results, data: str) -> Table | None:
    """Return the image AUROC of each class of defects against all normal images.

    Args:
        results: Cells and their scores.
        data: Name of the data set.
    """
    found = []
    for cell in results.with_scores(data).itertuples():
        scores = results.scores[cell.folder]
        normal = scores[scores["label"] == 0]
        for kind, defective in scores[scores["label"] == 1].groupby("class"):
            both = pd.concat([normal, defective])
            area = roc_auc_score(both["label"], both["score"])
            found.append((f"{cell.category}: {kind}", cell.model, len(defective), area))
    table = pd.DataFrame(found, columns=["kind", "model", "images", "area"])
    if table["kind"].nunique() < 2:  # noqa: PLR2004
        return None
    models = list(table["model"].unique())
    rows = []
    for kind, group in table.groupby("kind"):
        figures = group.groupby("model")["area"].mean().to_dict()
        winners = best(figures, low_is_good=False)
        entries = [Entry(f"{figures[name]:.3f}" if name in figures else "", name in winners) for name in models]
        rows.append(Row(str(kind), [Entry(str(group["images"].max())), *entries]))
    caption = "Image AUROC of each class of defects against all normal test images of its category, mean over seeds."
    return Table(caption, ["class", "images", *models], rows)


def beside_anomalib(results: Results, data: str) -> Table | None:
    """Return this report's figures beside those of anomalib's own evaluator for the same runs.

    Args:
        results: Cells.
        data: Name of the data set.
    """
    done = results.done(data)
    theirs = [name for name in done.columns if name.startswith("anomalib.") and done[name].notna().any()]
    rows = []
    for model in done["model"].unique():
        cells = done[done["model"] == model]
        for column in theirs:
            name = column.removeprefix("anomalib.")
            ours = ANOMALIB.get(name, name)
            values = cells[[column, *([ours] if ours in cells else [])]].dropna().mean()
            if column in values and np.isfinite(values[column]):
                gap = values.get(ours, np.nan) - values[column]
                entries = [
                    name,
                    f"{values[column]:.3f}",
                    ours,
                    _number(values.get(ours, np.nan), 3),
                    _number(gap, 3, "+"),
                ]
                rows.append(Row(model, [Entry(text) for text in entries]))
    caption = (
        "anomalib's own evaluator on the same runs, mean over the cells that have both. anomalib ranks normalised "
        "scores, which most models clamp to 0 and 1, so that images tie; its F1 score is at the threshold chosen on "
        "the validation images, F1-max at the best one for the test images. All validation images are normal, so that "
        "threshold is about their highest score: an outlier among them can hide every defect."
    )
    columns = ["model", "anomalib's metric", "anomalib", "ours", "value", "ours minus anomalib"]
    return Table(caption, columns, rows) if rows else None


def size_and_training(results: Results, data: str) -> Table | None:
    """Return size, training time and memory, a row a model.

    Args:
        results: Cells.
        data: Name of the data set.
    """
    cells = results.whole(data)
    cells = cells[cells["status"] != "failed"]
    figures = {column: found for column in SIZES if (found := means(cells, column))}
    if not figures:
        return None
    rows = []
    for model in cells["model"].unique():
        values = {column: found[model].value * SIZES[column][1] for column, found in figures.items() if model in found}
        if values:
            entries = [Entry(_number(values.get(column, np.nan), SIZES[column][2])) for column in figures]
            blank = (cells[cells["model"] == model]["status"] == "no_teacher").all()
            rows.append(Row(model, entries, mark="random weights" if blank else ""))
    caption = "Size, training time and memory: means over categories and seeds."
    return Table(caption, ["model", *(SIZES[column][0] for column in figures)], rows)


def latency(results: Results, data: str) -> Table | None:
    """Return latency and throughput, grouped by engine, precision and batch.

    Args:
        results: Costs.
        data: Name of the data set.
    """
    costs = results.costs[(results.costs["data"] == data) & (results.costs["fraction"] == results.share(data))]
    if costs.empty:
        return None
    numbers = ["median_ms", "q1_ms", "q3_ms", *(name for name in COSTS if name in costs and costs[name].notna().any())]
    rows = []
    for (engine, precision, batch), group in costs.groupby(["engine", "precision", "batch"], sort=False):
        table = group.groupby("model", sort=False)[numbers].median()
        fastest = best(table["median_ms"].to_dict(), low_is_good=True, digits=1)
        for model, values in table.iterrows():
            of_model = group[group["model"] == model]
            if np.isnan(values["median_ms"]):
                reason = next(iter(of_model["error"].dropna()), "not measured")
                note = f"{engine} {precision}, batch {batch}: {last_line(str(reason))}"
                rows.append(Row(str(model), note=note))
                continue
            quartiles = f"{_number(values['q1_ms'], 1)} to {_number(values['q3_ms'], 1)}"
            entries = [
                Entry(f"{engine} {precision}"),
                Entry(f"{batch}, best" if of_model["best_batch"].astype(bool).any() else str(batch)),
                Entry(_number(values["median_ms"], 1), model in fastest),
                Entry(quartiles),
                *(Entry(_number(values[name], DIGITS.get(name, 1))) for name in numbers[3:]),
            ]
            mark = "random weights" if of_model["random_weights"].astype(bool).any() else ""
            rows.append(Row(str(model), entries, mark=mark))
    several = len(set(costs["category"])) > 1
    reference = next(iter(costs["reference"].dropna()), costs["model"].iloc[0])
    caption = (
        "Time for a batch in milliseconds (median, quartiles, 99th percentile), throughput, its ratio to "
        f"{reference}'s and to the same model's in torch f32, each the median over rounds in which both "
        "ran and so what to compare, and the time from a file on the disk to a verdict. Peak memory is what loading "
        "and a prediction need; the map error is the mean absolute difference to torch in f32 as a share of the map's "
        "mean; of fewer than 100 rounds the 99th percentile is between the two slowest."
        + (" Medians over categories." if several else "")
        + " Best of each group in bold, and of each model's batches the one with the highest throughput named."
    )
    columns = ["model", "engine", "batch", "median", "quartiles", *(COSTS[name] for name in numbers[3:])]
    return Table(caption, columns, rows)


def growth_table(growth: pd.DataFrame) -> Table:
    """Return what grows with the number of training images.

    Args:
        growth: As :func:`~anomalib_dskd.benchmark.report_growth.growth` returns it.
    """
    measured = [name for name in MEASURES if growth[name].notna().any()]
    rows = [
        Row(
            row["model"],
            [
                Entry(str(Fraction(row["fraction"]).limit_denominator(1000))),
                *(Entry(_number(row[name], GROWTH_DIGITS[name])) for name in measured),
            ],
        )
        for _, row in growth.iterrows()
    ]
    columns = ["model", "training images", *(MEASURES[name] for name in measured)]
    caption = (
        "Growth with the share of the training images: means over the categories and seeds that have all of a model's "
        "shares."
    )
    return Table(caption, columns, rows)


def without_result(results: Results) -> Table | None:
    """Return the cells that failed and the models that cannot take the teacher, with the reason."""
    cells = results.cells
    failed = cells[~cells["status"].isin(["done", "no_teacher"])]
    rows = [Row(cell_name(cell), note=f"{cell.status}: {last_line(cell.reason)}") for cell in failed.itertuples()]
    refused = cells[cells["status"] == "no_teacher"].fillna({"reason": ""})
    for (data, model, reason), group in refused.groupby(["data", "model", "reason"], sort=False):
        count = f"{len(group)} cells" if len(group) > 1 else "1 cell"
        rows.append(Row(f"{model}, {data}, {count}", note=f"cannot take the teacher: {last_line(reason)}"))
    return Table("Cells without accuracy.", ["cell", "what happened"], rows) if rows else None


def cell_name(cell) -> str:  # noqa: ANN001 (a named tuple of pandas)
    """Return what a cell is called in the report."""
    share = "" if cell.fraction == 1 else f" on {Fraction(cell.fraction).limit_denominator(1000)} of the images"
    return f"{cell.model}{share}, {cell.data}/{cell.category}, seed {cell.seed}"


def not_converged(cells: pd.DataFrame) -> str:
    """Return the mark of a model some of whose cells were still improving at the end, or nothing."""
    count = int((cells["converged"] == False).sum())  # noqa: E712 (None and NaN are neither)
    return f"not converged: {count} of {len(cells)}" if count else ""


def last_line(reason: object) -> str:
    """Return the last line of an error, which names it."""
    lines = reason.strip().splitlines() if isinstance(reason, str) else []
    return lines[-1].strip() if lines else "no reason was left"


def _why_blank(cells: pd.DataFrame) -> str:
    """Return why a model has no figures."""
    refused = cells[cells["status"] == "no_teacher"]
    if len(refused):
        return f"cannot take the teacher: {last_line(refused['reason'].iloc[0])}"
    return f"failed: {last_line(cells['reason'].iloc[0])}"


def _star(cells: pd.DataFrame, model: str) -> str:
    """Return a star for a model that has not converged."""
    return " *" if not_converged(cells[cells["model"] == model]) else ""


def _number(value: float, digits: int, sign: str = "") -> str:
    """Return a number, or nothing for NaN."""
    return "" if np.isnan(value) else f"{value:{sign},.{digits}f}"
