# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-dskd benchmark``."""

import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from rich.console import Console

from anomalib_dskd.errors import DskdError

from .config import Cell, DataConfig, ModelConfig, TeacherConfig, make_cells, read_config
from .report import write_report
from .runner import run_local
from .runner_ray import run_ray
from .store import is_finished, read_result, write_json
from .timing import time_models

INTERRUPTED = 130

Run = Callable[[Sequence[Cell], Path, Console], None]


def benchmark(
    out: Path,
    models: list[dict[str, Any]],
    data: list[dict[str, Any]],
    teacher: TeacherConfig = TeacherConfig(),  # noqa: B008  # jsonargparse reads its defaults
    image_size: tuple[int, int] = (256, 256),
    seeds: list[int] = [0],  # noqa: B006
    fractions: list[float] = [1.0],  # noqa: B006
    hold_out: float = 0.1,
    training_tests: int = 0,
    timing_rounds: int = 100,
    root: Path | None = None,
    runner: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    ray_cpus: int = 2,
    ray_gpus: float = 0.0,
) -> None:
    """Compare models of anomalib on the same data, split, input size, teacher weights and metrics.

    Args:
        out: Folder of the results; its report.html is the report. A finished cell, one model on one category with one
            seed, is there at once, and the same command goes on where it was stopped.
        models: Models, each with class_path and, as needed, init_args, name, epochs or steps, batch_size, and trainer
            (further arguments of Lightning's trainer). An init_arg {grid: [a, b]} stands for each in turn.
        data: Data sets, each with class_path and, as needed, init_args and name. A grid over category makes categories
            of one data set, any other grid makes data sets.
        teacher: Network and weights that all models get that can take them.
        image_size: Height and width in pixels to which all images are resized.
        seeds: Seeds; several give mean and spread.
        fractions: Shares of the training images to train with; several give growth curves.
        hold_out: Share of the normal training images that is kept out of training, for thresholds.
        training_tests: Tests in the course of each training, for curves of accuracy against training time; they are
            left out of that time, and nothing is chosen by them.
        timing_rounds: Timed runs of each trained model, in torch and OpenVINO, in turns; 0 leaves the timing out.
        root: Folder of the data, in place of the configuration's; of one data set, or of several in one folder.
        runner: "local" for this machine, "ray" for the nodes of a Ray cluster.
        ray_address: Address of the cluster; by default Ray's own search.
        ray_cpus: Cores a cell on the cluster.
        ray_gpus: GPUs a cell on the cluster.

    Raises:
        DskdError: If something cannot be run as configured, or another benchmark is running in the folder.
    """
    if timing_rounds < 0:
        msg = f"timing_rounds={timing_rounds} must be 0 or more."
        raise DskdError(msg)
    console = Console(markup=False)  # paths may hold brackets
    data_configs = [read_config(DataConfig, config) for config in data]
    if root is not None:
        for config in data_configs:
            config.init_args["root"] = str(root)
    model_configs = [read_config(ModelConfig, config) for config in models]
    cells = make_cells(data_configs, model_configs, teacher, image_size, seeds, fractions, hold_out, training_tests)
    run: Run = run_local
    if runner == "ray":
        run = partial(run_ray, address=ray_address, cpus=ray_cpus, gpus=ray_gpus)
    out = out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            problems = _run_and_report(cells, out, console, run, timing_rounds)
    except Timeout as error:
        msg = f"Another benchmark is running in {out}: wait for it, or give another folder."
        raise DskdError(msg) from error
    except KeyboardInterrupt:
        console.print("Interrupted. Finished cells are kept: the same command goes on from there.")
        sys.exit(INTERRUPTED)
    except OSError as error:
        msg = f"Results cannot be written: {error}. Finished cells are kept: the same command goes on from there."
        raise DskdError(msg) from error
    if problems:
        msg = f"{len(problems)} failed; the same command tries again:\n  " + "\n  ".join(problems)
        raise DskdError(msg)


def _run_and_report(cells: list[Cell], out: Path, console: Console, run: Run, timing_rounds: int) -> list[str]:
    """Run what is missing, time the models, write the report; return what went wrong."""
    missing = [cell for cell in cells if not is_finished(out, cell)]
    console.print(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished before; results in {out}")
    if missing:
        from .prepare import check  # noqa: PLC0415  # anomalib's models take seconds to import

        check(missing)
    _print_lengths(cells, console)
    record = {"command": shlex.join(["anomalib-dskd", *sys.argv[1:]]), "started": _now()}
    digests = {cell.digest for cell in cells}
    write_json(out / "run.json", record)
    try:
        run(missing, out, console)
        failed = [cell for cell in cells if not is_finished(out, cell)]
        problems = [f"{cell}: {(read_result(out / cell.folder) or {}).get('reason')}" for cell in failed]
        if timing_rounds:
            console.print("Timing the models in turns")
            problems += time_models(cells, out, timing_rounds, console)
    except KeyboardInterrupt:
        write_report(out, record["command"], digests)
        console.print(f"Report of what is finished: {out / 'report.html'}", soft_wrap=True)
        raise
    write_json(out / "run.json", {**record, "finished": _now()})
    write_report(out, record["command"], digests)
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)
    return problems


def _print_lengths(cells: list[Cell], console: Console) -> None:
    shown = set()
    for cell in cells:
        model = cell.config["model"]
        if cell.model in shown:
            continue
        shown.add(cell.model)
        length = next((f"{model[unit]} {unit}" for unit in ("steps", "epochs") if model[unit]), "its own length")
        console.print(f"  {cell.model}: {length}, batch size {model['batch_size']}", highlight=False)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
