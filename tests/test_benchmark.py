# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark: cells, fairness, and what survives an interruption."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from filelock import FileLock
from rich.console import Console
from sklearn.metrics import roc_auc_score

from anomalib_dskd import Dskd
from anomalib_dskd.benchmark.cell import run_cell
from anomalib_dskd.benchmark.config import DataConfig, ModelConfig, TeacherConfig, make_cells, read_config
from anomalib_dskd.benchmark.prepare import check, prepare_data, prepare_model
from anomalib_dskd.benchmark.runner import announce, run_process
from anomalib_dskd.benchmark.store import FAILED, finish, is_finished, read_result, start
from anomalib_dskd.benchmark.training_curve import TrainingCurve
from anomalib_dskd.errors import DskdError

COMMAND = Path(sys.executable).with_name("anomalib-dskd")
LITE0 = TeacherConfig("tf_efficientnet_lite0", "efficientnet_lite0")
SMALL = {
    "image_size": [64, 64],
    "teacher": {"backbone": "tf_efficientnet_lite0", "weights": "efficientnet_lite0"},
    "data": [{"class_path": "DemoTextures", "init_args": {"category": {"grid": ["brick"]}}}],
}
MODELS = [
    {"class_path": "Dskd", "steps": 3, "batch_size": 8, "trainer": {"precision": "bf16-mixed"}},
    {"class_path": "Stfpm", "steps": 3, "batch_size": 8},
    {"class_path": "Patchcore", "init_args": {"coreset_sampling_ratio": 0.01}},
    {"class_path": "Padim", "init_args": {"n_features": 20}},
    {"class_path": "ReverseDistillation"},
]


def cells_of(data, models, **kwargs):
    arguments = {"teacher": LITE0, "image_size": (64, 64), "seeds": [0], "fractions": [1.0], "hold_out": 0.2, **kwargs}
    return make_cells([DataConfig(**d) for d in data], [ModelConfig(**m) for m in models], **arguments)


