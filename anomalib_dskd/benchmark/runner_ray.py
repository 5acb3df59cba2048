# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Run cells on the nodes of a Ray cluster."""

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from anomalib_dskd.errors import DskdError, first_line

from .config import Cell
from .runner import announce, progress_bars, run_process, show_state
from .store import FAILED, finish, read_result, start

RETRIES = 3
CONNECT_SECONDS = 5
POLL_SECONDS = 2


def run_ray(
    cells: Sequence[Cell], out: Path, console: Console, address: str | None = None, cpus: int = 2, gpus: float = 0.0
) -> None:
    """Run cells on a Ray cluster, as many at a time as it has room for.

    Nodes need this package and the data and weights under the same paths, where relative ones start from this process's
    working folder, but no common folder for the results: a cell's files come back over the network and are put in place
    here. A cell whose node dies is run again elsewhere.

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
            _probe(address)
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, OSError) as error:
            msg = f"No Ray cluster at {address}: {error}. Start one with 'ray start --head', or leave ray_address out."
            raise DskdError(msg) from error
    board = ray.remote(num_cpus=0)(_Board).remote()
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_run_elsewhere)
    waiting = {remote.remote(cell, str(Path.cwd()), board): cell for cell in cells}
    with progress_bars(console) as progress:
        cells_done = progress.add_task("cells on Ray", total=len(cells))
        bars = {str(cell): progress.add_task(str(cell), total=None, visible=False) for cell in cells}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)
            for name, state in _read(board).items():
                show_state(progress, bars[name], state)
            for task in done:
                cell = waiting.pop(task)
                try:
                    files = ray.get(task)
                except ray.exceptions.RayError as error:
                    start(out, cell)
                    reason = f"Ray gave it up after {RETRIES} retries: {first_line(error)}"
                    if isinstance(error, ray.exceptions.RayTaskError):  # raised on the node; the last line says what
                        reason = str(error).strip().splitlines()[-1]
                    finish(out, cell, {"status": FAILED, "reason": reason})
                else:
                    _put(files, out, cell)
                progress.update(bars[str(cell)], visible=False)
                progress.advance(cells_done)
                result = read_result(out / cell.folder) or {}
                announce(cell, result, console, f"{len(cells) - len(waiting)}/{len(cells)}")


class _Board:
    """Where cells that run elsewhere tell how far they are; an actor."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}

    def tell(self, cell: str, state: dict[str, Any]) -> None:
        self.states[cell] = state

    def take(self) -> dict[str, dict[str, Any]]:
        told, self.states = self.states, {}
        return told


def _read(board: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401  # a handle of an actor
    """Return what cells have told since; nothing if the node with the board has died, for it is only for show."""
    import ray  # noqa: PLC0415

    try:
        return ray.get(board.take.remote(), timeout=POLL_SECONDS)
    except ray.exceptions.RayError:
        return {}


def _probe(address: str | None) -> None:
    """Connect to host and port, since Ray would try for minutes where nobody answers.

    Raises:
        OSError: If nobody does.
    """
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _run_elsewhere(cell: Cell, folder: str, board: Any) -> dict[str, bytes]:  # noqa: ANN401
    """Run a cell on whatever node this is; return its files by name.

    Args:
        cell: The cell.
        folder: Folder that relative paths start from.
        board: Where to tell its progress.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        run_process(cell, out, lambda state: board.tell.remote(str(cell), state) if state else None)
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
