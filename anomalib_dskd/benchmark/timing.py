# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Time the trained models of each data set against each other, in one process started after the last cell."""

import hashlib
import json
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from .config import Cell, slug
from .interleaved import PROCESS_ENVIRONMENT
from .process import end_with_parent, run_module
from .runner import progress_bars, show_state
from .store import WEIGHTS, is_finished, read_result, write_json

TEST_IMAGES = 16
CALIBRATION_IMAGES = 16
PROGRESS = ".progress"


def time_models(cells: Sequence[Cell], out: Path, rounds: int, console: Console) -> list[str]:
    """Write ``costs/<data>.json`` for each data set, from its first category and seed; what is there is kept.

    Args:
        cells: Cells of the benchmark, finished as far as they could be.
        out: Folder of the benchmark.
        rounds: Timed runs of each model and engine.
        console: Where to show progress.

    Returns:
        What went wrong; a model that cannot be exported is no failure but a row with its error.
    """
    problems = []
    for data, of_data in groupby(sorted(cells, key=lambda cell: cell.data), key=lambda cell: cell.data):
        timed = _choose(list(of_data), out)
        task = {"cells": [asdict(cell) for cell in timed], "rounds": rounds}
        digest = hashlib.sha256(json.dumps([rounds, *(cell.digest for cell in timed)]).encode()).hexdigest()
        target = out / "costs" / f"{slug(data)}.json"
        target.parent.mkdir(exist_ok=True)
        if not timed or (target.exists() and json.loads(target.read_text(encoding="utf-8"))["digest"] == digest):
            continue
        request = out / "costs" / f"{slug(data)}.task"
        write_json(request, {**task, "digest": digest, "target": str(target)})
        log, state = out / "logs" / f"timing-{slug(data)}.txt", request.with_suffix(PROGRESS)
        with progress_bars(console) as progress:
            bar = progress.add_task(f"timing on {data}", total=None)
            show = partial(show_state, progress, bar)
            status = run_module("anomalib_dskd.benchmark.timing", [out, request], log, state, PROCESS_ENVIRONMENT, show)
        for path in (request, state):
            path.unlink(missing_ok=True)
        if status != 0:
            problems.append(f"timing the models of {data}: its process ended with status {status}; {log} says why")
    return problems


def _choose(cells: list[Cell], out: Path) -> list[Cell]:
    """Return one cell a model and share of the images: the first category and seed, unless it failed."""
    chosen: dict[tuple[str, float], Cell] = {}
    for cell in cells:
        if is_finished(out, cell):
            chosen.setdefault((cell.model, cell.fraction), cell)
    return list(chosen.values())


def _measure(out: Path, task: dict[str, Any], state: Path) -> None:
    # here, so that the process that shows progress stays small
    from .environment import environment  # noqa: PLC0415
    from .latency import measure_latency  # noqa: PLC0415
    from .prepare import load_trained, prepare_data  # noqa: PLC0415

    cells = [Cell(**cell) for cell in task["cells"]]
    names = {f"{cell.model} {cell.fraction}": cell for cell in cells}
    models = {name: load_trained(cell, out / cell.folder / WEIGHTS) for name, cell in names.items()}
    data = prepare_data(cells[0])
    exports = out / "costs" / "exports"
    shutil.rmtree(exports, ignore_errors=True)  # of a run that was killed
    rows = measure_latency(
        models,
        data.test_data.samples.image_path.iloc[:TEST_IMAGES].tolist(),
        exports,
        tuple(cells[0].config["image_size"]),
        calibration=data.train_data.samples.image_path.iloc[:CALIBRATION_IMAGES].tolist(),
        rounds=task["rounds"],
        progress=lambda stage, step, steps: write_json(state, {"stage": stage, "step": step, "steps": steps}),
    )
    shutil.rmtree(exports, ignore_errors=True)
    for row in rows:
        cell = names[row["model"]]
        row |= {"data": cell.data, "category": cell.category, "model": cell.model, "fraction": cell.fraction}
        row |= {"cell": cell.digest, "reference": cells[0].model}
        row["random_weights"] = (read_result(out / cell.folder) or {}).get("status") != "done"
    write_json(Path(task["target"]), {"digest": task["digest"], "environment": environment(), "rows": rows})


def main() -> int:
    """Measure the models of a task's cells."""
    end_with_parent()
    out, request = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        _measure(out, json.loads(request.read_text(encoding="utf-8")), request.with_suffix(PROGRESS))
    except Exception:  # noqa: BLE001  # for the log
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