def start_benchmark(folder: Path, out: Path, **changes) -> subprocess.Popen:
    config = folder / f"{out.name}.yaml"
    config.write_text(yaml.safe_dump({**SMALL, "timing_rounds": 0, **changes}))
    command = [COMMAND, "benchmark", "--config", config, "--out", out, "--root", folder / "data"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Five models on one category of the demo textures, in small; what was printed, and the folder."""
    folder = tmp_path_factory.mktemp("small")
    process = start_benchmark(folder, folder / "out", models=MODELS)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed, folder / "out"


def test_every_model_and_its_figures(small):
    printed, out = small
    table = pd.read_csv(out / "results.csv").set_index("model")
    assert list(table.index) == ["Dskd", "Padim", "Patchcore", "ReverseDistillation", "Stfpm"]
    assert (table.status == ["done", "done", "done", "no_teacher", "done"]).all()
    assert table.image_AUROC.isna().tolist() == [False, False, False, True, False]
    assert "Decoder with architecture tf_efficientnet_lite0 not supported" in printed
    assert "Stfpm: 3 steps, batch size 8" in printed
    page = (out / "report.html").read_text()
    assert all(model in page for model in table.index)
    for model in ("Dskd", "Stfpm", "Patchcore", "Padim"):
        cell = out / "cells/DemoTextures/brick" / model / "seed0"
        scores = pd.read_csv(cell / "scores.csv")
        result = read_result(cell)
        assert result["metrics"]["image_AUROC"] == pytest.approx(roc_auc_score(scores.label, scores.score), abs=1e-6)
        assert result["training"]["peak_memory_mib"] > 1
        assert result["anomalib_metrics"]["image_AUROC"] == pytest.approx(result["metrics"]["image_AUROC"], abs=0.3)
        assert set(scores["class"]) > {"good"}
        assert len(np.load(cell / "maps.npz", allow_pickle=False)["maps"]) == len(scores)
        assert not (cell / "scratch").exists()


def test_scores_are_raw(small):
    """anomalib clamps Patchcore's normalised scores to [0, 1]; ours are distances."""
    scores = pd.read_csv(small[1] / "cells/DemoTextures/brick/Patchcore/seed0/scores.csv").score
    assert scores.max() > 1.5
    assert scores.nunique() == len(scores)


def test_scores_are_not_rounded(small):
    """Dskd is trained in bfloat16, of whose scores most images would share one with others; it is tested in float32."""
    scores = pd.read_csv(small[1] / "cells/DemoTextures/brick/Dskd/seed0/scores.csv").score
    assert scores.nunique() == len(scores)


def test_tests_on_the_way_take_no_part_in_the_training(small):
    """The trained models score as without; the last test is of the trained model, and Patchcore has none before it."""
    out = small[1].with_name("curve")
    process = start_benchmark(out.parent, out, models=MODELS[:3], training_tests=3)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    for model in ("Dskd", "Stfpm", "Patchcore"):
        cell = f"cells/DemoTextures/brick/{model}/seed0"
        found, expected = (pd.read_csv(folder / cell / "scores.csv") for folder in (out, small[1]))
        pd.testing.assert_frame_equal(found, expected)
    assert not (out / cell / "training_curve.csv").exists()
    for model in ("Dskd", "Stfpm"):
        curve = pd.read_csv(out / f"cells/DemoTextures/brick/{model}/seed0/training_curve.csv")
        result = read_result(out / f"cells/DemoTextures/brick/{model}/seed0")
        assert curve.step.tolist() == [1, 2, 3]
        assert curve.seconds.is_monotonic_increasing
        assert curve.seconds.iloc[-1] < result["training"]["seconds"]
        assert curve.image_AUROC.iloc[-1] == pytest.approx(result["metrics"]["image_AUROC"], abs=1e-6)
    assert "DemoTextures_training.png" in (out / "report.md").read_text()


def test_clock_counts_what_a_model_does_before_its_first_step(tmp_path, mvtec_root):
    class Slow(Dskd):
        def on_fit_start(self) -> None:
            super().on_fit_start()
            time.sleep(3)

    data = MVTecAD(mvtec_root, "stripes", num_workers=0, train_batch_size=4)
    data.setup()
    curve = TrainingCurve(data, tests=1)
    engine = Engine(
        default_root_dir=tmp_path, accelerator="cpu", callbacks=[curve], enable_progress_bar=False, logger=False
    )
    model = Slow(teacher_weights="random", image_size=64, training_steps=1, visualizer=False)
    engine.fit(model, datamodule=data)
    assert [point["seconds"] > 3 for point in curve.points] == [True]


def test_finished_cells_are_not_run_again_and_changed_ones_are(small):
    _, out = small
    before = {path: path.stat().st_mtime_ns for path in out.rglob("cell.json")}
    models = [*MODELS[:3], {**MODELS[3], "init_args": {"n_features": 21}}, MODELS[4]]
    process = start_benchmark(out.parent, out, models=models)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "5 cells, 4 of them finished before" in printed
    changed = {path.parts[-3] for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"Padim"}


def test_killed_interrupted_and_failing(tmp_path):
    """SIGKILL, SIGINT, then to the end; a cell that fails is reported, the others stand, the exit code says so."""
    out = tmp_path / "out"
    cells = out / "cells/DemoTextures/brick"
    broken = {"name": "broken", "class_path": "Padim", "init_args": {"n_features": 10**6}}
    models = [MODELS[3], broken, {**MODELS[3], "name": "other"}]

    # a shell starts what it runs in the background with SIGINT ignored, and a command inherits that
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def signal_when(path: Path, number: int) -> tuple[int, str]:
        process = start_benchmark(tmp_path, out, models=models)
        deadline = time.monotonic() + 300
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    code, _ = signal_when(cells / "broken/seed0.partial/task.json", signal.SIGKILL)
    assert code == -signal.SIGKILL
    written = (cells / "Padim/seed0/cell.json").stat().st_mtime_ns
    assert not (cells / "broken/seed0").exists()
    code, printed = signal_when(cells / "other/seed0.partial/task.json", signal.SIGINT)
    assert code == 130, printed
    assert "3 cells, 1 of them finished before" in printed
    assert "Interrupted. Finished cells are kept" in printed
    assert "Padim" in (out / "report.md").read_text()
    assert not (cells / "other/seed0").exists()

    printed, _ = (process := start_benchmark(tmp_path, out, models=models)).communicate(timeout=600)
    assert process.returncode == 1, printed
    assert "1 failed; the same command tries again" in printed
    assert "n_features" in printed
    assert "Traceback" not in printed
    assert (cells / "Padim/seed0/cell.json").stat().st_mtime_ns == written
    assert not list(out.rglob("*.partial"))
    assert pd.read_csv(out / "results.csv").set_index("model").status.to_dict() == {
        "Padim": "done",
        "broken": "failed",
        "other": "done",
    }


def test_a_process_that_dies_is_not_given_the_reason_of_the_failure_before(tmp_path):
    (cell,) = cells_of(SMALL["data"], MODELS[3:4])
    start(tmp_path, cell)
    finish(tmp_path, cell, {"status": FAILED, "reason": "of last week"})

    def kill(_: dict) -> None:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.ZombieProcess):
                if "anomalib_dskd.benchmark.cell" in child.cmdline():
                    child.kill()

    reason = run_process(cell, tmp_path, kill)["reason"]
    assert reason.startswith("its process ended with status -9 and left no result; logs/")
    assert (tmp_path / "logs" / reason.split("logs/")[1].split()[0]).exists()
    assert "status -9" in read_result(tmp_path / cell.folder)["reason"]


