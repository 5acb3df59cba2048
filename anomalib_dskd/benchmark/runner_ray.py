# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Run cells on the nodes of a Ray cluster."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anomalib_dskd.errors import DskdError

from .config import Cell
from .runner import announce, run_process
from .store import FAILED, finish, read_result, start

RETRIES = 3


def run_ray(
    cells: Sequence[Cell], out: Path, console: Console, address: str | None = None, cpus: int = 2, gpus: float = 0.0
) -> None:
    """Run cells on a Ray cluster, as many at a time as it has room for.

    Nodes need this package and the data under the same paths, but no common folder for the results: a cell's files
    come back over the network and are put in place here. A cell whose node dies is run again elsewhere.

    Args:
        cells: Cells to run.
        out: Folder of the benchmark, on this machine.
        console: Where to show progress.
        address: Address of the cluster; by default the one that Ray finds, or a new one on this machine.
        cpus: Cores a cell.
        gpus: GPUs a cell.

    Raises:
        DskdError: If Ray is not installed or there is no cluster at the address.
    """
    try:
        import ray  # noqa: PLC0415  # an extra
    except ImportError as error:
        msg = "runner='ray' needs Ray: pip install 'anomalib-dskd[ray]'."
        raise DskdError(msg) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except ConnectionError as error:
            msg = f"No Ray cluster at {address}: {error}. Start one with 'ray start --head', or leave ray_address out."
            raise DskdError(msg) from error
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_run_elsewhere)
    waiting = {remote.remote(cell): cell for cell in cells}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(done)
        try:
            files = ray.get(done)
        except ray.exceptions.RayError as error:
            start(out, cell)
            reason = f"Ray gave it up after {RETRIES} retries: {str(error).splitlines()[0]}"
            finish(out, cell, {"status": FAILED, "reason": reason})
        else:
            _put(files, out, cell)
        result = read_result(out / cell.folder) or {}
        announce(cell, result, console, f"{len(cells) - len(waiting)}/{len(cells)}")


def _run_elsewhere(cell: Cell) -> dict[str, bytes]:
    """Run a cell on whatever node this is; return its files by name."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run_process(cell, out)
        results = out / cell.folder
        files = {path.name: path.read_bytes() for path in results.iterdir() if path.is_file()}
        (log,) = (out / "logs").iterdir()
        return {**files, f"logs/{log.name}": log.read_bytes()}


def _put(files: dict[str, bytes], out: Path, cell: Cell) -> None:
    """Write what a node sent: the log, and the cell's files as its own process would have."""
    work = start(out, cell)
    for name, content in files.items():
        path = out / name if name.startswith("logs/") else work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    result = read_result(work) or {}
    for key in ("schema", "digest", "cell", "config"):
        result.pop(key, None)
    finish(out, cell, result)
