# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Run cells one after the other on this machine, each in a process of its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .config import Cell, slug
from .process import run_module
from .store import FAILED, PROGRESS, RESULT, finish, read_result, start, write_json

# torch's large tensors in pages of 2 MiB: a step of PatchCore's coreset, which makes one of a gigabyte, takes a third
CELL_ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1"}
AS_IT_IS = {"markup": False, "soft_wrap": True, "highlight": False}  # reasons may hold brackets
SHOWN = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC", "AUPRO_30": "AUPRO"}

Notify = Callable[[Cell, dict[str, Any]], None]


def run_local(cells: Sequence[Cell], out: Path, console: Console) -> None:
    """Run cells and show how far they are.

    A process that dies, killed by the system for want of memory for instance, makes a failed cell; the others go on.

    Args:
        cells: Cells to run.
        out: Folder of the benchmark.
        console: Where to show progress.
    """
    with progress_bars(console) as progress:
        cells_done = progress.add_task("cells", total=len(cells))
        for number, cell in enumerate(cells, start=1):
            steps = progress.add_task(str(cell), total=None)
            result = run_process(cell, out, partial(show_state, progress, steps))
            progress.remove_task(steps)
            progress.advance(cells_done)
            announce(cell, result, console, f"{number}/{len(cells)}")


def run_process(cell: Cell, out: Path, watch: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Run one cell in a process of its own; what it prints goes to ``out/logs``.

    Args:
        cell: The cell.
        out: Folder of the benchmark.
        watch: Called twice a second with what the cell says of its progress.

    Returns:
        The cell's result.
    """
    if (read_result(out / cell.folder) or {}).get("status") == FAILED:
        (out / cell.folder / RESULT).unlink()  # should the process die, that reason is not why
    work = start(out, cell)
    write_json(work / "task.json", asdict(cell))
    log = out / "logs" / f"{slug('-'.join(cell.folder.parts[1:]))}.txt"
    status = run_module("anomalib_dskd.benchmark.cell", [out, work], log, work / PROGRESS, CELL_ENVIRONMENT, watch)
    result = read_result(out / cell.folder)
    if result is None or result["digest"] != cell.digest:
        reason = f"its process ended with status {status} and left no result; logs/{log.name} has what it printed"
        result = {"status": FAILED, "reason": reason}
        finish(out, cell, result)
    return result


def announce(cell: Cell, result: dict[str, Any], console: Console, number: str) -> None:
    """Print what became of a cell."""
    if result["status"] == FAILED:
        console.print(f"{number} {cell}: failed: {result['reason']}", style="red", **AS_IT_IS)
    elif result.get("metrics"):
        figures = ", ".join(
            f"{label} {result['metrics'][name]:.3f}" for name, label in SHOWN.items() if name in result["metrics"]
        )
        training = result["training"]
        length = f"{training['steps']} steps, {training['seconds'] / 60:.1f} min"
        doubt = ", not converged" if result.get("converged") is False else ""
        console.print(f"{number} {cell}: {figures} ({length}{doubt})", **AS_IT_IS)
    else:
        console.print(f"{number} {cell}: {result['reason']}", style="yellow", **AS_IT_IS)


def progress_bars(console: Console) -> Progress:
    """Return bars that tell what is done, what is to come and the time left."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def show_state(progress: Progress, task: TaskID, state: dict[str, Any]) -> None:
    """Show what a process of its own has written of its progress."""
    if "step" in state:
        progress.update(task, completed=state["step"], total=state["steps"])
    description = progress.tasks[progress.task_ids.index(task)].description.split(" | ")[0]
    stage = state.get("stage", "starting")
    epoch = f" epoch {state['epoch']}" if "epoch" in state else ""
    progress.update(task, description=f"{description} | {stage}{epoch}", visible=True)