def test_one_benchmark_a_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        printed, _ = (process := start_benchmark(tmp_path, tmp_path / "out", models=MODELS)).communicate(timeout=120)
    assert process.returncode == 1
    assert "Another benchmark is running in" in printed


def test_half_written_cells_do_not_count(tmp_path):
    (cell,) = cells_of(SMALL["data"], MODELS[:1])
    work = start(tmp_path, cell)
    (work / "scores.csv").write_text("path,label")
    assert not is_finished(tmp_path, cell)
    work = start(tmp_path, cell)
    assert list(work.iterdir()) == []
    finish(tmp_path, cell, {"status": "done"})
    assert is_finished(tmp_path, cell)
    (tmp_path / cell.folder / "cell.json").write_text('{"digest": "')
    assert not is_finished(tmp_path, cell)
    start(tmp_path, cell)
    finish(tmp_path, cell, {"status": "failed"})
    assert not is_finished(tmp_path, cell)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode()}")
    try:
        (cell,) = cells_of(SMALL["data"], MODELS[:1])
        (start(disk, cell) / "scores.csv").write_text("path,label\n")
        (disk / "filler").write_bytes(bytes(2**16 - 20 * 1024))
        with pytest.raises(OSError, match="No space left"):
            finish(disk, cell, {"status": "done", "metrics": "x" * 2**16})
        assert not is_finished(disk, cell)
        assert not (disk / cell.folder).exists()
        (disk / "filler").unlink()
        start(disk, cell)
        finish(disk, cell, {"status": "done"})
        assert is_finished(disk, cell)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_grids_names_and_recipes():
    data = [
        {"class_path": "MVTec", "init_args": {"category": {"grid": ["a", "b"]}}},
        {"class_path": "MagneticTile", "init_args": {"protocol": {"grid": ["tile_disjoint", "differnet"]}}},
    ]
    models = [
        {"class_path": "anomalib.models.Stfpm"},
        {"name": "D", "class_path": "Dskd", "init_args": {"students": {"grid": ["both", "encoder"]}}, "epochs": 3},
    ]
    cells = cells_of(data, models, seeds=[0, 1], fractions=[0.5, 1.0])
    assert len(cells) == 4 * 3 * 2 * 2
    assert len({cell.folder for cell in cells}) == len({cell.digest for cell in cells}) == len(cells)
    assert [cell.fraction for cell in cells] == [1.0] * 24 + [0.5] * 24
    assert {(cell.data, cell.category) for cell in cells} == {
        ("MVTec", "a"),
        ("MVTec", "b"),
        ("MagneticTile tile_disjoint", "all"),
        ("MagneticTile differnet", "all"),
    }
    assert {cell.model for cell in cells} == {"Stfpm", "D students=both", "D students=encoder"}
    lengths = {
        (c.config["model"]["class_path"], c.config["model"]["epochs"], c.config["model"]["batch_size"]) for c in cells
    }
    assert lengths == {("anomalib.models.Stfpm", 100, 32), ("Dskd", 3, 32)}
    assert cells[0].config["data"]["init_args"] == {"category": "a"}


