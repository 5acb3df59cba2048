# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Results of cells on disk: whole or not at all, whatever happens in between."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .config import SCHEMA, Cell

RESULT = "cell.json"
PROGRESS = "progress.json"
WEIGHTS = "model.ckpt"
FAILED = "failed"
PARTIAL = ".partial"


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return what a finished cell wrote, ``None`` where it is absent or unreadable."""
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_finished(out: Path, cell: Cell) -> bool:
    """Tell whether a cell's results are there, were made by this very configuration and are no failure."""
    result = read_result(out / cell.folder)
    return result is not None and result.get("digest") == cell.digest and result.get("status") != FAILED


def start(out: Path, cell: Cell) -> Path:
    """Return an empty folder for a cell to work in, beside that of its results; what an earlier run left is removed."""
    work = _work_folder(out, cell)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work


def finish(out: Path, cell: Cell, result: dict[str, Any]) -> None:
    """Put the results in place: all files of the working folder and, last, ``cell.json``.

    Args:
        out: Folder of the benchmark.
        cell: The cell.
        result: What ``cell.json`` says beside the cell's name, configuration and digest.
    """
    work, folder = _work_folder(out, cell), out / cell.folder
    named = asdict(cell)
    config = named.pop("config")
    write_json(work / RESULT, {"schema": SCHEMA, "digest": cell.digest, "cell": named, "config": config, **result})
    for path in work.rglob("*"):
        if path.is_file():
            _flush(path)
    if folder.exists():
        # the old cell.json goes first: without it the rest counts for nothing
        (folder / RESULT).unlink(missing_ok=True)
        shutil.rmtree(folder)
    work.replace(folder)


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401
    """Write a file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}{PARTIAL}")
    partial.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    _flush(partial)
    partial.replace(path)


def _work_folder(out: Path, cell: Cell) -> Path:
    folder = out / cell.folder
    return folder.with_name(f"{folder.name}{PARTIAL}")


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
