# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""From the demo data to another machine: a virtual environment with nothing but the bundle's requirements."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from anomalib.data import DemoTextures
from anomalib.engine import Engine
from lightning.pytorch.callbacks import Callback

from anomalib_dskd import Dskd

from .conftest import anomalib, run


class Verdicts(Callback):
    """Keep what ``anomalib test`` said of each image."""

    def __init__(self) -> None:
        self.batches = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.batches.append(outputs)

    def verdicts(self) -> dict[str, str]:
        return {item.image_path: "NG" if item.pred_label else "OK" for batch in self.batches for item in batch}


@pytest.mark.long
def test_a_machine_with_the_bundle_alone(tmp_path):
    office, factory = tmp_path / "office", tmp_path / "factory"
    office.mkdir()
    data = ["--data", "DemoTextures", "--data.root", office / "data", "--data.category", "gravel"]
    small = ["--model.teacher_weights", "random", "--model.image_size", 64, "--model.training_steps", 5]
    anomalib("train", "--model", "Dskd", *data, *small, cwd=office)
    (checkpoint,) = (office / "results").rglob("model.ckpt")
    tested = Verdicts()
    engine = Engine(default_root_dir=office, accelerator="cpu", callbacks=[tested], logger=False)
    model = Dskd(teacher_weights="random")
    model.visualizer = None
    engine.test(model, datamodule=DemoTextures(office / "data", "gravel"), ckpt_path=checkpoint)

    script = Path(sys.executable).with_name("anomalib-dskd")
    good = office / "data/gravel/train/good"
    run([script, "export", "--ckpt", checkpoint, "--out", office / "bundle", "--images", good], cwd=office)
    shutil.move(office / "bundle", factory / "bundle")
    shutil.copytree(office / "data/gravel/test", factory / "test")
    shutil.rmtree(office)

    run([sys.executable, "-m", "venv", factory / "venv"])
    python = factory / "venv/bin/python"
    run([python, "-m", "pip", "install", "--quiet", "-r", factory / "bundle/requirements.txt"])
    listed = run([python, "-m", "pip", "list", "--format", "json"]).stdout
    names = {package["name"] for package in json.loads(listed)}
    assert {"openvino", "numpy", "pillow"} <= names
    assert not names & {"torch", "anomalib", "anomalib-dskd"}
    result = run(
        [python, factory / "bundle/inspector.py", factory / "test", "--json"], cwd=factory, check=False, PYTHONPATH=""
    )
    found = {
        str(Path(record["file"]).relative_to(factory)): record["verdict"]
        for record in map(json.loads, result.stdout.splitlines())
    }
    expected = {str(Path(*Path(path).parts[-3:])): verdict for path, verdict in tested.verdicts().items()}
    assert len(expected) == 78
    assert found == expected
    assert result.returncode == (3 if "NG" in found.values() else 0)