def test_configurations_that_cannot_be_run():
    with pytest.raises(DskdError, match="Two cells are called 'Dskd on"):
        cells_of(SMALL["data"], [MODELS[0], {**MODELS[0], "steps": 4}])
    with pytest.raises(DskdError, match="Nothing to run"):
        cells_of(SMALL["data"], [])
    with pytest.raises(DskdError, match=r"fractions=\[0\]"):
        cells_of(SMALL["data"], MODELS, fractions=[0])
    with pytest.raises(DskdError, match="training_tests=-1"):
        cells_of(SMALL["data"], MODELS, training_tests=-1)
    with pytest.raises(DskdError, match="hold_out=0 must lie in"):
        cells_of(SMALL["data"], MODELS, hold_out=0)
    for grid in (4, "ab", []):
        with pytest.raises(DskdError, match=r"n_features: .*must be a list of at least one value"):
            cells_of(SMALL["data"], [{"class_path": "Padim", "init_args": {"n_features": {"grid": grid}}}])
    for unit, value in (("steps", 0), ("epochs", -1), ("batch_size", 1.5)):
        with pytest.raises(DskdError, match=f"Padim: {unit}={value} must be a whole number"):
            cells_of(SMALL["data"], [{"class_path": "Padim", unit: value}])
    with pytest.raises(DskdError, match="give one of them"):
        cells_of(SMALL["data"], [{"class_path": "Padim", "epochs": 1, "steps": 1}])
    with pytest.raises(DskdError, match=r"teacher.weights='no.pth': there is no such file"):
        cells_of(SMALL["data"], MODELS, teacher=TeacherConfig("resnet18", "no.pth"))
    with pytest.raises(DskdError, match=r"unexpected keyword argument 'epoch'. Its keys are class_path,"):
        read_config(ModelConfig, {"class_path": "Dskd", "epoch": 1})
    (cell,) = cells_of(SMALL["data"], [{"class_path": "Dskt"}])
    with pytest.raises(DskdError, match="There is no Dskt"):
        check([cell])
    (cell,) = cells_of(SMALL["data"], [{"class_path": "Padim", "init_args": {"feature": 1}}])
    with pytest.raises(DskdError, match="does not accept"):
        check([cell])
    (cell,) = cells_of(SMALL["data"], [{**MODELS[3], "trainer": {"presicion": "bf16-mixed"}}])
    with pytest.raises(DskdError, match="Padim: Lightning's trainer has no argument presicion"):
        check([cell])
    for taken in ({"max_epochs": 5}, {"devices": 2}, {"logger": True}):
        (cell,) = cells_of(SMALL["data"], [{**MODELS[3], "trainer": taken}])
        with pytest.raises(DskdError, match=f"Padim: the benchmark itself gives the trainer {next(iter(taken))}"):
            check([cell])
    assert read_config(ModelConfig, {"class_path": "Padim", "init_args": None, "name": 5}) == ModelConfig(
        "Padim", name="5"
    )
    (cell,) = cells_of(SMALL["data"], [{"class_path": "Dfm"}])
    with pytest.raises(DskdError, match="Dfm: no published length of training is known here"):
        check([cell])
    (cell,) = cells_of([{"class_path": "MVTek"}], MODELS[:1])
    with pytest.raises(DskdError, match="There is no MVTek"):
        check([cell])


def test_no_test_image_before_the_test(mvtec_root):
    """Whatever the configuration says: anomalib's own default would validate on the test images."""
    init_args = {"root": str(mvtec_root), "category": "stripes", "val_split_mode": "same_as_test"}
    model = [{"class_path": "Padim", "init_args": {"n_features": 20}}]
    whole, half = (
        prepare_data(cells_of([{"class_path": "MVTec", "init_args": init_args}], model, fractions=[f], hold_out=0.5)[0])
        for f in (1.0, 0.5)
    )
    tested = set(whole.test_data.samples.image_path)
    trained, held_out = set(whole.train_data.samples.image_path), set(whole.val_data.samples.image_path)
    assert held_out
    assert not tested & (trained | held_out)
    assert not trained & held_out
    assert not whole.val_data.has_anomalous
    for part, all_of_it in ((half.train_data, trained), (half.val_data, held_out)):
        assert len(part) == len(all_of_it) / 2
        assert set(part.samples.image_path) < all_of_it


def test_same_input_for_every_model():
    transforms = {
        str(prepare_model(cell).model.pre_processor.transform) for cell in cells_of(SMALL["data"], MODELS[:4])
    }
    assert len(transforms) == 1
    assert "size=[64, 64]" in transforms.pop()


def test_a_seed_of_its_own_is_that_of_the_cell():
    models = [prepare_model(cell).model for cell in cells_of(SMALL["data"], [{"class_path": "Dskd"}], seeds=[0, 1])]
    assert [model.hparams.seed for model in models] == [0, 1]
    first, second = (next(model.model.encoder.parameters()) for model in models)
    assert not torch.equal(first, second)
    (fixed,) = cells_of(SMALL["data"], [{"class_path": "Dskd", "init_args": {"seed": 7}}], seeds=[1])
    assert prepare_model(fixed).model.hparams.seed == 7


