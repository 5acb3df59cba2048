# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The demo, and that its data are worth something."""

import sys
from pathlib import Path

import pytest
import torch
from anomalib.data import DemoTextures
from anomalib.engine import Engine
from anomalib.models import Patchcore
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from .conftest import SHARED, needs_shared, run

SCRIPT = Path(sys.executable).with_name("anomalib-dskd")


def mean_auroc(printed: str) -> float:
    (row,) = [line for line in printed.splitlines() if "│ mean" in line]
    return float(row.split("│")[2])


def test_demo_runs_offline(tmp_path):
    """Three steps a texture: everything but the training itself."""
    result = run([SCRIPT, "demo", "--training_steps", 3], cwd=tmp_path, COLUMNS=200)
    for texture in ("brick", "grass", "gravel"):
        assert f"--data.category {texture}" in result.stdout
        assert len(list((tmp_path / f"dskd_demo/results/{texture}").rglob("students/**/*.png"))) == 78
    assert 0 < mean_auroc(result.stdout) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["dskd_demo"]


def test_a_failing_demo_says_so(tmp_path):
    (tmp_path / "taken").touch()
    result = run([SCRIPT, "demo", "--out", "taken"], cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "anomalib-dskd: error: The command above failed" in result.stderr


@pytest.mark.long
def test_demo_finds_defects(tmp_path):
    result = run([SCRIPT, "demo"], cwd=tmp_path, timeout=3600, COLUMNS=200)
    assert mean_auroc(result.stdout) >= 0.9


@needs_shared
@pytest.mark.long
def test_demo_is_not_trivial_for_patchcore(tmp_path):
    """Image AUROC of each kind of defect against the good crops, on raw scores of anomalib's PatchCore."""
    figures = {}
    for texture in ("brick", "grass", "gravel"):
        data = DemoTextures(tmp_path, texture)
        model = Patchcore(backbone="resnet18", pre_trained=False, coreset_sampling_ratio=0.01, post_processor=False)
        model.visualizer = None
        weights = load_file(SHARED / "weights/resnet18_imagenet1k_v1_to_layer3.safetensors")
        missing, _ = model.model.feature_extractor.feature_extractor.load_state_dict(weights, strict=False)
        assert not missing
        engine = Engine(default_root_dir=tmp_path, accelerator="cpu")
        engine.fit(model, datamodule=data)
        batches = engine.predict(model, datamodule=data)
        scores = torch.cat([batch.pred_score for batch in batches])
        kinds = [Path(path).parent.name for batch in batches for path in batch.image_path]
        for kind in sorted(set(kinds) - {"good"}):
            chosen = [index for index, name in enumerate(kinds) if name in {"good", kind}]
            figures[texture, kind] = roc_auc_score([kinds[i] == kind for i in chosen], scores[chosen])
    assert min(figures.values()) < 0.99, figures
