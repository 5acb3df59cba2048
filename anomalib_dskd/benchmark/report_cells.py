# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Read what the harness has left on the disk."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from anomalib_dskd.errors import DskdError

from .config import SCHEMA
from .store import PARTIAL

IDENTITY = ["data", "category", "model", "fraction", "seed"]
# columns that stand in the table whether or not a cell has them
ALWAYS = [*IDENTITY, "status", "reason", "converged", "digest", "image_AUROC", "training.seconds"]
COST_COLUMNS = {
    "data": "",
    "category": "",
    "model": "",
    "fraction": 1.0,
    "engine": "",
    "precision": "",
    "batch": 1,
    "median_ms": np.nan,
    "q1_ms": np.nan,
    "q3_ms": np.nan,
    "p99_ms": np.nan,
    "images_per_second": np.nan,
    "file_to_verdict_ms": np.nan,
    "peak_memory_mib": np.nan,
    "best_batch": False,
    "random_weights": False,
    "reference": None,
    "error": None,
}


@dataclass(frozen=True)
class Results:
    """What there is to report.

    Args:
        cells: A row a cell: data, category, model, fraction, seed, status, reason, converged, metrics under their own
            names, and ``error.*`` (their bounds), ``anomalib.*``, ``training.*`` and ``size.*`` columns; ``config`` and
            ``folder`` as objects.
        scores: Table of path, label (1 for anomalous), class, raw score and the mask's path (empty where there is
            none), for each folder of a cell that has one.
        costs: A row a measurement of latency.
        environments: Names and versions, of each different place where cells ran and of each data set's costs.
        started: When the run began, or nothing.
        finished: When it ended, or nothing.
        unreadable: What could not be used, and why.
        others: Number of cells in the folder that are of other configurations, and left out.
        missing: Number of cells that are still to be run.
    """

    cells: pd.DataFrame
    scores: dict[Path, pd.DataFrame]
    costs: pd.DataFrame
    environments: dict[str, dict[str, Any]]
    started: str = ""
    finished: str = ""
    unreadable: list[str] = field(default_factory=list)
    others: int = 0
    missing: int = 0

    def share(self, data: str) -> float:
        """Return the largest share of the training images that a data set's cells train on, mostly all."""
        tables = (self.cells, self.costs)
        return float(max(share for each in tables for share in each.loc[each["data"] == data, "fraction"]))

    def whole(self, data: str) -> pd.DataFrame:
        """Return a data set's cells that train on the largest share, whatever became of them."""
        return self.cells[(self.cells["data"] == data) & (self.cells["fraction"] == self.share(data))]

    def done(self, data: str) -> pd.DataFrame:
        """Return the finished ones among a data set's cells that train on the largest share of the images."""
        cells = self.whole(data)
        return cells[cells["status"] == "done"]

    def with_scores(self, data: str) -> pd.DataFrame:
        """Return those of :meth:`done` that have scores of normal and of anomalous images."""
        cells = self.done(data)
        both = [folder for folder, scores in self.scores.items() if set(scores["label"]) == {0, 1}]
        return cells[cells["folder"].isin(both)]

    def single_f32(self, data: str) -> pd.DataFrame:
        """Return a data set's costs at batch 1 in f32, for all fractions of the training images."""
        costs = self.costs
        return costs[(costs["data"] == data) & (costs["precision"] == "f32") & (costs["batch"] == 1)]


