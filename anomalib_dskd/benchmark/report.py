# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Write what a benchmark found: a table for machines, one for people, and a page to look at."""

import json
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from anomalib_dskd.errors import DskdError

from .bootstrap import paired_bootstrap
from .report_cells import Results, read_results
from .report_difference import Bootstrap
from .report_document import Block, Entry, Listing, Row, Section, Table, Text, render
from .report_gallery import gallery
from .report_growth import growth
from .report_plots import Style, curves, growth_curves, pareto, training_curves
from .report_tables import (
    BY_CATEGORY,
    IMAGE_METRICS,
    PIXEL_METRICS,
    accuracy,
    beside_anomalib,
    by_category,
    by_class,
    cell_name,
    differences,
    growth_table,
    latency,
    size_and_training,
    without_result,
)
from .report_training import time_to_accuracy, training

TITLE = "Benchmark of anomaly detection models"


def write_report(out: Path, command: str, digests: Collection[str] | None = None) -> None:
    """Write ``results.csv``, ``report.md`` with its ``figures``, and ``report.html``.

    Any part of the run may be missing: the report says what there is.

    Args:
        out: Folder in which the harness has left ``cells``, ``costs`` and ``run.json``; the report is written there.
        command: The command that ran the benchmark, as it can be repeated.
        digests: Digests of the cells to report. Defaults to those of all cells in the folder.

    Raises:
        DskdError: If there is no such folder, or a cell's arrays are broken.
    """
    if not out.is_dir():
        msg = f"{out} is not a folder. Give the folder that 'anomalib-dskd benchmark --out' wrote to."
        raise DskdError(msg)
    results = read_results(out, digests)
    results.cells.drop(columns=["config", "folder"]).assign(
        folder=[folder.relative_to(out).as_posix() for folder in results.cells["folder"]]
    ).to_csv(out / "results.csv", index=False)
    sections = _sections(results, command, out / "figures", paired_bootstrap)
    for name in ("report.md", "report.html"):
        (out / name).write_text(render(name, TITLE, sections, out), encoding="utf-8")


def _sections(results: Results, command: str, figures: Path, bootstrap: Bootstrap) -> list[Section]:
    cells = results.cells
    style = Style(_by_rank(cells["model"]))
    sections = [_overview(results, command)]
    for data in dict.fromkeys([*cells["data"], *results.costs["data"]]):
        sections += _data_set(results, str(data), style, figures, bootstrap)
    failures: list[Block] = [table] if (table := without_result(results)) else []
    failures += [
        Listing(cell_name(cell), cell.reason.strip())
        for cell in cells[cells["status"] != "done"].itertuples()
        if isinstance(cell.reason, str) and "\n" in cell.reason.strip()
    ]
    if results.unreadable:
        failures.append(Listing("What was left out, since it could not be read", "\n".join(results.unreadable)))
    if failures:
        sections.append(Section("Failures and refusals", failures))
    return [*sections, _how(results)]


def _overview(results: Results, command: str) -> Section:
    cells = results.cells
    done = cells[cells["status"] == "done"]
    counts = [
        f"{len(cells)} cells (one model on one category with one seed)",
        f"{len(done)} done, of which {int((done['converged'] == False).sum())} had not converged",  # noqa: E712
        f"{int((cells['status'] == 'failed').sum())} failed",
        f"{int((cells['status'] == 'no_teacher').sum())} cannot take the teacher",
    ]
    blocks: list[Block] = [Text("; ".join(counts) + ".")]
    if results.missing:
        blocks.append(Text(f"{results.missing} more are not there yet; the command goes on where it was stopped."))
    if results.unreadable:
        blocks.append(Text(f"{len(results.unreadable)} files could not be read; the last section names them."))
    if results.others:
        blocks.append(Text(f"{results.others} cells of other configurations lie in the folder and are left out."))
    blocks.append(Listing("Command", command, folded=False))
    return Section("Overview", blocks)


