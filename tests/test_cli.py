# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The literal commands, in processes of the stock ``anomalib`` script that see the installed wheel alone."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import openvino
import pandas as pd
import pytest
import torch
from PIL import Image

from anomalib_dskd import Dskd

from .conftest import REPO, SHARED, anomalib, needs_shared, run

METRICS = ("image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score")


@pytest.fixture(scope="session")
def data(mvtec_root) -> list[object]:
    return ["--data", "MVTec", "--data.root", mvtec_root, "--data.category", "stripes", "--data.num_workers", 0]


def table(printed: str) -> dict[str, str]:
    """Read the metrics out of the table that Lightning prints."""
    return {name: re.search(rf"{name}\W+([\d.]+)", printed).group(1) for name in METRICS}


@pytest.fixture(scope="session")
def trained(tmp_path_factory, installed_wheel, data, teacher_file):
    """``anomalib train`` with other arguments than later commands type, and a teacher's file that is gone by then."""
    cwd = tmp_path_factory.mktemp("train")
    teacher = shutil.copy(teacher_file, cwd / "teacher.safetensors")
    result = anomalib(
        *["train", "--model", "Dskd", *data, "--model.teacher_weights", teacher, "--model.training_steps", 6],
        *["--model.image_size", "[64,96]", "--model.layers", "[layer1,layer2]", "--model.student_fusion", "max"],
        cwd=cwd,
        PYTHONPATH=installed_wheel,
    )
    Path(teacher).unlink()
    return cwd, table(result.stdout), cwd / "results/Dskd/MVTec/stripes/latest/weights/lightning/model.ckpt"


def test_train_writes_what_anomalib_writes(trained):
    cwd, metrics, checkpoint = trained
    assert checkpoint.is_file()
    latest = cwd / "results/Dskd/MVTec/stripes/latest"
    assert len(list((latest / "images").rglob("*.png"))) == 8
    assert len(list((latest / "students").rglob("*.png"))) == 8
    assert not [path.name for path in cwd.iterdir() if path.name != "results"]
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 6
    assert all(float(value) >= 0 for value in metrics.values())


def test_test_gives_the_same_figures(trained, installed_wheel, data, tmp_path):
    """From another folder, without the teacher's file and without one retyped argument."""
    _, metrics, checkpoint = trained
    result = anomalib(
        *["test", "--model", "Dskd", *data, "--ckpt_path", checkpoint], cwd=tmp_path, PYTHONPATH=installed_wheel
    )
    assert table(result.stdout) == metrics
    assert "Taken from the checkpoint: layers=" in result.stderr + result.stdout


def test_predict(trained, installed_wheel, mvtec_root, tmp_path):
    *_, checkpoint = trained
    anomalib(
        *["predict", "--model", "Dskd", "--data", mvtec_root / "stripes/test/hole", "--ckpt_path", checkpoint],
        cwd=tmp_path,
        PYTHONPATH=installed_wheel,
    )
    pictures = sorted((tmp_path / "results").rglob("students/**/*.png"))
    assert len(pictures) == 4
    assert Image.open(pictures[0]).width >= 5 * 256


def test_export_predicts_as_the_checkpoint(trained, installed_wheel, tmp_path, mvtec_root):
    *_, checkpoint = trained
    anomalib(
        *["export", "--model", "Dskd", "--export_type", "openvino", "--ckpt_path", checkpoint],
        cwd=tmp_path,
        PYTHONPATH=installed_wheel,
    )
    (path,) = tmp_path.rglob("*.xml")
    core = openvino.Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    model = Dskd.load_from_checkpoint(checkpoint).eval()
    raw = compiled(torch.rand(1, 3, 150, 130).numpy())["anomaly_map"]
    assert raw.shape[-2:] == (64, 96), "the graph resizes to the size that the checkpoint was trained with"
    # of the network's own size: anomalib's export resizes without antialiasing, its training with it
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(image)
    outputs = {output.get_any_name(): value for output, value in compiled(image.numpy()).items()}
    torch.testing.assert_close(
        torch.from_numpy(outputs["anomaly_map"]), expected.anomaly_map.as_subclass(torch.Tensor), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        torch.from_numpy(outputs["pred_score"]).flatten(),
        expected.pred_score.as_subclass(torch.Tensor),
        rtol=1e-3,
        atol=1e-4,
    )