def test_models_that_cannot_take_the_teacher():
    for class_path, reason in (
        ("ReverseDistillation", "Decoder with architecture tf_efficientnet_lite0 not supported"),
        ("EfficientAd", "has no backbone to choose"),
        ("Fastflow", "Backbone tf_efficientnet_lite0 is not supported"),
    ):
        (cell,) = cells_of(SMALL["data"], [{"class_path": class_path}])
        assert reason in prepare_model(cell).obstacle


def test_a_model_of_another_teacher_is_not_compared(tmp_path):
    for init_args, named in (
        ({"backbone": "resnet18"}, "backbone=resnet18 and not the benchmark's tf_efficientnet_lite0"),
        ({"pre_trained": False}, "pre_trained=False and not"),
    ):
        (cell,) = cells_of(SMALL["data"], [{"class_path": "Padim", "init_args": {**init_args, "n_features": 20}}])
        assert named in prepare_model(cell).obstacle
        assert run_cell(cell, tmp_path, start(tmp_path, cell))["status"] == "no_teacher"
    same = {"backbone": LITE0.backbone, "n_features": 20}
    (cell,) = cells_of(SMALL["data"], [{"class_path": "Padim", "init_args": same}])
    assert prepare_model(cell).obstacle is None


@pytest.mark.parametrize("error", [ConnectionError("no network"), MemoryError()])
def test_what_may_be_had_another_time_is_no_reason_to_leave_a_model_out(monkeypatch, error):
    def fail(*_, **__) -> None:
        raise error

    (cell,) = cells_of(SMALL["data"], [{"class_path": "Padim", "init_args": {"n_features": 20}}])
    monkeypatch.setattr("anomalib_dskd.benchmark.prepare._try", fail)
    with pytest.raises(type(error)):
        prepare_model(cell)


def test_defects_drawn_anew_for_each_model_are_refused(mvtec_root):
    init_args = {"name": "parts", "normal_dir": str(mvtec_root / "stripes/train/good"), "test_split_mode": "synthetic"}
    (cell,) = cells_of([{"class_path": "Folder", "init_args": init_args}], MODELS[3:4])
    with pytest.raises(DskdError, match="Folder draws its test defects, anew for each model"):
        prepare_data(cell)


def test_some_images_must_be_held_out(mvtec_root):
    init_args = {"root": str(mvtec_root), "category": "stripes"}
    (cell,) = cells_of([{"class_path": "MVTec", "init_args": init_args}], MODELS[3:4], hold_out=0.01)
    with pytest.raises(DskdError, match=r"hold_out=0.01 of \d+ normal training images is none"):
        prepare_data(cell)


def test_names_in_any_script_and_with_brackets(capsys):
    data = [{"class_path": "Folder", "init_args": {"category": {"grid": ["螺丝", "瓶子"]}}}]
    cells = cells_of(data, [{**MODELS[0], "name": "Dskd [/small]"}])
    assert [cell.folder.parts[2] for cell in cells] == ["螺丝", "瓶子"]
    announce(cells[0], {"status": "failed", "reason": "no [/data/images] here"}, Console(width=200), "1/2")
    assert "Dskd [/small] on Folder 螺丝, seed 0: failed: no [/data/images] here" in capsys.readouterr().out
    with pytest.raises(DskdError, match=r"'A B on .* and 'A\+B on .* would share the folder cells/"):
        cells_of(SMALL["data"], [{**MODELS[0], "name": name} for name in ("A B", "A+B")])


