# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Each example runs, briefly, and prints what its last lines show."""

import re
import sys
from pathlib import Path

import pytest

from .conftest import REPO, run
from .test_data import mvtec_3d  # noqa: F401

EXAMPLES = REPO / "examples"


def example(name: str, *arguments: object, cwd: Path) -> list[str]:
    return run([sys.executable, EXAMPLES / f"{name}.py", *arguments], cwd=cwd).stdout.splitlines()


def same_form(printed: str, shown: str) -> bool:
    """Whether two lines are equal but for their numbers, paths and verdicts."""
    variable = r"[-+]?\d+(\.\d+)?|NG|OK|/?[\w.-]+(/[\w.-]+)+|\s+"
    return re.sub(variable, "", printed) == re.sub(variable, "", shown)


def shown(name: str) -> list[str]:
    """Return the output that an example's last comment shows."""
    printed = (EXAMPLES / name).read_text().split("# Prints:\n")[1]
    return [line.removeprefix("# ") for line in printed.splitlines()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, mvtec_root, teacher_file) -> tuple[Path, list[str]]:
    cwd = tmp_path_factory.mktemp("example")
    printed = example(
        "train_and_predict",
        *["--root", mvtec_root, "--category", "stripes", "--teacher_weights", teacher_file],
        *["--training_steps", 2, "--image_size", 64],
        cwd=cwd,
    )
    (path,) = (cwd / "results").rglob("model.ckpt")
    return path, printed


def test_train_and_predict(checkpoint):
    path, printed = checkpoint
    assert printed[-1] == f"checkpoint: {path}"
    assert same_form(printed[-2], shown("train_and_predict.py")[-2])


def test_student_scores(checkpoint, mvtec_root, tmp_path):
    data = ["--data", "MVTec", "--data.root", mvtec_root, "--data.category", "stripes", "--data.num_workers", 0]
    printed = example("student_scores", "--ckpt", checkpoint[0], *data, cwd=tmp_path)
    assert [same_form(a, b) for a, b in zip(printed[-6:], shown("student_scores.py"), strict=True)] == [True] * 6


def test_false_alarm_rate(checkpoint, mvtec_root, tmp_path):
    data = ["--data", "MVTec", "--data.root", mvtec_root, "--data.category", "stripes", "--data.num_workers", 0]
    arguments = [*data, "--data.val_split_mode", "from_train", "--data.seed", 0]
    printed = example("false_alarm_rate", "--ckpt", checkpoint[0], *arguments, cwd=tmp_path)
    assert [same_form(a, b) for a, b in zip(printed[-4:], shown("false_alarm_rate.py"), strict=True)] == [True] * 4


def test_exported_verdicts(checkpoint, mvtec_root, tmp_path):
    data = ["--data", "MVTec", "--data.root", mvtec_root, "--data.category", "stripes", "--data.num_workers", 0]
    printed = example("exported_verdicts", "--ckpt", checkpoint[0], *data, "--rounds", 2, cwd=tmp_path)
    assert [same_form(a, b) for a, b in zip(printed[-6:], shown("exported_verdicts.py"), strict=True)] == [True] * 6
    exact, f32 = (line.split()[-7:-3] for line in printed[-4:-2])
    assert f32 == exact, "AUROC, AUPRO and no flips"


@pytest.mark.long
def test_int8_sensitivity(checkpoint, mvtec_root, tmp_path):
    images = mvtec_root / "stripes/train/good"
    printed = example("int8_sensitivity", "--ckpt", checkpoint[0], "--images", images, "--number", 4, cwd=tmp_path)
    (line,) = (line for line in printed if line.startswith("none"))
    assert same_form(line, shown("int8_sensitivity.py")[2])


def test_own_folder(mvtec_root, teacher_file, tmp_path):
    printed = example(
        "own_folder",
        *["--good", mvtec_root / "stripes/train/good", "--new", mvtec_root / "stripes/test/hole"],
        *["--backbone", "resnet18", "--teacher_weights", teacher_file, "--training_steps", 2, "--image_size", 64],
        cwd=tmp_path,
    )
    assert any(same_form(line, shown("own_folder.py")[0]) for line in printed)
    assert all(same_form(line, shown("own_folder.py")[-1]) for line in printed[-4:])


def test_another_teacher(tmp_path):
    printed = example("another_teacher", "--training_steps", 2, "--image_size", 64, cwd=tmp_path)
    assert same_form(printed[-1], shown("another_teacher.py")[-1])


def test_mvtec_3d_rgb(mvtec_3d, teacher_file, tmp_path):  # noqa: F811
    arguments = ["--root", mvtec_3d, "--teacher_weights", teacher_file, "--training_steps", 2, "--image_size", 64]
    printed = example("mvtec_3d_rgb", *arguments, cwd=tmp_path)
    assert same_form(printed[-1], shown("mvtec_3d_rgb.py")[-1])


def test_latency_of_parts(tmp_path):
    printed = example("latency_of_parts", "--image_size", 64, "--rounds", 2, cwd=tmp_path)
    rows = [line.replace("│", "|").split("|")[1:-1] for line in printed if line[:1] in "│|"]
    *parts, alone, small, large, larger = rows[-9:]
    assert [row[0].strip() for row in parts] == [
        "teacher",
        "encoder",
        "embedding and decoder",
        "distances, of regions too",
        "anomaly map and score",
    ]
    gmacs = [float(row[3]) for row in parts]
    assert gmacs == sorted(gmacs)
    assert float(parts[0][2]) == 1
    sizes = [row[0].strip() for row in (small, large, larger)]
    assert sizes == [f"bundle in INT8, {size}" for size in ("64x64", "1024x1024", "2048x1536")]
    assert {row[3] for row in (small, large, larger)} == {parts[-1][3]}
    assert float(alone[3]) == pytest.approx(8 * 128**2 * 9 * 8**2 / 1e9, abs=0.005)


def test_latency_beside_peers(tmp_path):
    arguments = ["--image_size", 128, "--training_images", 20, "--rounds", 2]
    printed = example("latency_beside_peers", *arguments, cwd=tmp_path)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed if line[:1] == "│"]
    assert [row[0] for row in rows] == [
        *["Dskd", "Stfpm", "ReverseDistillation"],
        *["Patchcore, bank 0.5%", "Patchcore, bank 10.0%"],
        "EfficientAd-S",
    ]
    assert rows[0][2] == rows[0][4] == "1.00"
    assert all(float(value) > 0 for row in rows[:-1] for value in row[1:])
    assert rows[-1][1:] == ["-"] * 4, "EfficientAd takes no image as small as that"
    assert any(line.startswith("EfficientAd-S, f32: RuntimeError") for line in printed)


def test_profile_training(mvtec_root, tmp_path):
    arguments = ["--root", mvtec_root, "--category", "stripes", "--teacher_weights", "random"]
    printed = example("profile_training", *arguments, "--batch_size", 2, "--steps", 2, cwd=tmp_path)
    assert any("images/s, peak memory" in line for line in printed)


def test_command_line(tmp_path):
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    result = run(["bash", EXAMPLES / "command_line.sh", 2], cwd=tmp_path, PATH=path)
    assert same_form(result.stdout.splitlines()[-1], shown("command_line.sh")[-1])