def test_export_quantises(trained, installed_wheel, data, tmp_path):
    """As typed; every compression_type is in test_export.py."""
    *_, checkpoint = trained
    anomalib(
        *["export", "--model", "Dskd", "--export_type", "openvino", "--ckpt_path", checkpoint],
        *["--compression_type", "INT8_PTQ", *data],
        cwd=tmp_path,
        PYTHONPATH=installed_wheel,
    )
    (path,) = tmp_path.rglob("*.xml")
    graph = openvino.Core().read_model(path)
    assert "FakeQuantize" in {operation.get_type_name() for operation in graph.get_ops()}


@pytest.mark.parametrize("command", ["export", "inspect", "--help"])
def test_the_extra_that_lacks_is_named(command):
    code = (
        "import sys; sys.modules['openvino'] = sys.modules['nncf'] = None; "
        f"sys.argv = ['anomalib-dskd', '{command}']; from anomalib_dskd.cli import main; main()"
    )
    result = run([sys.executable, "-c", code], check=False)
    assert result.returncode == 1
    assert "Run: pip install 'anomalib-dskd[openvino]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_remaining_verbs(trained, installed_wheel, data, teacher_file, tmp_path):
    """``fit`` with a length that the user types, then ``validate``."""
    anomalib(
        *["fit", "--model", "Dskd", *data, "--model.teacher_weights", teacher_file, "--model.image_size", 64],
        *["--trainer.max_steps", 3, "--model.learning_rate", 0.001],
        cwd=tmp_path,
        PYTHONPATH=installed_wheel,
    )
    (fitted,) = (tmp_path / "results").rglob("model.ckpt")
    assert torch.load(fitted, weights_only=True)["global_step"] == 3
    result = anomalib(
        *["validate", "--model", "Dskd", *data, "--ckpt_path", fitted], cwd=tmp_path, PYTHONPATH=installed_wheel
    )
    assert "val_loss" in result.stdout


def test_benchmark(installed_wheel, mvtec_root, teacher_file, tmp_path):
    config = tmp_path / "benchmark.yaml"
    config.write_text(
        f"""
accelerator: cpu
benchmark:
  seed: 42
  model:
    class_path: Dskd
    init_args: {{teacher_weights: {teacher_file}, training_steps: 2, image_size: [64, 64]}}
  data:
    class_path: MVTec
    init_args: {{root: {mvtec_root}, category: stripes, num_workers: 0}}
"""
    )
    anomalib("benchmark", "--config", config, cwd=tmp_path, PYTHONPATH=installed_wheel)
    (results,) = tmp_path.rglob("results.csv")
    assert pd.read_csv(results)["image_AUROC"].between(0, 1).all()


@pytest.mark.parametrize("name", ["dskd", "dskd_edge", "dskd_paper"])
def test_shipped_configs(name, installed_wheel, data, teacher_file, tmp_path):
    anomalib(
        *["train", "--config", REPO / "configs" / f"{name}.yaml", *data, "--model.teacher_weights", teacher_file],
        *["--model.training_steps", 1, "--model.image_size", 64],
        cwd=tmp_path,
        PYTHONPATH=installed_wheel,
    )
    assert len(list(tmp_path.rglob("model.ckpt"))) == 1