def _data_set(results: Results, data: str, style: Style, figures: Path, bootstrap: Bootstrap) -> list[Section]:
    """Return the sections on a data set, each only where it has something to show."""
    cells = results.whole(data)
    models = _by_rank(cells["model"])
    seeds = ", ".join(str(seed) for seed in sorted(cells["seed"].unique()))
    categories = ", ".join(sorted(map(str, cells["category"].unique())))
    intro = f"Categories: {categories}. Seeds: {seeds}."
    if (share := results.share(data)) < 1:
        intro += f" All tables are of models trained on {share:.1%} of the training images."
    means = "mean over categories, ± standard deviation over seeds; best in bold"
    shown: dict[str, list[Block | None]] = {
        "Detection of defective images": [
            accuracy(results, data, IMAGE_METRICS, f"From raw image scores: {means}. Low false alarms are good."),
            differences(results, data, bootstrap),
            by_class(results, data),
        ],
        "Localisation of defects": [
            accuracy(
                results,
                data,
                PIXEL_METRICS,
                f"From raw maps: {means}. Low false alarms are good. The last two are at the threshold with 1 % false "
                f"positives among the pixels of normal test images.{_binned(cells)}",
            )
        ],
        "Curves": [curves(results, data, style, figures)],
        "Accuracy against latency": [pareto(results, data, style, figures)],
        "Cost": [latency(results, data), size_and_training(results, data)],
        "Growth with the training images": [
            growth_curves(results, data, style, figures),
            growth_table(grown) if len(grown := growth(results, data)) else None,
        ],
        "Training": [
            training_curves(learned := training(results, data), data, style, figures),
            time_to_accuracy(learned, models[0]) if len(learned) else None,
        ],
        "Categories": [by_category(results, data, metric, name) for metric, name in BY_CATEGORY.items()],
        "Beside anomalib's own evaluator": [beside_anomalib(results, data)],
        "Gallery": [gallery(results, data, models)],
    }
    sections = [Section(title, blocks, 2) for title, parts in shown.items() if (blocks := [b for b in parts if b])]
    return [Section(data, [Text(intro)] if len(cells) else []), *sections]


def _binned(cells: pd.DataFrame) -> str:
    """Tell how far figures counted in bins can be from the exact ones, where any were."""
    bounds = cells.filter(regex=r"^error\.").max().dropna()
    if not (bounds > 0).any():
        return ""
    return f" There are too many pixels to sort: figures are counted in bins, and off by {bounds.max():.1e} at most."


def _how(results: Results) -> Section:
    """Return where and with what the figures were made."""
    blocks: list[Block] = []
    rows = []
    for data, cells in results.cells.groupby("data", sort=False):
        for model, group in cells[cells["status"] == "done"].groupby("model", sort=False):
            config = group["config"].iloc[0]
            largest = {
                name: group.get(f"training.{name}", pd.Series(dtype=float)).max()
                for name in ("epochs", "steps", "images")
            }
            entries = [
                str(data),
                *("" if pd.isna(value) else f"{value:,.0f}" for value in largest.values()),
                str(config["model"]["batch_size"]),
                "x".join(map(str, config["image_size"])),
                " ".join(str(config["teacher"][key]) for key in ("backbone", "weights") if config["teacher"][key]),
            ]
            rows.append(Row(str(model), [Entry(text) for text in entries]))
    if rows:
        columns = ["model", "data", "epochs", "steps", "training images", "batch size", "image size", "teacher"]
        blocks.append(
            Table("How each model was trained; the most epochs, steps and images of its cells.", columns, rows)
        )
    if results.environments:
        names = dict.fromkeys(name for values in results.environments.values() for name in values)
        rows = [
            Row(name, [Entry(str(values.get(name, ""))) for values in results.environments.values()]) for name in names
        ]
        blocks.append(Table("Environment.", ["", *results.environments], rows))
    times = [f"{verb} {time}" for verb, time in (("Started", results.started), ("finished", results.finished)) if time]
    if times:
        blocks.append(Text(", ".join(times) + "."))
    configs = {f"{row.model} on {row.data}": row.config for row in results.cells.itertuples() if row.config}
    if configs:
        lines = [f"{name}: {json.dumps(config, default=str)}" for name, config in configs.items()]
        blocks.append(Listing("Configurations", "\n".join(lines)))
    return Section("Environment and training", blocks)


def _by_rank(models: pd.Series) -> list[str]:
    """Return the names of models, Dskd first."""
    return sorted(models.astype(str).unique(), key=lambda name: (not name.startswith("Dskd"), name))
