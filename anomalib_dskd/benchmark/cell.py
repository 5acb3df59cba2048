# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Run one cell: train a model, test it, write what was measured. Also a process of its own, started by a runner."""

import json
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from lightning.pytorch import seed_everything

from anomalib_dskd.errors import DskdError

from .config import Cell
from .cost import measure_size
from .environment import environment
from .image_metrics import image_metrics
from .observe import LossCurve, Progress, RawPredictions
from .peak_memory import PeakMemory
from .prepare import prepare_data, prepare_model
from .process import end_with_parent
from .store import FAILED, WEIGHTS, finish
from .training_curve import FILE as TRAINING_CURVE
from .training_curve import TrainingCurve

DONE = "done"
NO_TEACHER = "no_teacher"


def run_cell(cell: Cell, out: Path, work: Path) -> dict[str, Any]:
    """Train and test a cell's model.

    Args:
        cell: The cell.
        out: Folder of the benchmark.
        work: Empty folder for its files, from :func:`anomalib_dskd.benchmark.store.start`.

    Returns:
        What ``cell.json`` says; the cell is then finished on disk.

    Raises:
        DskdError: If model, teacher or data cannot be had.
    """
    seed_everything(cell.seed, verbose=False)
    prepared = prepare_model(cell)
    if prepared.obstacle is not None:
        result: dict[str, Any] = {"status": NO_TEACHER, "reason": prepared.obstacle}
        result["size"] = _size(prepared.model, cell)
    else:
        data = prepare_data(cell)
        result = {"status": DONE, "reason": None, **_train_and_test(prepared.model, data, cell, work)}
    result["environment"] = environment()
    finish(out, cell, result)
    return result


def _train_and_test(model: AnomalibModule, data: AnomalibDataModule, cell: Cell, work: Path) -> dict[str, Any]:
    curve, progress, raw = LossCurve(), Progress(work), RawPredictions()
    accuracy = TrainingCurve(data, cell.config.get("training_tests", 0))
    scratch = work / "scratch"
    trainer = cell.config["model"]["trainer"]
    quiet = {
        "logger": False,
        "default_root_dir": scratch,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "devices": 1,  # on several each would test, and write, its share of the images
    }
    engine = Engine(callbacks=[curve, progress, accuracy], **quiet, **_length(cell), **trainer)
    started = time.monotonic()
    with PeakMemory() as memory:
        engine.fit(model, datamodule=data)
    seconds = time.monotonic() - started - accuracy.paused
    engine.trainer.save_checkpoint(work / WEIGHTS, weights_only=True)
    seed_everything(cell.seed, verbose=False)
    # in float32, however the model was trained: in bfloat16 images would tie
    in_f32 = {name: value for name, value in trainer.items() if name != "precision"}
    tester = Engine(callbacks=[raw, progress], **quiet, **in_f32)
    (anomalib_metrics,) = tester.test(model, datamodule=data, verbose=False)
    shutil.rmtree(scratch, ignore_errors=True)

    scores, labels = np.array(raw.scores), np.array(raw.labels)
    if not np.isfinite(scores).all():
        msg = f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite: the training diverged."
        raise DskdError(msg)
    samples = data.test_data.samples.set_index("image_path").loc[raw.paths]
    table = pd.DataFrame({"path": raw.paths, "label": labels.astype(int), "class": samples.label.to_numpy()})
    table["score"] = scores
    table["mask"] = samples.mask_path.fillna("").to_numpy() if "mask_path" in samples else ""
    if "part" in samples:
        table["group"] = samples.part.to_numpy()
    table.to_csv(work / "scores.csv", index=False, float_format="%.9g")
    if accuracy.points:
        accuracy.table().to_csv(work / TRAINING_CURVE, index=False)
    metrics = image_metrics(scores, labels)
    if raw.pixels.pixels:
        metrics |= raw.pixels.compute()
        curves = raw.pixels.curves()
        (pixel_fpr, pixel_tpr), (pro_fpr, pro) = curves["ROC"], curves["PRO"]
        np.savez_compressed(work / "curves.npz", pixel_fpr=pixel_fpr, pixel_tpr=pixel_tpr, pro_fpr=pro_fpr, pro=pro)
    if raw.maps:
        np.savez_compressed(work / "maps.npz", maps=np.concatenate(raw.maps))
    return {
        "converged": curve.converged,
        "training": {
            "epochs": engine.trainer.current_epoch,
            "steps": engine.trainer.global_step,
            "images": len(data.train_data),
            "seconds": seconds,
            "peak_memory_mib": memory.mib,
            **({"peak_gpu_memory_mib": memory.gpu_mib} if memory.gpu_mib else {}),
        },
        "metrics": metrics,
        "metric_errors": raw.pixels.error_bounds() if raw.pixels.pixels else {},
        "anomalib_metrics": {name: float(value) for name, value in anomalib_metrics.items()},
        "size": _size(model, cell),
    }


def _size(model: AnomalibModule, cell: Cell) -> dict[str, float]:
    try:
        return measure_size(model, tuple(cell.config["image_size"]))
    except (ValueError, RuntimeError):  # before they are fitted PatchCore's bank is empty, PaDiM's Gaussians too
        return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def _length(cell: Cell) -> dict[str, Any]:
    """Length of training, for the trainer; without one a model's own budget decides, as Dskd's."""
    model = cell.config["model"]
    length = {"max_epochs": model["epochs"], "max_steps": model["steps"]}
    if model["steps"] is not None:
        length["max_epochs"] = -1
    return {name: value for name, value in length.items() if value is not None}


def main() -> int:
    """Run the cell of ``work/task.json``; whatever goes wrong becomes its result."""
    end_with_parent()
    out, work = Path(sys.argv[1]), Path(sys.argv[2])
    cell = Cell(**json.loads((work / "task.json").read_text(encoding="utf-8")))
    try:
        run_cell(cell, out, work)
    except Exception as error:  # noqa: BLE001  # the other cells go on
        traceback.print_exc()
        finish(out, cell, {"status": FAILED, "reason": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