def test_data_configs_are_taken(installed_wheel, tmp_path):
    config = installed_wheel / "anomalib_dskd/configs/data/magnetic_tile.yaml"
    result = anomalib(
        *["train", "--model", "Dskd", "--data", config, "--print_config"], cwd=tmp_path, PYTHONPATH=installed_wheel
    )
    assert "class_path: anomalib_dskd.data.MagneticTile" in result.stdout
    assert "protocol: tile_disjoint" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.students", "teacher"], "students='teacher' is not one of 'both', 'encoder', 'decoder'."),
        (["--model.backbone", "resnet1"], "backbone='resnet1' is not a timm model"),
        (["--model.teacher_weights", "damaged.pth"], "damaged.pth is damaged, or no file of weights"),
        ([], "timm could not get its pre-trained weights of 'resnet18'"),  # no network, empty cache
    ],
)
def test_errors_are_messages(arguments, message, installed_wheel, data, tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"")
    result = anomalib(
        *["train", "--model", "Dskd", *data, *arguments],
        cwd=tmp_path,
        check=False,
        PYTHONPATH=installed_wheel,
        HF_HOME=tmp_path / "no-hub",
    )
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("anomalib: error: ")]
    assert message in line
    assert "Traceback" not in result.stderr


def test_two_processes(installed_wheel, data, teacher_file, tmp_path):
    result = anomalib(
        *["train", "--model", "Dskd", *data, "--model.teacher_weights", teacher_file, "--model.image_size", 64],
        *["--model.training_steps", 4, "--data.train_batch_size", 2, "--data.val_split_mode", "from_train"],
        *["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"],
        cwd=tmp_path,
        PYTHONPATH=installed_wheel,
        OMP_NUM_THREADS=1,
    )
    assert "image_AUROC" in result.stdout
    (checkpoint,) = (tmp_path / "results").rglob("model.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert all(value.isfinite().all() for value in state["state_dict"].values() if value.is_floating_point())
    assert "MEMBER: 1/2" in result.stderr
    assert "MEMBER: 2/2" in result.stderr
    alone = anomalib(
        *["test", "--model", "Dskd", *data, "--ckpt_path", checkpoint], cwd=tmp_path, PYTHONPATH=installed_wheel
    )
    assert table(alone.stdout)["image_AUROC"] == table(result.stdout)["image_AUROC"]


def test_resume_after_kill_gives_the_weights_of_an_uninterrupted_run(installed_wheel, data, teacher_file, tmp_path):
    command = [
        *["train", "--model", "Dskd", *data, "--model.teacher_weights", teacher_file, "--model.image_size", 64],
        *["--model.training_steps", 60, "--data.train_batch_size", 4, "--data.val_split_mode", "from_train"],
    ]
    checkpoint = Path("results/Dskd/MVTec/stripes/latest/weights/lightning/model.ckpt")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    anomalib(*command, cwd=whole, PYTHONPATH=installed_wheel)

    script = Path(sys.executable).with_name("anomalib")
    process = subprocess.Popen(
        [str(part) for part in [script, *command]],
        cwd=killed,
        env={**os.environ, "PYTHONPATH": str(installed_wheel)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (killed / checkpoint).is_file() or step(killed / checkpoint) < 12:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed_from = (killed / checkpoint).resolve()
    assert step(resumed_from) < 60
    anomalib(*command, "--ckpt_path", resumed_from, cwd=killed, PYTHONPATH=installed_wheel)
    assert (killed / checkpoint).resolve() != resumed_from
    first, second = (torch.load(folder / checkpoint, weights_only=True) for folder in (whole, killed))
    assert first["global_step"] == second["global_step"]
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name


def step(checkpoint: Path) -> int:
    try:
        return torch.load(checkpoint, weights_only=True)["global_step"]
    except (RuntimeError, EOFError, FileNotFoundError):  # just being replaced
        return -1


@pytest.mark.long
@needs_shared
def test_toothbrush(installed_wheel, tmp_path):
    """The literal command on real images with a real teacher: within an hour on two cores, maps on the defects."""
    teacher = SHARED / "weights/resnet18_imagenet1k_v1_to_layer3.safetensors"
    result = anomalib(
        *["train", "--model", "Dskd", "--data", "MVTec", "--data.root", SHARED / "data/mvtec_ad"],
        *["--data.category", "toothbrush", "--model.teacher_weights", teacher],
        cwd=tmp_path,
        PYTHONPATH=installed_wheel,
        timeout=3600,
    )
    metrics = table(result.stdout)
    assert float(metrics["image_AUROC"]) > 0.97, metrics
    assert float(metrics["pixel_AUROC"]) > 0.97, metrics
