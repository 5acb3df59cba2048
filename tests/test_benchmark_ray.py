# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark on a Ray cluster of two nodes, one of which dies."""

import errno
import io
import time
from threading import Thread

import pandas as pd
import pytest
from rich.console import Console

from anomalib_dskd.benchmark import runner_ray
from anomalib_dskd.benchmark.config import DataConfig, ModelConfig, TeacherConfig, make_cells
from anomalib_dskd.benchmark.runner import run_local
from anomalib_dskd.benchmark.runner_ray import run_ray
from anomalib_dskd.benchmark.store import is_finished, read_result
from anomalib_dskd.errors import DskdError

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
from ray.cluster_utils import Cluster  # noqa: E402


@pytest.fixture
def cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init_args = {"root": "data", "category": {"grid": ["brick"]}}
    models = [ModelConfig("Padim", {"n_features": 20}), ModelConfig("Patchcore", {"coreset_sampling_ratio": 0.01})]
    return make_cells(
        [DataConfig("DemoTextures", init_args)],
        [*models, ModelConfig("Dskd", steps=3, batch_size=8), ModelConfig("ReverseDistillation")],
        TeacherConfig("tf_efficientnet_lite0", "efficientnet_lite0"),
        image_size=(64, 64),
        seeds=[0],
        fractions=[1.0],
        hold_out=0.2,
    )


@pytest.mark.long
def test_a_node_dies_and_the_table_is_the_same(cells, tmp_path):
    """Two nodes of two cores; the second is killed as soon as both work, and its cell is run again on the first."""
    run_local(cells, tmp_path / "local", Console(file=io.StringIO()))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    printed = io.StringIO()
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        run = Thread(target=run_ray, args=(cells, tmp_path / "ray", Console(file=printed, width=200)), daemon=True)
        run.start()
        deadline = time.monotonic() + 300
        while ray.available_resources().get("CPU", 0) > 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert ray.cluster_resources()["CPU"] == 4
        time.sleep(10)  # both are in the midst of a cell: starting one takes longer
        cluster.remove_node(second, allow_graceful=False)
        run.join(timeout=900)
        assert not run.is_alive(), printed.getvalue()
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    for cell in cells:
        assert is_finished(tmp_path / "ray", cell), printed.getvalue()
        here, there = (tmp_path / name / cell.folder for name in ("local", "ray"))
        assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in there.iterdir())
        if (here / "scores.csv").exists():
            one, other = pd.read_csv(here / "scores.csv"), pd.read_csv(there / "scores.csv")
            pd.testing.assert_frame_equal(one, other, rtol=1e-3)
            first, second_ = read_result(here)["metrics"], read_result(there)["metrics"]
            assert first["image_AUROC"] == pytest.approx(second_["image_AUROC"], abs=1e-3)
    assert len(list((tmp_path / "ray/logs").iterdir())) == len(cells)


def test_what_goes_wrong_on_a_node_is_told(cells, tmp_path, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner_ray, "_run_elsewhere", full_disk)
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        run_ray(cells[:1], tmp_path, Console(file=io.StringIO()))
    finally:
        ray.shutdown()
    result = read_result(tmp_path / cells[0].folder)
    assert (result["status"], result["reason"]) == ("failed", "OSError: [Errno 28] No space left on device")


def test_no_cluster(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(ray._private.utils, "get_ray_address_file", lambda _: str(tmp_path / "none"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in ("auto", "127.0.0.1:1"):
        with pytest.raises(DskdError, match=rf"No Ray cluster at {address}: .*Start one with 'ray start --head'"):
            run_ray(cells, tmp_path, Console(file=io.StringIO()), address=address)