def read_results(out: Path, digests: Collection[str] | None = None) -> Results:
    """Read what the harness has finished.

    Args:
        out: Folder with ``cells``, ``costs`` and ``run.json``, each of which may be absent. A cell without
            ``cell.json`` is not finished and is passed over; a file that cannot be used is named in ``unreadable``.
        digests: Digests of the cells to report. Defaults to those of all cells in the folder.

    Returns:
        Cells sorted with Dskd first, costs, and where they were measured.
    """
    unreadable: list[str] = []
    rows, scores, others = [], {}, 0
    environments: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("cells/*/*/*/seed*/cell.json")):
        if path.parent.suffix == PARTIAL:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if digests is not None and content["digest"] not in digests:
                others += 1
                continue
            rows.append(_row(path, content))
            _add_environment(environments, content.get("environment") or {})
            if (path.parent / "scores.csv").is_file():
                scores[path.parent] = _scores(path.parent / "scores.csv")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable.append(f"{path.relative_to(out).parent}: {type(error).__name__}: {error}")
    cells = pd.DataFrame(rows, columns=None if rows else [*ALWAYS, "config", "folder"])
    cells = cells.reindex(columns=[*ALWAYS, *(name for name in cells.columns if name not in ALWAYS)])
    cells["rank"] = ~cells["model"].astype(str).str.startswith("Dskd")
    cells = cells.sort_values(
        ["data", "category", "rank", "model", "fraction", "seed"], ascending=[True] * 4 + [False, True]
    )

    costs: list[dict[str, Any]] = []
    times: dict[str, Any] = {}
    for path in [*out.glob("run.json"), *sorted(out.glob("costs/*.json"))]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            times.update(content if path.name == "run.json" else {})
            measured = [row for row in content.get("rows", []) if digests is None or row["cell"] in digests]
            if measured:
                environments[f"timing of {path.stem}"] = dict(content.get("environment") or {})
            costs += [dict(row) for row in measured]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # noqa: PERF203
            unreadable.append(f"{path.relative_to(out)}: {type(error).__name__}: {error}")
    costs = [{**COST_COLUMNS, **{name: value for name, value in row.items() if value is not None}} for row in costs]
    return Results(
        cells=cells.drop(columns="rank").reset_index(drop=True),
        scores=scores,
        costs=pd.DataFrame(costs, columns=None if costs else list(COST_COLUMNS)),
        environments=environments,
        started=str(times.get("started") or ""),
        finished=str(times.get("finished") or ""),
        unreadable=unreadable,
        others=others,
        missing=max(0, len(digests) - len(rows)) if digests is not None else 0,
    )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, or none where there is no such file.

    Raises:
        DskdError: If the file is broken, or holds anything but numbers; such a file is not unpickled.
    """
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile) as error:
        msg = f"{path} cannot be read: {error}. Delete {path.parent} and run the benchmark again; it repeats that cell."
        raise DskdError(msg) from error


def _add_environment(environments: dict[str, dict[str, Any]], environment: dict[str, Any]) -> None:
    """Note where a cell ran, once for each different place; how busy that was differs from cell to cell."""
    environment = {name: value for name, value in environment.items() if name != "load"}
    if environment and environment not in environments.values():
        environments[f"cells, {len(environments) + 1}" if environments else "cells"] = environment


def _row(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return a cell as a flat row."""
    if content["schema"] != SCHEMA:
        msg = f"schema {content['schema']!r} instead of {SCHEMA}; another version wrote it"
        raise ValueError(msg)
    row = {name: content["cell"][name] for name in IDENTITY}
    row |= {name: content.get(name) for name in ("status", "reason", "converged", "digest")}
    prefixes = {"metrics": "", "metric_errors": "error.", "anomalib_metrics": "anomalib."}
    for prefix in (*prefixes, "training", "size"):
        start = prefixes.get(prefix, f"{prefix}.")
        values = content.get(prefix) or {}
        row |= {f"{start}{name}": np.nan if value is None else float(value) for name, value in values.items()}
    return {**row, "fraction": float(row["fraction"]), "config": content.get("config") or {}, "folder": path.parent}


def _scores(path: Path) -> pd.DataFrame:
    """Return the raw scores of a cell's test images."""
    scores = pd.read_csv(
        path, dtype={"path": str, "class": str, "mask": str}, keep_default_na=False, na_values={"score": ["", "nan"]}
    )
    scores["label"] = scores["label"].astype(int)
    scores["mask"] = scores.get("mask", "")
    scores["score"] = scores["score"].astype(float)
    if not np.isfinite(scores["score"]).all():
        msg = f"{path.name} holds scores that are not finite"
        raise ValueError(msg)
    if scores["path"].duplicated().any():
        msg = f"{path.name} names an image twice"
        raise ValueError(msg)
    return scores