def test_a_changed_weights_file_changes_the_cell(tmp_path):
    def digest(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        (cell,) = cells_of(SMALL["data"], MODELS[:1], teacher=TeacherConfig("resnet18", str(tmp_path / name)))
        return cell.digest

    first = digest("one.pth", b"1")
    assert digest("elsewhere.pth", b"1") == first
    assert digest("one.pth", b"2") != first


def test_mistakes_stop_it_before_it_starts(tmp_path):
    """A wrong class at the end of the list, a name that does not exist, a folder that cannot be."""
    models = [MODELS[3], {"class_path": "Stfmp", "steps": 1}]
    printed, _ = (process := start_benchmark(tmp_path, tmp_path / "out", models=models)).communicate(timeout=120)
    assert process.returncode == 1
    assert "error: There is no Stfmp" in printed
    assert not (tmp_path / "out/cells").exists()
    (tmp_path / "file").touch()
    printed, _ = (process := start_benchmark(tmp_path, tmp_path / "file", models=MODELS)).communicate(timeout=120)
    assert process.returncode == 1
    assert "error: Results cannot be written" in printed
    for option in (["--config", "nosuch"], ["--config=nosuch"]):
        asked = subprocess.run([COMMAND, "benchmark", *option], capture_output=True, text=True, check=False)
        assert asked.returncode == 1
        assert "one of: ablation, demo, magnetic_tile, mvtec_3d_rgb, mvtec_ad, training" in asked.stderr


def test_help_names_what_is_ready():
    text = subprocess.run([COMMAND, "benchmark", "--help"], capture_output=True, text=True, check=True).stdout
    text = " ".join(text.split())
    assert "ablation, demo, magnetic_tile, mvtec_3d_rgb, mvtec_ad, training (demo is the shortest)" in text
    assert "report.html is the report" in text


def test_a_result_says_how_it_was_made(small):
    result = json.loads((small[1] / "cells/DemoTextures/brick/Stfpm/seed0/cell.json").read_text())
    assert result["cell"] == {"data": "DemoTextures", "category": "brick", "model": "Stfpm", "fraction": 1.0, "seed": 0}
    assert result["config"]["model"]["steps"] == result["training"]["steps"] == 3
    assert result["converged"] is None
    assert result["metric_errors"]["pixel_AUROC"] == 0
    assert result["environment"]["anomalib"]
    scores = pd.read_csv(small[1] / "cells/DemoTextures/brick/Stfpm/seed0/scores.csv").set_index("path")
    assert all(Path(mask).is_file() for mask in scores["mask"].dropna())
    assert scores["mask"].notna().sum() == scores["label"].sum()
    report = (small[1] / "report.md").read_text()
    assert "| Stfpm | DemoTextures | 1 | 3 | 96 | 8 | 64x64 | tf_efficientnet_lite0 efficientnet_lite0 |" in report
    assert f"| anomalib | {result['environment']['anomalib']} |" in report


@pytest.mark.long
def test_trained_models_are_timed_against_each_other(tmp_path):
    models = [MODELS[0], MODELS[2], MODELS[3]]
    printed, _ = (process := start_benchmark(tmp_path, tmp_path / "out", models=models, timing_rounds=3)).communicate()
    assert process.returncode == 0, printed
    costs = json.loads((tmp_path / "out/costs/DemoTextures.json").read_text())
    rows = pd.DataFrame(costs["rows"])
    assert set(rows.model) == {"Dskd", "Patchcore", "Padim"}
    f32 = rows[(rows.engine == "openvino") & (rows.precision == "f32") & (rows.batch == 1)]
    assert (f32.median_ms > 0).all()
    assert (f32.file_to_verdict_ms > f32.median_ms).all()
    assert costs["environment"]["cores"] >= 1
    page = (tmp_path / "out/report.html").read_text()
    assert "openvino" in page.lower()
    written = (tmp_path / "out/costs/DemoTextures.json").stat().st_mtime_ns
    process = start_benchmark(tmp_path, tmp_path / "out", models=models, timing_rounds=3)
    printed, _ = process.communicate()
    assert "3 cells, 3 of them finished before" in printed
    assert (tmp_path / "out/costs/DemoTextures.json").stat().st_mtime_ns == written


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_timing_ends_with_the_command(tmp_path):
    """Killed with SIGKILL while it times the models; its process does not go on, and the next run times them anew."""
    out = tmp_path / "out"

    def timing() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = process.read_text().split("\0")
                found += (
                    [process.parent.name] if "anomalib_dskd.benchmark.timing" in words and str(out) in words else []
                )
        return found

    process = start_benchmark(tmp_path, out, models=[MODELS[3]], timing_rounds=2)
    deadline = time.monotonic() + 300
    while not (out / "costs/exports").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(timing()) == 1
    process.kill()
    process.wait()
    time.sleep(3)
    assert not timing()
    assert not (out / "costs/DemoTextures.json").exists()
    printed, _ = (process := start_benchmark(tmp_path, out, models=[MODELS[3]], timing_rounds=2)).communicate()
    assert process.returncode == 0, printed
    assert (out / "costs/DemoTextures.json").exists()
    assert not (out / "costs/exports").exists()
