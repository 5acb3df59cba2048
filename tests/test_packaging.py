# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What the package promises to pip and to the reader."""

import sys

import pytest
import torch
import yaml

from anomalib_dskd.model.cost import count_cost
from anomalib_dskd.model.lightning_model import Dskd

from .conftest import REPO, run


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_dependencies_resolve(python, tmp_path):
    """A dry resolution with every extra: the newest versions that fit together on this Python."""
    extras = [part for extra in ("openvino", "offline", "ray", "dev") for part in ("--extra", extra)]
    resolved = tmp_path / "requirements.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", REPO / "pyproject.toml", *extras]
    run([*command, "--python-version", python, "--output-file", resolved])
    names = {line.split("==")[0] for line in resolved.read_text().splitlines() if "==" in line}
    assert {"anomalib", "torch", "torchvision", "timm", "lightning", "openvino", "ray", "wrapt"} <= names


def test_default_config_is_the_default_model():
    arguments = yaml.safe_load((REPO / "configs/dskd.yaml").read_text())["model"]["init_args"]
    default = Dskd().hparams
    assert arguments == {**dict(default), "image_size": 256}
    paper = yaml.safe_load((REPO / "configs/dskd_paper.yaml").read_text())["model"]["init_args"]
    assert Dskd(**paper).model.teacher.network.feature_info.module_name() == ["layer1", "layer2", "layer3"]


def test_edge_config_computes_a_quarter():
    """But for the descriptor of the image as a whole, which is as long at any size."""
    arguments = yaml.safe_load((REPO / "configs/dskd_edge.yaml").read_text())["model"]["init_args"]
    default, edge = (
        count_cost(model.model, torch.zeros(1, 3, *model.pre_processor.transform.transforms[0].size), ["image_score"])
        for model in (Dskd(teacher_weights="random"), Dskd(teacher_weights="random", **arguments))
    )
    descriptor = edge["image_score"].gmacs
    assert edge[""].gmacs - descriptor <= (default[""].gmacs - descriptor) / 4
    assert descriptor < 0.001 * edge[""].gmacs


def test_citation_names_the_papers_authors():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == ["Yao", "Gao"]
