# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Figures of the report."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter, ScalarFormatter
from sklearn.metrics import roc_curve

from .config import slug
from .report_cells import Results, read_arrays
from .report_document import Figure
from .report_growth import MEASURES, growth
from .report_means import means

# Okabe and Ito's colours, told apart by most colour-blind readers; shapes and lines tell the rest
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
SHAPES = "osD^vP*"  # as many as have no divisor in common with the colours
LINES = ("-", "--", "-.", ":")
ENGINES = {"torch": "full", "openvino": "none"}
PRO_LIMIT = 0.3
GRID = np.linspace(0, 1, 1001)
DPI = 120


class Style:
    """A colour, shape and line for each model, the same in all figures.

    Args:
        models: Names of all models of the report.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self.order = {model: index for index, model in enumerate(models)}

    def colour(self, model: str) -> str:
        """Return the model's colour."""
        return COLOURS[self.order[model] % len(COLOURS)]

    def shape(self, model: str) -> str:
        """Return the model's marker."""
        return SHAPES[self.order[model] % len(SHAPES)]

    def line(self, model: str) -> str:
        """Return the model's line style."""
        index = self.order[model]
        return LINES[(index + index // len(COLOURS)) % len(LINES)]


def pareto(results: Results, data: str, style: Style, folder: Path) -> Figure | None:
    """Draw accuracy against latency, with the front of models that no other beats in both.

    Args:
        results: Cells and costs.
        data: Name of the data set.
        style: Looks of the models.
        folder: Where to put the file.

    Returns:
        The figure, or nothing where no model has both figures.
    """
    cells = results.done(data)
    accuracy = {model: mean.value for model, mean in means(cells, "image_AUROC").items() if mean.is_complete}
    costs = results.single_f32(data)
    costs = costs[costs["fraction"] == results.share(data)]
    times = costs[costs["model"].isin(list(accuracy))].groupby(["model", "engine"])["median_ms"].median().dropna()
    if times.empty:
        return None
    points = times.rename("ms").reset_index().assign(accuracy=lambda table: table["model"].map(accuracy))
    front = pareto_front(points)
    canvas = Canvas(figsize=(7, 5), dpi=DPI, layout="constrained")
    axes = canvas.add_subplot()
    axes.step(front["ms"], front["accuracy"], where="post", color="0.6", linewidth=1.2, zorder=1, label="Pareto front")
    for point in points.itertuples():
        axes.plot(
            point.ms,
            point.accuracy,
            linestyle="none",
            marker=style.shape(point.model),
            fillstyle=ENGINES.get(point.engine, "left"),
            color=style.colour(point.model),
            markersize=9,
            label=f"{point.model}, {point.engine}",
        )
    axes.set(xscale="log", xlabel="latency of one image, median (ms)", ylabel="image AUROC")
    axes.margins(0.12)
    _plain_numbers(axes.xaxis)
    _finish(axes)
    canvas.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    listed = "; ".join(f"{p.model} with {p.engine} {p.accuracy:.3f} at {p.ms:.1f} ms" for p in points.itertuples())
    on_front = ", ".join(f"{p.model} with {p.engine}" for p in front.itertuples())
    return _save(
        canvas,
        folder / slug(f"{data}_pareto.png"),
        alt=f"Image AUROC against latency on {data}: {listed}. On the front: {on_front}.",
        caption=(
            "Image AUROC against latency at batch 1 in f32; up and to the left is better. No model beats one on the "
            "front in both. Accuracy was measured with torch and is taken to hold for OpenVINO in f32, not for bf16 "
            "and INT8, which are in the table below only."
        ),
    )


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points that no other beats in both, fastest first.

    Args:
        points: Rows with ``ms`` and ``accuracy``.
    """
    points = points.sort_values(["ms", "accuracy"], ascending=[True, False])
    return points[points["accuracy"] > points["accuracy"].cummax().shift(fill_value=-np.inf)]


def curves(results: Results, data: str, style: Style, folder: Path) -> Figure | None:
    """Draw image ROC, pixel ROC and PRO curves.

    Args:
        results: Cells and their scores.
        data: Name of the data set.
        style: Looks of the models.
        folder: Where to put the file.

    Returns:
        The figure, or nothing where there is no curve.
    """
    cells = results.done(data)
    drawn: dict[str, dict[str, list[np.ndarray]]] = {"image ROC": {}, "pixel ROC": {}, "PRO": {}}
    scored = set(results.with_scores(data)["folder"])
    for cell in cells.itertuples():
        arrays = read_arrays(cell.folder / "curves.npz")
        if cell.folder in scored:
            scores = results.scores[cell.folder]
            fpr, tpr, _ = roc_curve(scores["label"], scores["score"])
            drawn["image ROC"].setdefault(cell.model, []).append(_on_grid(fpr, tpr, 1))
        for name, x, y, limit in (("pixel ROC", "pixel_fpr", "pixel_tpr", 1), ("PRO", "pro_fpr", "pro", PRO_LIMIT)):
            if len(arrays.get(x, ())) and len(arrays.get(y, ())):
                drawn[name].setdefault(cell.model, []).append(_on_grid(arrays[x], arrays[y], limit))
    panels = {name: by_model for name, by_model in drawn.items() if by_model}
    if not panels:
        return None
    canvas = Canvas(figsize=(3.4 * len(panels), 3.9), dpi=DPI, layout="constrained")
    for axes, (name, by_model) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        limit = PRO_LIMIT if name == "PRO" else 1
        for model, lines in by_model.items():
            axes.plot(GRID * limit, np.mean(lines, axis=0), style.line(model), color=style.colour(model), label=model)
        axes.set(title=name, xlabel="false-positive rate", xlim=(0, limit), ylim=(0, 1.01))
        axes.set_ylabel("mean overlap of regions" if name == "PRO" else "true-positive rate")
        _finish(axes)
    handles = {
        label: line for axes in canvas.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    canvas.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    models = ", ".join(handles)
    return _save(
        canvas,
        folder / slug(f"{data}_curves.png"),
        alt=f"{', '.join(panels)} curves of {models} on {data}; the areas below them are in the tables above.",
        caption="Means of the curves of all categories and seeds at equal false-positive rate.",
    )


def growth_curves(results: Results, data: str, style: Style, folder: Path) -> Figure | None:
    """Draw accuracy, latency, size and training time against the share of the training images.

    Args:
        results: Cells and costs.
        data: Name of the data set.
        style: Looks of the models.
        folder: Where to put the file.

    Returns:
        The figure, or nothing where all cells train on all images.
    """
    table = growth(results, data)
    measures = [name for name in MEASURES if table[name].notna().any()]
    if table.empty or not measures:
        return None
    rows = -(-len(measures) // 2)
    canvas = Canvas(figsize=(7.4, 2.6 * rows + 0.5), dpi=DPI, layout="constrained")
    for axes, name in zip(canvas.subplots(rows, 2, squeeze=False).flat, measures, strict=False):
        for model, of_model in table.groupby("model", sort=False):
            look = {"marker": style.shape(model), "color": style.colour(model), "markersize": 6}
            axes.plot(of_model["fraction"], of_model[name], style.line(model), label=model, **look)
        axes.set_xscale("log", base=2)
        shares = sorted(table["fraction"].unique())
        axes.set_xticks(shares, [str(Fraction(share).limit_denominator(1000)) for share in shares])
        axes.set(xlabel="share of the training images", ylabel=MEASURES[name])
        if name != "image_AUROC":
            axes.set_ylim(bottom=0)
        _finish(axes)
    for axes in canvas.axes[len(measures) :]:
        axes.set_axis_off()
    lines, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _save(
        canvas,
        folder / slug(f"{data}_growth.png"),
        alt=f"{', '.join(MEASURES[name] for name in measures)} of {', '.join(labels)} on {data} against the share "
        "of the training images; the figures are in the table below.",
        caption="Latency and memory in inference, where timed, are those of one image with torch in f32.",
    )


def training_curves(points: pd.DataFrame, data: str, style: Style, folder: Path) -> Figure | None:
    """Draw accuracy against the time of training.

    Args:
        points: As :func:`~anomalib_dskd.benchmark.report_training.training` returns it.
        data: Name of the data set.
        style: Looks of the models.
        folder: Where to put the file.

    Returns:
        The figure, or nothing where nothing was tested before its end.
    """
    if points.empty:
        return None
    canvas = Canvas(figsize=(7, 4.5), dpi=DPI, layout="constrained")
    axes = canvas.add_subplot()
    ends = []
    for model, of_model in points.groupby("model", sort=False):
        (line,) = axes.plot(of_model["seconds"] / 60, of_model["image_AUROC"], style.line(str(model)), label=model)
        line.set(marker=style.shape(str(model)), color=style.colour(str(model)), markersize=6)
        end = of_model.iloc[-1]
        ends.append(f"{model} {end['image_AUROC']:.3f} after {end['seconds'] / 60:.1f} minutes")
    axes.set(xlabel="training (minutes)", ylabel="image AUROC")
    axes.set_xlim(left=0)
    _finish(axes)
    axes.legend(frameon=False, fontsize=9)
    return _save(
        canvas,
        folder / slug(f"{data}_training.png"),
        alt=f"Image AUROC on {data} in the course of training: {'; '.join(ends)}.",
        caption=(
            "Accuracy of the test images in the course of training, means over categories and seeds. Each model is on "
            "its way through a schedule of its own length, and nothing is chosen by these figures."
        ),
    )


def _on_grid(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Return a curve's values on a grid from 0 to a limit; where it rises at one place, the upper end."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    order = np.lexsort((y, x))
    table = pd.Series(y[order]).groupby(x[order]).max()
    return np.interp(GRID * limit, table.index, table.to_numpy())


def _plain_numbers(axis) -> None:  # noqa: ANN001 (matplotlib's axes are untyped)
    """Write 20 rather than a power of ten."""
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(formatter if high < 10 * low else NullFormatter())


def _finish(axes) -> None:  # noqa: ANN001
    """Take away what no one reads."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(canvas: Canvas, path: Path, alt: str, caption: str) -> Figure:
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path)
    return Figure(path, alt, caption)
